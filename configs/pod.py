"""T2Diff at every position on KuaiRand-27K with all its 32 million videos, for a pod: tables by rows over 8 devices.

python train.py --config configs/pod.py --dry_run --topology v5e:16x16

compiles it without a pod and without the data. On a pod, in every process:

python train.py --config configs/pod.py --config.data.path=DIR --workdir WORKDIR --multihost
"""

from configs import every_position


def get_config():
    """Sampled softmax, only touched rows learn, tables by row-wise Adagrad: steps do not see the catalogue's size."""
    config = every_position.get_config()
    config.data.source = "kuairand"
    config.data.path = "data/KuaiRand-27K"
    config.data.kuairand.logs = ("standard_4_08_to_4_21", "standard_4_22_to_5_08")
    config.data.kuairand.clicks_only = False
    config.data.kuairand.tab = -1
    config.data.min_user_count = 11
    config.model.sketch_dim = 0
    config.model.row_multiple = 1024
    config.model.dtype = "bfloat16"
    config.loss.negatives = 8192
    config.loss.batch_negatives = 8192
    config.optim.lazy_rows = True
    config.optim.tables = "adagrad"
    config.train.batch_size = 4096
    config.train.steps = 20000
    config.train.eval_every = 2000
    config.train.checkpoint_every = 2000
    config.eval.batch_size = 4096
    config.eval.block = 65536
    config.eval.noise_keys = 1
    config.eval.ks = (10, 20, 50, 100)
    config.mesh.model = 8
    config.dry_run.n_items = 32_038_725
    config.dry_run.categories = 70  # these and the features are assumed: orders of magnitude, not read off the files
    config.dry_run.user_features = (9, 3, 8, 51, 1472, 16, 35, 4, 119, 455, 8, 6, 6, 3, 3, 3, 3, 3, 3)
    return config
