"""How a command ends when something is wrong that its user can put right: one message, no traceback."""

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Iterator

from t2diff_jax.checkpoint import CheckpointError
from t2diff_jax.config import ConfigError
from t2diff_jax.data.log import DataError

_EXPLAINED = (ConfigError, DataError, CheckpointError, FloatingPointError, ImportError, OSError)


@contextlib.contextmanager
def explained(*, on_interrupt: str) -> Iterator[None]:
    """Exits with the message of an error that is meant for the user, or with `on_interrupt` after Ctrl-C."""
    hook, sys.unraisablehook = sys.unraisablehook, _interrupt_again
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
    finally:
        sys.unraisablehook = hook


def _interrupt_again(ignored: "sys.UnraisableHookArgs") -> None:
    """Ctrl-C that fell into a callback whose exceptions the interpreter ignores (JAX has one at every garbage
    collection) would be lost: the signal is sent again, a moment later, outside of it."""
    if not issubclass(ignored.exc_type, KeyboardInterrupt):
        return sys.__unraisablehook__(ignored)
    again = threading.Timer(0.01, os.kill, (os.getpid(), signal.SIGINT))
    again.daemon = True
    again.start()
