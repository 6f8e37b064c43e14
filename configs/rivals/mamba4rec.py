"""Mamba4Rec on MovieLens 1M, leave-one-out, ids only: as `ml1m_loo`, one layer.

python train.py --config configs/rivals/mamba4rec.py --config.data.path=DIR --workdir runs/mamba4rec

Test, seed 0 (commit 198a3f1, on an H200): HR@10 .338, NDCG@10 .200. Seen items not excluded (commit db1ecdb; flags of
`loo_kept_mamba4rec` in docs/results.md): HR@10 .314, NDCG@10 .188; published so: HR@10 .312.
"""

from configs import ml1m_loo


def get_config():
    """One layer, as published (there without a residual around its state space)."""
    config = ml1m_loo.get_config()
    config.model.name = "mamba4rec"
    config.model.layers = 1
    return config
