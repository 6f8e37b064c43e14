"""Ctrl-C is obeyed at a check; a second one at once; afterwards everything is as it was."""

import os
import signal
import threading
import time

import pytest

from t2diff_jax.interrupt import InterruptRequest


def interrupt():
    os.kill(os.getpid(), signal.SIGINT)
    time.sleep(0.01)  # the interpreter runs the handler here


def test_without_ctrl_c_a_check_does_nothing():
    with InterruptRequest() as request:
        request.check()


def test_the_first_is_obeyed_at_the_next_check(capfd):
    with InterruptRequest() as request:
        interrupt()
        assert "stopping after this step" in capfd.readouterr().err
        with pytest.raises(KeyboardInterrupt):
            request.check()


def test_the_second_is_obeyed_at_once():
    with InterruptRequest():
        interrupt()
        with pytest.raises(KeyboardInterrupt):
            interrupt()


def test_the_handler_is_the_old_one_again():
    before = signal.getsignal(signal.SIGINT)
    with InterruptRequest():
        assert signal.getsignal(signal.SIGINT) is not before
    assert signal.getsignal(signal.SIGINT) is before
    with pytest.raises(ZeroDivisionError), InterruptRequest():
        raise ZeroDivisionError
    assert signal.getsignal(signal.SIGINT) is before


def test_another_thread_may_train():
    before, seen = signal.getsignal(signal.SIGINT), []

    def train():
        with InterruptRequest() as request:
            request.check()
            seen.append(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=train)
    thread.start()
    thread.join()
    assert seen == [before]
