"""From the raw log of a configuration to a prepared one, by the way that its source and its size allow."""

import pathlib
import shutil
from collections.abc import Callable, Sequence

from t2diff_jax.config import Config
from t2diff_jax.config_values import ConfigError
from t2diff_jax.data.log import DataError, InteractionLog
from t2diff_jax.data.out_of_core import build_out_of_core
from t2diff_jax.data.prepared import write_log
from t2diff_jax.data.sources import load_log, open_parts


def prepare(
    config: Config,
    out: pathlib.Path,
    say: Callable[[str], None],
    *,
    beam_options: Sequence[str] | None,
    shared: str | None,
) -> InteractionLog:
    """Writes the log of `config.data` to the folder `out`, which is not there or empty; opens it.

    Sources whose files can be read in parts (`open_parts`) are never in memory as a whole; the others are small.

    Args:
      beam_options: those of the runner of Apache Beam that reads and sorts; None: this process does.
      shared: with Beam, a folder that all workers reach, for what is not yet sorted; None: `out`.

    Raises:
      ConfigError: Beam for a source that is read in memory, or a log that is prepared already.
      DataError: `out` holds something, or as the source; then nothing is left in `out`.
      ImportError: Beam is not installed.
    """
    if config.data.source == "prepared":
        raise ConfigError("config.data.source: the log is prepared already; name the source of the raw files")
    parts = open_parts(config.data, config.prepare.block_rows)
    if parts is None and beam_options is not None:
        raise ConfigError(
            f"config.data.source: {config.data.source} is read in memory; leave --beam out, or use table or kuairand"
        )
    if out.exists() and any(out.iterdir()):
        raise DataError(f"{out}: the folder is not empty; name another --out, or delete what is in it")
    out.mkdir(parents=True, exist_ok=True)
    try:
        if parts is None:
            return write_log(load_log(config.data), out, config.data)
        if beam_options is None:
            return build_out_of_core(parts, out, config.data, config.prepare, say)
        build = _build_with_beam()
        return build(parts, out, config.data, config.prepare, say, beam_options, shared or str(out))
    except BaseException:
        shutil.rmtree(out)
        raise


def _build_with_beam() -> Callable[..., InteractionLog]:
    try:
        from t2diff_jax.data.beam_pipeline import build_with_beam
    except ImportError as error:
        raise ImportError("--beam needs Apache Beam; install it with: pip install -e '.[beam]'") from error
    return build_with_beam
