"""Where a run comes from, so that it can be repeated: command, commit, hardware, versions."""

import os
import pathlib
import platform
import shlex
import subprocess
from collections.abc import Sequence

import jax


def provenance(argv: Sequence[str]) -> dict[str, str | int | None]:
    """What one needs to repeat a run; `commit` ends in "+" where tracked files differ from it, None without git."""
    devices = jax.devices()
    return {
        "command": shlex.join(["python", pathlib.Path(argv[0]).name, *argv[1:]]),
        "commit": _commit(pathlib.Path(__file__).parent),
        "device": devices[0].device_kind,
        "devices": len(devices),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "processes": jax.process_count(),
        "jax": jax.__version__,
        "python": platform.python_version(),
    }


def _commit(folder: pathlib.Path) -> str | None:
    def git(*args: str) -> str:
        return subprocess.run(["git", "-C", folder, *args], capture_output=True, text=True, check=True).stdout.strip()

    try:
        return git("rev-parse", "--short", "HEAD") + ("+" if git("status", "--porcelain", "-uno") else "")
    except (OSError, subprocess.CalledProcessError):
        return None
