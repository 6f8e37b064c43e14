"""How a command ends when something is wrong that its user can put right: one message, no traceback."""

import contextlib
import os
import sys
from collections.abc import Iterator

from t2diff_jax.checkpoint import CheckpointError
from t2diff_jax.config import ConfigError
from t2diff_jax.data.log import DataError

_EXPLAINED = (ConfigError, DataError, CheckpointError, FloatingPointError, ImportError, OSError)


@contextlib.contextmanager
def explained(*, on_interrupt: str) -> Iterator[None]:
    """Exits with the message of an error that is meant for the user, or with `on_interrupt` after Ctrl-C."""
    try:
        yield
    except _EXPLAINED as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr, flush=True)
        if isinstance(error, CheckpointError):
            # Reads that were under way beside one that failed end with tracebacks of their own, as late as at shutdown.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.__stderr__.fileno())
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(on_interrupt)
