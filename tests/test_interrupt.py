"""Ctrl-C and SIGTERM are obeyed when asked for, a second Ctrl-C at once; afterwards everything is as it was."""

import os
import signal
import threading
import time

import jax
import pytest
from jax.experimental import multihost_utils

from t2diff_jax.interrupt import StopRequest


def interrupt(number=signal.SIGINT):
    os.kill(os.getpid(), number)
    time.sleep(0.01)  # the interpreter runs the handler here


def test_unless_asked_a_run_goes_on():
    with StopRequest() as request:
        request.check()
        assert not request.interrupted and not request.asked()


def test_the_first_is_noted_until_it_is_asked_for(capfd, monkeypatch):
    with StopRequest() as request:
        interrupt()
        assert "stopping after this step, with a checkpoint" in capfd.readouterr().err
        request.check()
        assert request.interrupted and request.asked()
        monkeypatch.setattr(jax.distributed, "is_initialized", lambda: True)
        with pytest.raises(KeyboardInterrupt):  # the other processes may know nothing of it
            request.check()


def test_the_second_is_obeyed_at_once():
    with StopRequest():
        interrupt()
        with pytest.raises(KeyboardInterrupt):
            interrupt()


def test_sigterm_is_noted_until_it_is_asked_for(capfd):
    with StopRequest() as request:
        assert not request.asked()
        interrupt(signal.SIGTERM)
        assert "stopping after this step, with a checkpoint" in capfd.readouterr().err
        request.check()
        interrupt(signal.SIGTERM)  # schedulers repeat themselves
        assert request.asked() and request.asked() and not request.interrupted


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


def test_processes_count_their_questions_from_one(monkeypatch):
    """So that a SIGTERM before the first of them is obeyed, at whatever step the run goes on."""
    counts = []
    monkeypatch.setattr(jax.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(multihost_utils, "reached_preemption_sync_point", lambda n: bool(counts.append(n)) or n == 2)
    with StopRequest() as request:
        assert not request.asked() and request.asked()
    assert counts == [1, 2]
