"""Errors for the user end a command with their message; Ctrl-C ends it wherever it falls."""

import gc
import os
import signal
import time

import jax
import pytest

from t2diff_jax import explain
from t2diff_jax.config_values import ConfigError
from t2diff_jax.data.log import DataError
from t2diff_jax.explain import explained
from t2diff_jax.interrupt import Preempted


def interrupt():
    os.kill(os.getpid(), signal.SIGINT)
    time.sleep(10)  # the interpreter raises here


@pytest.mark.parametrize("kind", [ConfigError, DataError, FloatingPointError, ImportError, OSError])
def test_an_error_for_the_user_becomes_its_message(capsys, kind):
    with pytest.raises(SystemExit) as stop, explained(on_interrupt="stopped"):
        raise kind("no such thing")
    assert stop.value.code == 1
    assert capsys.readouterr().err == f"{kind.__name__}: no such thing\n"


def test_a_fault_of_the_program_keeps_its_traceback():
    with pytest.raises(ZeroDivisionError), explained(on_interrupt="stopped"):
        raise ZeroDivisionError


def test_a_run_that_saved_when_told_to_stop_ends_well(capsys):
    with pytest.raises(SystemExit) as stop, explained(on_interrupt="stopped"):
        raise Preempted("step 3 is saved")
    assert stop.value.code == 0 and capsys.readouterr().err == "step 3 is saved\n"


def test_only_among_several_processes_is_a_lost_one_explained():
    with pytest.raises(jax.errors.JaxRuntimeError), explained(on_interrupt="stopped"):
        raise jax.errors.JaxRuntimeError("Gloo AllGather failed: Connection closed by peer")


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


@pytest.fixture
def joined(monkeypatch):
    """As among several processes of which none comes to the end; what ends this one is raised in place of it."""

    class EndedError(BaseException):
        pass

    def end(status):
        raise EndedError(status)

    monkeypatch.setattr(jax.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(jax.distributed, "shutdown", lambda: time.sleep(60))
    monkeypatch.setattr(explain, "_OTHERS_END", 0.1)
    monkeypatch.setattr(os, "_exit", end)
    return EndedError


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (OSError("disk full"), "OSError: disk full\n"),
        (KeyboardInterrupt(), "stopped\n"),
        (ZeroDivisionError("a fault"), "ZeroDivisionError: a fault\n"),
    ],
)
def test_one_of_several_processes_that_fails_does_not_wait_for_the_others(joined, capsys, error, told):
    with pytest.raises(joined, match="1"), explained(on_interrupt="stopped"):
        raise error
    assert capsys.readouterr().err.endswith(told)
