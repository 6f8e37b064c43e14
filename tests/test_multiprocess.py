"""Two processes with two devices each do what one process with four does."""

import contextlib
import re
import shutil
import signal
import socket
import subprocess
import sys
import time

import pytest
import tiny
from tiny import shared_compiles  # noqa: F401

pytestmark = pytest.mark.usefixtures("shared_compiles")
CASES = {
    # The batch is split over the processes; every process holds whole tables.
    "t2diff": ("--config.mesh.model=2", "--config.eval.popularity=False"),
    # Table rows are split over the processes; every process makes the whole batch.
    "sasrec": ("--config.mesh.model=4", "--config.model.name=sasrec"),
}


def free_port():
    with contextlib.closing(socket.socket()) as probe:
        probe.bind(("localhost", 0))
        return probe.getsockname()[1]


def commands(script, workdir, *flags, processes=2):
    """The command line of each process of a run."""
    joined = ("--multihost", f"--coordinator=localhost:{free_port()}", f"--processes={processes}")
    return [tiny.arguments(script, workdir, *flags, *joined, f"--process={i}") for i in range(processes)]


def start(lines, devices=2):
    """The commands, all running."""
    pipes = dict(stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    environment = tiny.environment(devices) | {"PYTHONFAULTHANDLER": "1"}
    return [subprocess.Popen(line, cwd=tiny.ROOT, env=environment, **pipes) for line in lines]


def succeed(lines, devices=2, patience=300):
    """Output of each; all must succeed. Where they hang for `patience` seconds, they say where they stand."""
    running = start(lines, devices)
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
    lines = [[sys.executable, "-c", MANY_PROGRAMS, address, str(i)] for i in range(2)]
    assert all("True" in out.splitlines() for out in succeed(lines, patience=120))


SCATTERED = """
import sys, jax, numpy as np
jax.distributed.initialize(sys.argv[1], 2, int(sys.argv[2]))
from t2diff_jax.config import MeshConfig
from t2diff_jax.sharding import make_mesh, process_rows, put_batch, to_host
mesh = make_mesh(MeshConfig(data=-1, model=1), [jax.devices()[i] for i in (0, 2, 3, 1)])
whole = {"history": np.arange(24).reshape(12, 2), "weight": np.arange(12.0)}
rows = process_rows(mesh, 12)
batch = put_batch(mesh, {name: value[rows] for name, value in whole.items()}, 12)
print(f"rows {rows.tolist()}", all((to_host(mesh, batch[name]) == whole[name]).all() for name in whole))
"""


def test_a_process_makes_the_rows_of_its_devices_wherever_they_lie():
    """On a TPU slice the devices of a host are no neighbours along the mesh."""
    address = f"localhost:{free_port()}"
    first, second = succeed([[sys.executable, "-c", SCATTERED, address, str(i)] for i in range(2)], patience=120)
    assert "rows [0, 1, 2, 9, 10, 11] True" in first and "rows [3, 4, 5, 6, 7, 8] True" in second


@pytest.mark.parametrize("name", CASES)
def test_two_processes_do_what_one_does(tmp_path, name):
    one, two = tmp_path / "one", tmp_path / "two"
    flags = (*CASES[name], "--config.train.steps=4")
    alone = tiny.succeed("train.py", one, *flags, devices=4)
    first, second = succeed(commands("train.py", two, *flags))

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


# How processes end, and what they leave, does not depend on the model.
FLAGS = ("--config.model.name=sasrec", "--config.train.checkpoint_every=1000000", "--config.train.eval_every=1000000")


@pytest.fixture(scope="module")
def two_steps(tmp_path_factory):
    """A workdir that has saved step 2."""
    workdir = tmp_path_factory.mktemp("runs") / "two_steps"
    tiny.succeed("train.py", workdir, *FLAGS, "--config.train.steps=2", "--config.eval.popularity=False", devices=4)
    return workdir


@pytest.fixture
def two_that_train(tmp_path, two_steps):
    """Two processes that go on from there for long, without another checkpoint."""
    workdir = tmp_path / "run"
    shutil.copytree(two_steps, workdir)
    before = len(tiny.metrics(workdir))
    running = start(commands("train.py", workdir, *FLAGS, "--heartbeat=20", "--config.train.steps=1000000"))
    deadline = time.monotonic() + 300
    while len(tiny.metrics(workdir)) < before + 3 and time.monotonic() < deadline:
        assert all(process.poll() is None for process in running), running[0].communicate()
        time.sleep(0.05)
    yield workdir, running
    for process in running:
        process.kill()
        process.communicate()


def saved(workdir):
    return sorted(int(child.name) for child in (workdir / "checkpoints").iterdir())


def test_sigterm_to_one_ends_all_with_one_checkpoint(two_that_train):
    """With status 0, before the same step; one process with as many devices goes on from there.

    Before it comes, two others that start in the same workdir end both with a message.
    """
    workdir, running = two_that_train
    others = start(commands("train.py", workdir, *FLAGS, "--heartbeat=20", "--config.train.steps=1000000"))
    told = [process.communicate(timeout=300)[1] for process in others]
    assert [process.returncode for process in others] == [1, 1], told
    assert f"in use by another training (process {running[0].pid} on " in told[0] and "process 0 says which" in told[1]
    running[1].send_signal(signal.SIGTERM)
    told = [process.communicate(timeout=300)[1] for process in running]
    assert [process.returncode for process in running] == [0, 0], told
    assert saved(workdir)[0] == 2 and len(saved(workdir)) == 2
    last = saved(workdir)[-1]
    assert all(f"stopped by SIGTERM; step {last} is saved" in text for text in told)
    more = f"--config.train.steps={last + 2}"
    assert f"resuming from step {last}" in tiny.succeed("train.py", workdir, *FLAGS, more, devices=4)
    assert saved(workdir)[-1] == last + 2


def test_one_that_is_killed_ends_all_with_a_message(two_that_train):
    """Nothing that was saved is lost: four processes, another number, go on from it."""
    workdir, running = two_that_train
    running[1].kill()
    told = running[0].communicate(timeout=300)[1]
    assert running[0].returncode not in (0, None)
    # Once in many times the CPU's collectives abort in their own code, before any of ours learns of it.
    assert re.search("another process of this run has ended|another task died|gloo::EnforceNotMet", told), told
    assert saved(workdir) == [2]
    lines = commands("train.py", workdir, *FLAGS, "--config.train.steps=4", processes=4)
    outputs = succeed(lines, devices=1)
    assert "resuming from step 2" in outputs[0] and saved(workdir) == [2, 4]


def test_who_names_a_coordinator_joins_it(tmp_path):
    done = tiny.command("train.py", tmp_path / "run", "--coordinator=localhost:1234", "--processes=2", "--process=0")
    assert done.returncode == 1 and "need --multihost" in done.stderr and not (tmp_path / "run").exists()
