"""SASRec on MovieLens 1M, leave-one-out, ids only: all but the model and its depth as in `ml1m_loo`.

python train.py --config configs/rivals/sasrec.py --config.data.path=DIR --workdir runs/sasrec

37 minutes. Test, seed 0 (commit db1ecdb, the depth a flag of `ml1m_loo`): HR@10 .343, NDCG@10 .203; with two blocks,
means of seeds 0 to 2 (commits 583b356, 532e646, 198a3f1), .339, .199, after 3,000 steps .320, .186; published with a
softmax over many negatives: .316, .186.
"""

from configs import ml1m_loo


def get_config():
    """As many blocks as T2Diff has with its session's attention; chosen on validation, .203 against .200."""
    config = ml1m_loo.get_config()
    config.model.name = "sasrec"
    config.model.layers = 3
    return config
