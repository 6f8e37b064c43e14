"""Where a run comes from, so that it can be repeated: command, commit, hardware, versions."""

import os
import pathlib
import platform
import shlex
import subprocess
from collections.abc import Sequence

import jax

# What of the environment changes numbers or programs; caches and addresses do not.
_NAMES = ("JAX_DEFAULT_MATMUL_PRECISION", "JAX_ENABLE_X64", "XLA_FLAGS", "LIBTPU_INIT_ARGS")


def provenance(argv: Sequence[str]) -> dict[str, str | int | None]:
    """What one needs to repeat a run.

    `commit` ends in "+" where tracked files differ from it; None without git, or where git does not track the package.
    """
    devices = jax.devices()
    return {
        "command": shlex.join(["python", pathlib.Path(argv[0]).name, *argv[1:]]),
        "environment": " ".join(f"{name}={shlex.quote(os.environ[name])}" for name in _NAMES if os.environ.get(name)),
        "commit": _commit(pathlib.Path(__file__)),
        "device": devices[0].device_kind,
        "devices": len(devices),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "processes": jax.process_count(),
        "jax": jax.__version__,
        "python": platform.python_version(),
    }


def _commit(file: pathlib.Path) -> str | None:
    def git(*args: str) -> str:
        command = ["git", "-C", file.parent, *args]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    try:
        git("ls-files", "--error-unmatch", file.name)  # an installed package may lie in a repository of something else
        return git("rev-parse", "--short", "HEAD") + ("+" if git("status", "--porcelain", "-uno") else "")
    except (OSError, subprocess.CalledProcessError):
        return None
