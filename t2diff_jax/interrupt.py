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
    signal.SIGINT: "\nstopping after this step{}; Ctrl-C again stops at once\n",
    signal.SIGTERM: "\nSIGTERM: stopping after this step{}\n",
}


class Preempted(Exception):  # noqa: N818, it is no error
    """The run ended because it was told to, with a checkpoint; the message names it."""


class StopRequest:
    """While entered, SIGTERM and the first Ctrl-C only make `asked` true; a second Ctrl-C raises where it falls.

    Where processes have joined, JAX's own runtime notes SIGTERM, tells all of them and finds the step that they stop
    before; Ctrl-C, of which one process may know alone, makes `check` raise. Outside of the main thread, which alone
    may handle signals, nothing is noted.
    """

    def __init__(self) -> None:
        self._asked: set[int] = set()
        self._asks = 0
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
        """Raises KeyboardInterrupt if Ctrl-C was pressed in a run of several processes, which cannot save for it."""
        if self.interrupted and jax.distributed.is_initialized():
            raise KeyboardInterrupt

    @property
    def interrupted(self) -> bool:
        """Whether Ctrl-C was pressed since the request was entered."""
        return signal.SIGINT in self._asked

    def asked(self) -> bool:
        """Whether the run is to end before this step. All processes must ask at every step, and get the same answer.

        JAX's runtime counts from 0: told the steps of a run that goes on from a later one, it would agree on one that
        is past, where SIGTERM comes before the first question.
        """
        self._asks += 1
        if jax.distributed.is_initialized():
            return multihost_utils.reached_preemption_sync_point(self._asks)
        return bool(self._asked)

    def _note(self, number: int, _frame: types.FrameType | None) -> None:
        self._asked.add(number)
        if number == signal.SIGINT:
            self._restore(number)
        saves = "" if jax.distributed.is_initialized() else ", with a checkpoint"
        os.write(2, _SAID[number].format(saves).encode())  # print is not safe where the signal may come amid a print

    def _restore(self, number: int) -> None:
        if number in self._previous:
            signal.signal(number, self._previous.pop(number))
