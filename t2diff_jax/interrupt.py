"""Ctrl-C during training: noted at once, obeyed between two steps.

Python raises KeyboardInterrupt wherever the program happens to be. Amid JAX's own code that can be swallowed (a garbage
collection's callback) or leave torn state behind, which has been seen to end in a segmentation fault.
"""

import os
import signal
import threading
import types
from typing import Any

_SAID = b"\nstopping after this step; Ctrl-C again stops at once\n"


class InterruptRequest:
    """While entered, the first Ctrl-C only makes `check` raise; a second one raises where it falls, as usual.

    Outside of the main thread, which alone may handle signals, it does nothing.
    """

    def __init__(self) -> None:
        self._asked = False
        self._previous: Any = None

    def __enter__(self) -> "InterruptRequest":
        if threading.current_thread() is threading.main_thread():
            self._previous = signal.signal(signal.SIGINT, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        self._restore()

    def check(self) -> None:
        """Raises KeyboardInterrupt if Ctrl-C was pressed since the request was entered."""
        if self._asked:
            raise KeyboardInterrupt

    def _note(self, _signal: int, _frame: types.FrameType | None) -> None:
        self._asked = True
        self._restore()
        os.write(2, _SAID)  # print is not safe where the signal may have come amid a print

    def _restore(self) -> None:
        if self._previous is not None:
            signal.signal(signal.SIGINT, self._previous)
            self._previous = None
