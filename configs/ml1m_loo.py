"""T2Diff at every position on MovieLens 1M as most published sequential numbers are made: leave-one-out, ids only.

python train.py --config configs/ml1m_loo.py --config.data.path=DIR --workdir runs/ml1m_loo

65 minutes of training on one busy CPU core. Test, items already had excluded, means of training seeds 0 to 2 (commit
198a3f1): HR@10 .350, NDCG@10 .206; with four intents (--config.diffusion.samples=4 --config.diffusion.noise=intent
--config.loss.merge=logsumexp --config.eval.merge=logsumexp) .351, .207; with --config.model.slot=empty .345, .203; with
--config.model.name=sasrec .339, .199. A third of the steps (--config.train.steps=3000 --config.train.eval_every=1500
--config.train.checkpoint_every=1500): .331, .193; sasrec .320, .186. Intervals: `docs/results.md`.
"""

from configs import ml1m


def get_config():
    """The 5-core catalogue (3,416 items), the last behaviour of every user as the target, no categories."""
    config = ml1m.get_config()
    config.data.protocol = "leave_one_out"
    config.data.min_user_count = 5
    config.data.min_item_count = 5
    config.data.categories = False
    config.model.behaviour_dropout = 0.0  # training has met every user: NDCG@10 of validation does not want it
    config.loss.seen_before = 0  # as the rows above were made; 4096 is not measured here
    return config
