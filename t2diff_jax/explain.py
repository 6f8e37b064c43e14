"""How a command ends when something is wrong that its user can put right: one message, no traceback."""

import contextlib
import os
import re
import signal
import sys
import threading
import traceback
from collections.abc import Iterator
from typing import NoReturn

import jax

from t2diff_jax.checkpoint import CheckpointError
from t2diff_jax.config_values import ConfigError
from t2diff_jax.data.log import DataError
from t2diff_jax.interrupt import Preempted
from t2diff_jax.results.runs import ResultsError

# What the runtimes of several processes say when one of them is gone.
_LOST = re.compile(r"gloo|closed by peer|connection reset|heartbeat|coordination service|unavailable", re.IGNORECASE)
_OTHERS_END = 10.0  # seconds in which processes that fail for one reason have all said so
_EXPLAINED = (ConfigError, DataError, CheckpointError, ResultsError, FloatingPointError, ImportError, OSError)


@contextlib.contextmanager
def explained(*, on_interrupt: str) -> Iterator[None]:
    """Exits with the message of an error that is meant for the user, or after Ctrl-C with its own, else `on_interrupt`.

    A run that was told to stop and saved what it had ends well: with status 0.
    """
    hook, sys.unraisablehook = sys.unraisablehook, _interrupt_again
    try:
        yield
    except Preempted as told:
        print(told, file=sys.stderr, flush=True)
        sys.exit(0)
    except KeyboardInterrupt as told:
        _end(str(told) or on_interrupt)
    except Exception as error:
        joined, told_by_runtime = jax.distributed.is_initialized(), CheckpointError | jax.errors.JaxRuntimeError
        if joined and isinstance(error, told_by_runtime) and _LOST.search(str(error)):
            _end_alone(error)
        if isinstance(error, _EXPLAINED):
            print(f"{type(error).__name__}: {error}", file=sys.stderr, flush=True)
        elif joined:
            traceback.print_exception(error)
        else:
            raise
        if isinstance(error, CheckpointError):
            # Reads that were under way beside one that failed end with tracebacks of their own, as late as at shutdown.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.__stderr__.fileno())
        _end(1)
    finally:
        sys.unraisablehook = hook


def _end(told: str | int) -> NoReturn:
    """Exits with status 1, after `told` if that is a text.

    A usual end of one of several processes waits minutes for the others, who may wait for what it was to send.
    """
    if not jax.distributed.is_initialized():
        sys.exit(told)
    if isinstance(told, str):
        print(told, file=sys.stderr)
    leaving = threading.Thread(target=jax.distributed.shutdown, daemon=True)
    leaving.start()
    leaving.join(_OTHERS_END)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(1)


def _end_alone(error: Exception) -> NoReturn:
    """Ends this process of several: a usual end waits for the others, and aborts when they do not come."""
    print(
        f"another process of this run has ended or cannot be reached ({str(error).splitlines()[0]}). What was saved is "
        "good: start all processes again, in any number that the batch divides by; they go on from the last checkpoint",
        file=sys.stderr,
    )
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(1)


def _interrupt_again(ignored: "sys.UnraisableHookArgs") -> None:
    """Ctrl-C that fell into a callback whose exceptions the interpreter ignores (JAX has one at every garbage
    collection) would be lost: the signal is sent again, a moment later, outside of it."""
    if not issubclass(ignored.exc_type, KeyboardInterrupt):
        return sys.__unraisablehook__(ignored)
    again = threading.Timer(0.01, os.kill, (os.getpid(), signal.SIGINT))
    again.daemon = True
    again.start()
