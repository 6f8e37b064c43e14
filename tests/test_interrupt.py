"""Ctrl-C is obeyed at a check, a second one at once; SIGTERM when asked for; afterwards everything is as it was."""

import os
import signal
import threading
import time

import pytest

from t2diff_jax.interrupt import StopRequest


def interrupt(number=signal.SIGINT):
    os.kill(os.getpid(), number)
    time.sleep(0.01)  # the interpreter runs the handler here


def test_without_ctrl_c_a_check_does_nothing():
    with StopRequest() as request:
        request.check()


def test_the_first_is_obeyed_at_the_next_check(capfd):
    with StopRequest() as request:
        interrupt()
        assert "stopping after this step" in capfd.readouterr().err
        with pytest.raises(KeyboardInterrupt):
            request.check()


def test_the_second_is_obeyed_at_once():
    with StopRequest():
        interrupt()
        with pytest.raises(KeyboardInterrupt):
            interrupt()


def test_sigterm_is_noted_until_it_is_asked_for(capfd):
    with StopRequest() as request:
        assert not request.preempted(1)
        interrupt(signal.SIGTERM)
        assert "stopping after this step, with a checkpoint" in capfd.readouterr().err
        request.check()
        interrupt(signal.SIGTERM)  # schedulers repeat themselves
        assert request.preempted(2) and request.preempted(3)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_handler_is_the_old_one_again(number):
    before = signal.getsignal(number)
    with StopRequest():
        assert signal.getsignal(number) is not before
    assert signal.getsignal(number) is before
    with pytest.raises(ZeroDivisionError), StopRequest():
        raise ZeroDivisionError
    assert signal.getsignal(number) is before


def test_another_thread_may_train():
    before, seen = signal.getsignal(signal.SIGINT), []

    def train():
        with StopRequest() as request:
            request.check()
            seen.append(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=train)
    thread.start()
    thread.join()
    assert seen == [before]
