"""Runs every benchmark and writes what they print as one table: OUT.json, a line per result, and OUT.md.

python benchmarks/run_all.py --out runs/benchmarks [--quick] [--data DIR of MovieLens 1M, for the training throughput]
"""

import argparse
import json
import os
import pathlib
import re
import subprocess
import sys
import time

from t2diff_jax.provenance import provenance

HERE = pathlib.Path(__file__).parent
# What each is told beside its defaults, and in place of these with --quick.
COMMANDS = {
    "startup.py": ([], []),
    "user_latency.py": ([], []),
    "user_latency.py --dim 64": ([], []),
    "models.py": ([], ["--small", "--models", "mind", "--rounds", "1"]),
    "scan.py": ([], ["--items", "100000", "--rounds", "2"]),
    "disk_scan.py": ([], ["--items", "2000000"]),
    "ingestion.py": ([], ["--rows", "2000000"]),
    "ingestion.py --kind csv": ([], ["--rows", "2000000"]),
    "softmax_crossover.py": ([], ["--items", "2000", "10000", "--rounds", "1"]),
    "accelerator.py": (
        ["--dims", "64", "--dtypes", "float32", "--batches", "8", "--size", "2048"],
        [
            "--dims",
            "64",
            "--dtypes",
            "float32",
            "--batches",
            "2",
            "--loop_steps",
            "0",
            "--users",
            "200",
            "--size",
            "256",
        ],
    ),
    "catalogue_size.py": ([], ["--items", "10000", "100000", "--dense", "10000", "--rounds", "2"]),
}
# Columns that say where, not what: the head of the table tells them once.
WHERE = ("device", "devices", "machine", "processor", "cores", "jax", "commit")


def results(command: str, arguments: list[str], data: str = "") -> list[dict]:
    """The JSON lines of one benchmark; ends with its error if it fails. data: folder that it reads, if it reads one."""
    script, *given = command.split()
    start = time.monotonic()
    root = HERE.parent
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(root), os.environ.get("PYTHONPATH", "")])}
    line = [sys.executable, str(HERE / script), *given, *arguments, *(["--data", data] if data else [])]
    done = subprocess.run(line, cwd=root, env=environment, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        sys.exit(f"{command} failed with status {done.returncode}")
    print(f"{command}: {time.monotonic() - start:.0f} s", flush=True)
    found = [json.loads(text) for text in done.stdout.splitlines() if text.startswith("{")]
    told = " ".join(["python", f"benchmarks/{script}", *given, *arguments]) + (" --data DIR" if data else "")
    return [{"command": told, **one} for one in found]


def here() -> dict[str, object]:
    """What all results share: processor, cores, commit."""
    origin, cpus = provenance(sys.argv), pathlib.Path("/proc/cpuinfo")
    models = re.findall(r"model name\s*: (.*)", cpus.read_text()) if cpus.exists() else []
    return {"processor": next(iter(models), "unknown"), **{name: origin[name] for name in ("cores", "commit")}}


def markdown(rows: list[dict]) -> str:
    """A table per command: a column per value, numbers to four digits."""
    known = {name: row[name] for row in rows for name in WHERE if name in row}
    parts = ["# Benchmarks", ", ".join(f"{name} {value}" for name, value in known.items())]
    for command in dict.fromkeys(row["command"] for row in rows):
        own = [row for row in rows if row["command"] == command]
        names = [n for n in dict.fromkeys(n for row in own for n in row) if n not in (*WHERE, "command", "benchmark")]
        lines = [names, ["---"] * len(names), *([_cell(row.get(name, "")) for name in names] for row in own)]
        parts.append(f"`{command}`\n\n" + "\n".join(f"| {' | '.join(line)} |" for line in lines))
    return "\n\n".join(parts) + "\n"


def _cell(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def main() -> None:
    """Runs them one after another: they share the machine's cores."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=pathlib.Path, required=True)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--data", default="")
    args = parser.parse_args()
    commands = [(name, arguments[args.quick], "") for name, arguments in COMMANDS.items()]
    commands += [("train_throughput.py", [], args.data)] if args.data else []
    where, rows = here(), []
    args.out.parent.mkdir(parents=True, exist_ok=True)
    for command in commands:
        rows += [{**row, **where} for row in results(*command)]
        args.out.with_suffix(".json").write_text("".join(json.dumps(row) + "\n" for row in rows))
        args.out.with_suffix(".md").write_text(markdown(rows))
    print(f"written to {args.out.with_suffix('.json')} and {args.out.with_suffix('.md')}")


if __name__ == "__main__":
    main()
