"""DiffuRec on MovieLens 1M, leave-one-out, ids only: as `ml1m_loo`, the published process.

python train.py --config configs/rivals/diffurec.py --config.data.path=DIR --workdir runs/diffurec

Test, seed 0, seen items not excluded, the history sketch, one call (commit d257c2a): HR@10 .288, NDCG@10 .165;
published .263, .148 (3,000 steps). Seen items excluded, 32 calls (commit 198a3f1, seed 0): .343, .201.
"""

from configs import ml1m_loo


def get_config():
    """32 ancestral steps, linear, as published."""
    config = ml1m_loo.get_config()
    config.model.name = "diffurec"
    config.diffusion.schedule = "linear"
    config.diffusion.steps = 32
    config.diffusion.sampler = "ddpm"
    config.diffusion.sampler_steps = 32
    return config
