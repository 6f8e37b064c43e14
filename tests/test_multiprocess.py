"""Two processes with two devices each do what one process with four does."""

import contextlib
import re
import signal
import socket
import subprocess
import sys

import pytest
import tiny
from tiny import shared_compiles  # noqa: F401

pytestmark = pytest.mark.usefixtures("shared_compiles")
CASES = {
    # The batch is split over the processes; every process holds whole tables.
    "t2diff": ("--config.mesh.model=2", "--config.diffusion.filters=(8,)", "--config.eval.popularity=False"),
    # Table rows are split over the processes; every process makes the whole batch.
    "sasrec": ("--config.mesh.model=4", "--config.model.name=sasrec"),
}


def free_port():
    with contextlib.closing(socket.socket()) as probe:
        probe.bind(("localhost", 0))
        return probe.getsockname()[1]


def run_two(script, workdir, *flags):
    """Output of each process; both must succeed."""
    joined = ("--multihost", f"--coordinator=localhost:{free_port()}", "--processes=2")
    return both([tiny.arguments(script, workdir, *flags, *joined, f"--process={i}") for i in range(2)], patience=300)


def both(commands, patience):
    """Output of each; all must succeed. Where they hang for `patience` seconds, they say where they stand."""
    pipes = dict(stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    environment = tiny.environment(devices=2) | {"PYTHONFAULTHANDLER": "1"}
    running = [subprocess.Popen(command, cwd=tiny.ROOT, env=environment, **pipes) for command in commands]
    try:
        running[0].wait(timeout=patience)
    except subprocess.TimeoutExpired:
        for process in running:
            process.send_signal(signal.SIGABRT)
    try:
        done = [process.communicate(timeout=60) for process in running]
    finally:
        for process in running:
            process.kill()
    for process, (out, err) in zip(running, done, strict=True):
        assert process.returncode == 0, out + err
    return [out for out, _ in done]


MANY_PROGRAMS = """
import sys, jax, numpy as np
jax.distributed.initialize(sys.argv[1], 2, int(sys.argv[2]))
from t2diff_jax.config import MeshConfig
from t2diff_jax.sharding import batch_sharding, fetch_each, make_mesh, replicated
mesh = make_mesh(MeshConfig(data=-1, model=1))
total = jax.jit(lambda x: x.sum(), out_shardings=replicated(mesh))
rows = np.arange(64, dtype=np.float32)
put = lambda k: jax.make_array_from_callback(rows.shape, batch_sharding(mesh), lambda i: k + rows[i])
found = fetch_each(map(total, [put(k) for k in range(200)]))
print([int(x) for x in found] == [64 * k + 2016 for k in range(200)])
"""


def test_many_programs_at_once_do_not_wait_for_each_other():
    """As the batches of an evaluation and the digests of a checkpoint are; without `fetch_each` they hang."""
    address = f"localhost:{free_port()}"
    commands = [[sys.executable, "-c", MANY_PROGRAMS, address, str(i)] for i in range(2)]
    assert all("True" in out.splitlines() for out in both(commands, patience=120))


@pytest.mark.parametrize("name", CASES)
def test_two_processes_do_what_one_does(tmp_path, name):
    one, two = tmp_path / "one", tmp_path / "two"
    flags = (*CASES[name], "--config.train.steps=4")
    alone = tiny.succeed("train.py", one, *flags, devices=4)
    first, second = run_two("train.py", two, *flags)

    assert "4 cpu device(s), 2 process(es)" in first and "4 cpu device(s), 1 process(es)" in alone
    first, alone = (re.sub(r"[\d.]+ ms per user", "", text) for text in (first, alone))
    assert "step 4: validation" in first and first[first.index("test, ") :] in alone.replace(str(one), str(two))
    ours = [
        line for line in second.splitlines() if line.strip() and "peer ranks" not in line
    ]  # the runtime's own lines
    assert not [line for line in ours if "[Gloo]" not in line]

    lines, expected = tiny.metrics(two), tiny.metrics(one)
    assert [(line["step"], line["split"]) for line in lines] == [(2, "train"), (4, "train"), (4, "validation")]
    for line, known in zip(lines, expected, strict=True):
        assert line == pytest.approx(known, abs=1e-5)
    found, known = tiny.result(two), tiny.result(one)
    systems = [(found, known)] + ([(found["popularity"], known["popularity"])] if "popularity" in known else [])
    for system, reference in systems:
        for metric, value in reference["metrics"].items():
            assert system["metrics"][metric] == pytest.approx(value, abs=1e-5)
        assert system["coverage"] == pytest.approx(reference["coverage"], abs=1e-5)
    assert found["recall@20_by_popularity_decile"] == known["recall@20_by_popularity_decile"]

    assert len(list((two / "tensorboard").iterdir())) == 1  # only process 0 writes
    assert sorted(child.name for child in two.iterdir()) == sorted(child.name for child in one.iterdir())
