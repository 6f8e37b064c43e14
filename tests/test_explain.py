"""Errors for the user end a command with their message; Ctrl-C ends it wherever it falls."""

import gc
import os
import signal
import time

import pytest

from t2diff_jax.config import ConfigError
from t2diff_jax.explain import explained


def interrupt():
    os.kill(os.getpid(), signal.SIGINT)
    time.sleep(10)  # the interpreter raises here


def test_an_error_for_the_user_becomes_its_message(capsys):
    with pytest.raises(SystemExit) as stop, explained(on_interrupt="stopped"):
        raise ConfigError("no such key")
    assert stop.value.code == 1
    assert capsys.readouterr().err == "ConfigError: no such key\n"


def test_a_fault_of_the_program_keeps_its_traceback():
    with pytest.raises(ZeroDivisionError), explained(on_interrupt="stopped"):
        raise ZeroDivisionError


def test_ctrl_c_stops():
    with pytest.raises(SystemExit, match=r"^stopped$"), explained(on_interrupt="stopped"):
        interrupt()


def test_ctrl_c_inside_an_ignored_callback_stops():
    def callback(phase, info):
        gc.callbacks.remove(callback)
        interrupt()

    with pytest.raises(SystemExit, match=r"^stopped$"), explained(on_interrupt="stopped"):
        gc.callbacks.append(callback)
        gc.collect()
        time.sleep(10)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_other_ignored_exceptions_are_told_as_ever(capsys):
    def callback(phase, info):
        gc.callbacks.remove(callback)
        raise ZeroDivisionError("ignored")

    with explained(on_interrupt="stopped"):
        gc.callbacks.append(callback)
        gc.collect()
    assert "ZeroDivisionError: ignored" in capsys.readouterr().err
