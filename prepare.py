"""Makes a folder of columns of a raw log that is too large for memory; train.py reads it with data.source=prepared.

python prepare.py --config configs/kuairand.py --config.data.path=DIR --out PREPARED
python prepare.py --config configs/kuairand.py --config.data.path=DIR --out PREPARED --beam -- --runner=FlinkRunner
"""

import functools
import pathlib

from absl import app, flags
from ml_collections import config_flags

from t2diff_jax.command_line import parser
from t2diff_jax.config_values import from_mapping
from t2diff_jax.data.preparation import prepare
from t2diff_jax.explain import explained

say = functools.partial(print, flush=True)  # no device is needed here
_CONFIG = config_flags.DEFINE_config_file("config", None, "A file of configs/; its data.* and prepare.* are used.")
_OUT = flags.DEFINE_string("out", None, "Folder to write; it must be empty or not there.")
_BEAM = flags.DEFINE_bool(
    "beam", False, "Read and sort with Apache Beam; what follows -- are the options of its runner."
)
_SHARED = flags.DEFINE_string("shared", None, "With --beam: folder that all its workers reach; --out if not given.")


def main(argv: list[str]) -> None:
    """Reads, sorts, writes, and says what is there."""
    if len(argv) > 1 and not _BEAM.value:
        raise app.UsageError(f"unexpected arguments: {' '.join(argv[1:])}")
    with explained(on_interrupt="stopped; nothing was prepared"):
        config = from_mapping(_CONFIG.value)
        options = argv[1:] if _BEAM.value else None
        log = prepare(config, pathlib.Path(_OUT.value), say, beam_options=options, shared=_SHARED.value)
    say(f"{log.name}: {log.n_users:,} users, {log.n_items:,} items, {len(log.items):,} behaviours in {_OUT.value}")
    say(f"to train on it: --config.data.source=prepared --config.data.path={_OUT.value}")


if __name__ == "__main__":
    flags.mark_flags_as_required(["config", "out"])
    app.run(main, flags_parser=parser(_CONFIG))
