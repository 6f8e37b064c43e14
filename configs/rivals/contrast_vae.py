"""ContrastVAE on MovieLens 1M, leave-one-out, ids only: all but the model as in `ml1m_loo`.

python train.py --config configs/rivals/contrast_vae.py --config.data.path=DIR --workdir runs/contrast_vae

17 minutes. Test, seed 0 (commit b042dea): HR@10 .317, NDCG@10 .187.
"""

from configs import ml1m_loo


def get_config():
    """The configuration of `ml1m_loo` with this model."""
    config = ml1m_loo.get_config()
    config.model.name = "contrast_vae"
    return config
