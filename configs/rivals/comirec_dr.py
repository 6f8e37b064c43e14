"""ComiRec with dynamic routing on MovieLens 1M, leave-one-out, ids only: all but the model as in `ml1m_loo`.

python train.py --config configs/rivals/comirec_dr.py --config.data.path=DIR --workdir runs/comirec_dr

Not tested after its 9,000 steps yet. After 3,000 (--config.train.steps=3000 --config.train.eval_every=1500
--config.train.checkpoint_every=1500; 30 minutes on one busy CPU core): test, seed 0 (commit 583b356): HR@10 .192,
NDCG@10 .106. Its maps are a stack of matrices that `optim.kernels=muon` leaves to Adam.
"""

from configs import ml1m_loo


def get_config():
    """The configuration of `ml1m_loo` with this model."""
    config = ml1m_loo.get_config()
    config.model.name = "comirec_dr"
    return config
