"""T2Diff at every position on anyone's own log: a CSV or Parquet file with a user, an item and a time column.

python train.py --config configs/table.py --config.data.path=LOG.csv --workdir runs/own

Columns have other names? --config.data.table.user=visitor --config.data.table.item=sku --config.data.table.time=when.
Timestamps that only order the behaviours: --config.data.real_times=False.
"""

from configs import every_position


def get_config():
    """A table, leave-one-out, 5-core, windows of 50."""
    config = every_position.get_config()
    config.data.source = "table"
    config.data.path = "log.csv"
    config.data.min_user_count = 5
    config.data.min_item_count = 5
    config.data.protocol = "leave_one_out"
    config.model.sketch_dropout = 0.6  # the whole sketch learns pairs of items by heart
    config.train.batch_size = 64
    config.train.steps = 5000
    return config
