"""DiffuRec on MovieLens 1M, leave-one-out, ids only: as `ml1m_loo`, the published process.

python train.py --config configs/rivals/diffurec.py --config.data.path=DIR --workdir runs/diffurec

Test, seed 0 (commit e1f4e9d, a CPU core, one call: --config.diffusion.sampler=ddim --config.diffusion.sampler_steps=1):
HR@10 .340, NDCG@10 .200. With a linear map behind the last norm, 32 calls (commit 198a3f1): .343, .201; so too, seen
items not excluded, the history sketch, 3,000 steps, one call (commit d257c2a): .288, .165; published .263, .148.
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
