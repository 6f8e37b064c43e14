"""T2Diff at every position on MovieLens 1M as most published sequential numbers are made: leave-one-out, ids only.

python train.py --config configs/ml1m_loo.py --config.data.path=DIR --workdir runs/ml1m_loo

40 minutes on one busy CPU core. Test, seed 0, seen items not excluded: HR@10 .290, NDCG@10 .168 (commit 61a26b5).
SASRec, with them excluded from ranking and loss, has .305, .175 after 14 minutes (commit 91271c2):

--config.model.name=sasrec --config.model.sketch_dim=0 --config.loss.exclude_seen=True --config.eval.exclude_seen=True
"""

from configs import ml1m


def get_config():
    """The 5-core catalogue (3,416 items), the last behaviour of every user as the target, no categories."""
    config = ml1m.get_config()
    config.data.protocol = "leave_one_out"
    config.data.min_user_count = 5
    config.data.min_item_count = 5
    config.data.categories = False
    config.model.dim = 128
    config.model.heads = 4
    config.model.hidden = 512
    config.model.sketch_dim = 0
    config.loss.exclude_seen = True
    config.eval.exclude_seen = True
    config.diffusion.stop_gradient = False
    config.optim.kernels = "muon"
    return config
