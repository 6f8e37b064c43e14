"""T2Diff at every position on Amazon Beauty (5-core, `user_id,item_id,timestamp`), leave-one-out.

python train.py --config configs/beauty.py --config.data.path=LOG.csv --workdir runs/beauty

10 to 20 minutes on one CPU core. Test, seed 0: HR@10 .069, NDCG@10 .037; with --config.model.name=sasrec .057, .029.
Of a commit before 746d79d, which norms item vectors: to be measured again.
"""

from configs import table


def get_config():
    """Ids only, windows of 20 (19 of 20 users have no more), a good deal of dropout: 9 behaviours a user are few."""
    config = table.get_config()
    config.data.real_times = False
    config.data.window = 20
    config.model.sketch_dim = 0  # learned signatures memorise such a sparse log
    config.model.dropout = 0.5
    config.optim.learning_rate = 1e-3
    config.train.batch_size = 128
    config.train.steps = 4000
    return config
