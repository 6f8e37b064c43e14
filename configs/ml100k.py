"""T2Diff at every position on MovieLens 100K (raw files), split in time: the timestamps are real.

python train.py --config configs/ml100k.py --config.data.path=DIR --workdir runs/ml100k

One minute on one CPU core. Test, means of seeds 0 to 2 (commit 3e0f1ec): Recall@20 .284, NDCG@10 .096; with
--config.model.slot=empty .282, .097; with --config.model.name=sasrec .272, .093; popularity .070, .018.
"""

from configs import every_position


def get_config():
    """MovieLens 100K, sessions ended by an hour without a rating, windows of 100."""
    config = every_position.get_config()
    config.data.source = "movielens"
    config.data.path = "data/ml-100k"
    config.data.protocol = "temporal"
    config.data.window = 100
    config.model.session_gap = 3600
    config.model.user_scale = 4.0  # short training: by validation, for T2Diff and SASRec alike
    config.train.batch_size = 8
    config.train.steps = 400  # with 1,000 it overfits from step 300 on
    config.train.eval_every = 100
    config.train.checkpoint_every = 100
    return config
