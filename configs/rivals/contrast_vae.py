"""ContrastVAE on MovieLens 1M, leave-one-out, ids only: all but the model as in `ml1m_loo`.

python train.py --config configs/rivals/contrast_vae.py --config.data.path=DIR --workdir runs/contrast_vae

Test, means of seeds 0 to 2 (commit 198a3f1, on an H200): HR@10 .346, NDCG@10 .203; after 3,000 steps .320, .187.
"""

from configs import ml1m_loo


def get_config():
    """The configuration of `ml1m_loo` with this model."""
    config = ml1m_loo.get_config()
    config.model.name = "contrast_vae"
    return config
