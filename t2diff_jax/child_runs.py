"""Commands that run as processes of their own and end with the one that started them."""

import contextlib
import signal
import subprocess
import threading
import types
from collections.abc import Iterator, Sequence
from typing import Any

from t2diff_jax.interrupt import Preempted


class ChildRuns:
    """Processes that hear of Ctrl-C, SIGTERM and SIGHUP from this one alone.

    They are in process groups of their own: what a terminal sends to its whole group reaches them as the SIGTERM of
    `stop`, at which a training run saves what it has.
    """

    def __init__(self) -> None:
        self._lock, self._running, self._stopping = threading.Lock(), set(), False

    def run(self, call: Sequence[str], **options: Any) -> int:
        """Runs a command to its end; its status as `subprocess` gives it. After `stop` none is started any more.

        options: of `subprocess.Popen`.
        """
        with self._lock:
            if self._stopping:
                return -signal.SIGTERM
            child = subprocess.Popen(call, process_group=0, **options)
            self._running.add(child)
        try:
            return child.wait()
        finally:
            with self._lock:
                self._running.discard(child)

    def stop(self, number: int = signal.SIGTERM) -> None:
        """Sends a signal to all that run."""
        with self._lock:
            self._stopping = True
            for child in self._running:
                child.send_signal(number)


@contextlib.contextmanager
def stopped_by_signals(message: str) -> Iterator[None]:
    """While entered, in the main thread, SIGTERM and SIGHUP raise `Preempted(message)`: each once, then never again."""

    def told(number: int, _frame: types.FrameType | None) -> None:
        signal.signal(number, signal.SIG_IGN)
        raise Preempted(message)

    numbers = [signal.SIGTERM, signal.SIGHUP]
    previous = {number: signal.signal(number, told) for number in numbers}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
