"""What asks a training run to stop, noted at once and obeyed between two steps: Ctrl-C, and SIGTERM before preemption.

Python raises KeyboardInterrupt wherever the program happens to be. Amid JAX's own code that can be swallowed (a garbage
collection's callback) or leave torn state behind, which has been seen to end in a segmentation fault.
"""

import os
import signal
import threading
import types
from typing import Any

import jax
from jax.experimental import multihost_utils

_SAID = {
    signal.SIGINT: b"\nstopping after this step; Ctrl-C again stops at once\n",
    signal.SIGTERM: b"\nSIGTERM: stopping after this step, with a checkpoint\n",
}


class Preempted(Exception):  # noqa: N818, it is no error
    """The run ended because it was told to, with a checkpoint; the message names it."""


class StopRequest:
    """While entered, the first Ctrl-C only makes `check` raise; a second one raises where it falls, as usual.

    SIGTERM only makes `preempted` true. Where processes have joined, JAX's own runtime notes it, tells all of them and
    finds the step that they stop before. Outside of the main thread, which alone may handle signals, it does nothing.
    """

    def __init__(self) -> None:
        self._asked: set[int] = set()
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> "StopRequest":
        if threading.current_thread() is threading.main_thread():
            noted = [signal.SIGINT] if jax.distributed.is_initialized() else [signal.SIGINT, signal.SIGTERM]
            self._previous = {number: signal.signal(number, self._note) for number in noted}
        return self

    def __exit__(self, *_: object) -> None:
        for number in list(self._previous):
            self._restore(number)

    def check(self) -> None:
        """Raises KeyboardInterrupt if Ctrl-C was pressed since the request was entered."""
        if signal.SIGINT in self._asked:
            raise KeyboardInterrupt

    def preempted(self, step: int) -> bool:
        """Whether the run is to end before this step. All processes must ask at every step, and get the same answer."""
        if jax.distributed.is_initialized():
            return multihost_utils.reached_preemption_sync_point(step)
        return signal.SIGTERM in self._asked

    def _note(self, number: int, _frame: types.FrameType | None) -> None:
        self._asked.add(number)
        if number == signal.SIGINT:
            self._restore(number)
        os.write(2, _SAID[number])  # print is not safe where the signal may have come amid a print

    def _restore(self, number: int) -> None:
        if number in self._previous:
            signal.signal(number, self._previous.pop(number))
