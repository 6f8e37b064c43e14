"""GRU4Rec on MovieLens 1M, leave-one-out, ids only: as `ml1m_loo`, two layers of 256 units (published: one).

python train.py --config configs/rivals/gru4rec.py --config.data.path=DIR --workdir runs/gru4rec

Not tested after its 9,000 steps yet. After 3,000 (--config.train.steps=3000 --config.train.eval_every=1500
--config.train.checkpoint_every=1500; 8 to 16 minutes on one CPU core): test, means of seeds 0 to 2
(commits 3f7bb46, 3c71760): HR@10 .314, NDCG@10 .182; published with cross-entropy: HR@10 .281.
"""

from configs import ml1m_loo


def get_config():
    """The configuration of `ml1m_loo` with this model."""
    config = ml1m_loo.get_config()
    config.model.name = "gru4rec"
    config.model.hidden = 256
    return config
