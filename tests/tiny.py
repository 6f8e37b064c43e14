"""A tiny run: its configuration (this file is also a --config), its command line, and what it leaves behind."""

import dataclasses
import json
import os
import pathlib
import subprocess
import sys

import jax
import numpy as np
import pytest
from jax.sharding import AxisType, Mesh

from configs import base
from t2diff_jax import experiment as experiment_lib
from t2diff_jax.config import Config
from t2diff_jax.config_values import as_computed, from_mapping
from t2diff_jax.models import build_retriever
from t2diff_jax.sharding import put_catalogue

ROOT = pathlib.Path(__file__).parents[1]
CONFIG = "tests/tiny.py"


def get_config():
    """The base configuration at a size that trains a step in milliseconds."""
    config = base.get_config()
    config.data.synthetic.update(n_users=80, n_items=50, categories=4, mean_length=16)
    config.data.update(window=12, first_target=6, test_users=0.3, validation_users=0.3)
    config.model.update(dim=8, category_dim=2, content_dim=2, user_feature_dim=2, session_length=4)
    config.model.update(layers=1, hidden=16, activation_hidden=8)
    config.diffusion.update(steps=6, filters=(8,), step_dim=8)
    config.optim.update(warmup=2, decay="constant")
    config.train.update(steps=8, batch_size=16, log_every=2, eval_every=4, checkpoint_every=2)
    config.eval.update(batch_size=16, ks=(5, 10), noise_keys=2, block=16)
    return config


def tiny(**changes: object) -> Config:
    """The tiny configuration; `model__dim=16` sets a nested key."""
    config = get_config()
    for name, value in changes.items():
        *sections, key = name.split("__")
        section = config
        for part in sections:
            section = section[part]
        section[key] = value
    return from_mapping(config)


def build(mesh: tuple[int, int] | None = None, **changes: object) -> experiment_lib.Experiment:
    """The parts of a tiny run, over the first data x model devices of `mesh`, or over all of them."""
    built = experiment_lib.build(tiny(**changes))
    if mesh is None:
        return built
    devices = jax.devices()[: mesh[0] * mesh[1]]
    small: Mesh = jax.make_mesh(mesh, ("data", "model"), axis_types=(AxisType.Auto,) * 2, devices=devices)
    retriever = build_retriever(as_computed(built.config, "cpu", small.size), built.retriever.sizes)
    catalogue = put_catalogue(small, jax.device_get(built.catalogue))
    return dataclasses.replace(built, mesh=small, catalogue=catalogue, retriever=retriever)


@pytest.fixture(scope="module")
def shared_compiles(tmp_path_factory):
    """The commands of a test file compile each program once."""
    names = {
        "JAX_COMPILATION_CACHE_DIR": str(tmp_path_factory.mktemp("cache")),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }
    with pytest.MonkeyPatch.context() as patch:
        for name, value in names.items():
            patch.setenv(name, value)
        yield


def host(tree: object) -> dict[str, np.ndarray]:
    """The leaves of a tree by name, copied to the host."""
    leaves = jax.tree_util.tree_leaves_with_path(jax.device_get(tree))
    return {jax.tree_util.keystr(path): np.array(leaf) for path, leaf in leaves}


def assert_same_bits(a: object, b: object) -> None:
    """Two trees hold the same arrays, bit by bit."""
    a, b = host(a), host(b)
    assert list(a) == list(b)
    different = [name for name in a if (a[name].dtype, a[name].tobytes()) != (b[name].dtype, b[name].tobytes())]
    assert not different, different


def assert_close(a: object, b: object, *, atol: float = 1e-5, rtol: float = 0) -> None:
    """Two trees hold the same arrays to `atol` and `rtol`."""
    a, b = host(a), host(b)
    assert list(a) == list(b)
    for name in a:
        np.testing.assert_allclose(a[name], b[name], atol=atol, rtol=rtol, err_msg=name)


def arguments(script: str, workdir: object, *flags: str, config: str | None = CONFIG) -> list[str]:
    """The command line of `train.py` or `eval.py`; config None: it names none."""
    named = [] if config is None else ["--config", config]
    return [sys.executable, script, *named, "--workdir", str(workdir), *flags]


def environment(devices: int = 1) -> dict[str, str]:
    """The environment of a command that sees so many CPU devices."""
    flags = f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count={devices}"  # the last word counts
    return {**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags}


def command(script: str, workdir: object, *flags: str, config: str | None = CONFIG, devices: int = 1):
    """Runs a command to its end, in the repository: returncode, stdout, stderr."""
    args = arguments(script, workdir, *flags, config=config)
    return subprocess.run(args, cwd=ROOT, env=environment(devices), capture_output=True, text=True, timeout=300)


def succeed(script: str, workdir: object, *flags: str, config: str | None = CONFIG, devices: int = 1) -> str:
    """Runs a command that must succeed; its output."""
    done = command(script, workdir, *flags, config=config, devices=devices)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def metrics(workdir: pathlib.Path) -> list[dict]:
    """The lines of metrics.jsonl without how fast they came."""
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if name != "examples_per_s"} for line in lines]


def result(workdir: pathlib.Path) -> dict:
    """What eval.json holds, but times."""
    result = json.loads((workdir / "eval.json").read_text())
    assert result.pop("milliseconds_per_user") > 0
    return result


def snapshot(folder: pathlib.Path) -> dict[str, bytes]:
    """Every file below a folder with its bytes."""
    return {str(file.relative_to(folder)): file.read_bytes() for file in sorted(folder.rglob("*")) if file.is_file()}
