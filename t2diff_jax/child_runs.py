"""Commands that run as processes of their own and end with the one that started them."""

import contextlib
import signal
import subprocess
import threading
import types
from collections.abc import Iterator, Sequence
from typing import Any

from t2diff_jax.interrupt import Preempted

_STOPS = (signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)


class ChildRuns:
    """Processes that hear of Ctrl-C and of signals that end a command from this one alone (Ctrl-Z does not hold them).

    They are in process groups of their own: what a terminal sends to its whole group reaches them as the SIGTERM of
    `stop`, at which a training run saves what it has.
    """

    def __init__(self) -> None:
        self._lock, self._running, self._closed = threading.Lock(), set(), False

    def run(self, call: Sequence[str], head: str, **options: Any) -> int | None:
        """Prints `head` and runs a command to its end; its status as `subprocess` gives it.

        None: after `close` it is not started. options: of `subprocess.Popen`.
        """
        with self._lock:
            if self._closed:
                return None
            print(head, flush=True)
            child = subprocess.Popen(call, process_group=0, **options)
            self._running.add(child)
        try:
            return child.wait()
        finally:
            with self._lock:
                self._running.discard(child)

    @property
    def closed(self) -> bool:
        """Whether no more are started."""
        return self._closed

    def close(self) -> None:
        """From now on no more are started."""
        with self._lock:
            self._closed = True

    def stop(self, number: int = signal.SIGTERM) -> None:
        """Sends a signal to all that run; no more are started."""
        self.close()
        with self._lock:
            for child in self._running:
                child.send_signal(number)


@contextlib.contextmanager
def stopped_by_signals(message: str) -> Iterator[None]:
    """While entered, in the main thread, signals that end a command raise `Preempted(message)`, once; not Ctrl-C.

    What the command was started to ignore stays ignored (nohup).
    """
    heard = [number for number in _STOPS if signal.getsignal(number) not in (signal.SIG_IGN, None)]

    def told(_number: int, _frame: types.FrameType | None) -> None:
        for number in heard:  # a handler, since a process that is just being started would inherit SIG_IGN
            signal.signal(number, lambda *_: None)
        raise Preempted(message)

    previous = {number: signal.signal(number, told) for number in heard}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
