"""Benchmarks run: they are not timed here, but what they print can be read and nothing in them has gone stale."""

import ast
import importlib.util
import json
import os
import subprocess
import sys

import jax
import pytest
import tiny
from tiny import shared_compiles  # noqa: F401

pytestmark = pytest.mark.usefixtures("shared_compiles")

SMALL = {
    "disk_scan.py": "--items 3000 --users 8 --k 5 --rows 1000 --block 512",
    "ingestion.py": "--rows 2000 --kind csv",
    "softmax_crossover.py": "--config quickstart --items 300 --batch 2 --negatives 16 --rounds 1",
    "scan.py": "--items 2000 --users 8 --k 5 --block 512 --rounds 1 --size 64",
    "models.py": "--small --models mind --rounds 1 --users 4",
    "catalogue_size.py": "--items 500 --dense 500 --batch 8 --negatives 16 --rounds 1",
}


@pytest.mark.parametrize("script", SMALL)
def test_a_benchmark_prints_its_results(script):
    environment = {**tiny.environment(), "PYTHONPATH": os.pathsep.join([str(tiny.ROOT), str(tiny.ROOT / "benchmarks")])}
    line = [sys.executable, f"benchmarks/{script}", *SMALL[script].split()]
    done = subprocess.run(line, cwd=tiny.ROOT, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    rows = [json.loads(text) for text in done.stdout.splitlines()]
    assert rows and all(row["benchmark"] == script.removesuffix(".py") for row in rows)
    exact = [row for row in rows if row.get("what") == "top k, float32"]
    assert all(row["found"] == 1 for row in exact)


@pytest.mark.parametrize("script", sorted(path.name for path in (tiny.ROOT / "benchmarks").glob("*.py")))
def test_what_a_benchmark_imports_is_there(script):
    """Also in the code that it hands to processes of its own, as a string."""
    tree = ast.parse((tiny.ROOT / "benchmarks" / script).read_text())
    children = [n.value for n in ast.walk(tree) if isinstance(n, ast.Constant) and "\nimport " in str(n.value)]
    for part in (tree, *map(ast.parse, children)):
        for node in ast.walk(part):
            if isinstance(node, ast.ImportFrom) and node.module.split(".")[0] in ("t2diff_jax", "configs"):
                for alias in node.names:
                    names = f"{node.module}.{alias.name}"
                    assert hasattr(importlib.import_module(node.module), alias.name) or importlib.util.find_spec(names)


def test_one_table_of_all(tmp_path):
    sys.path.insert(0, str(tiny.ROOT / "benchmarks"))
    import run_all as benchmarks

    rows = [
        {
            "command": "python a.py",
            "benchmark": "a",
            "device": "cpu",
            "devices": 1,
            "machine": "x",
            "jax": "1",
            **values,
        }
        for values in ({"items": 10, "ms": 1.23456}, {"items": 20, "ms": 2.0, "ratio": 1.6})
    ]
    text = benchmarks.markdown(rows)
    assert "device cpu, devices 1" in text and "| items | ms | ratio |" in text
    assert "| 10 | 1.235 |  |" in text and "| 20 | 2 | 1.6 |" in text


def test_device_time_counts_what_overlaps_once():
    sys.path.insert(0, str(tiny.ROOT / "benchmarks"))
    import kernels

    assert kernels._union([(0, 2), (1, 3), (5, 6), (5.5, 5.7)]) == 4
    assert kernels.device_time(lambda: jax.numpy.ones(3), calls=1) == {}  # a CPU's profile has no device of its own
