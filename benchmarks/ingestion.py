"""A raw log to a prepared one: rows a second and peak memory, beside bare reading of its files and the way in memory.

python benchmarks/ingestion.py [--rows 50000000] [--kind parquet] [--ways read "out of core" beam "in memory"]

Linux; takes 40 bytes a row in the folder for temporary files.

The log is made: users as many as KuaiRand-27K has, items of its 32 million by a heavy-tailed law. Each way is a process
of its own, so that its peak memory is its own; `peak_mb` of "nothing" is what the packages take. The reading goes over
the files once in the same blocks, and keeps nothing; preparing reads them twice. `kuairand_minutes` is `seconds` times
322 million over the rows: a straight line, not a measurement.
"""

import argparse
import json
import pathlib
import subprocess
import sys
import tempfile

import numpy as np
import polars as pl
from measure import emit

USERS, ITEMS, KUAIRAND_ROWS, PARTS = 27_285, 32_038_725, 322_278_385, 10
WAYS = ("nothing", "read", "out of core", "beam", "in memory")

CHILD = """
import json, pathlib, sys, time
from configs import base
from t2diff_jax.config_values import from_mapping
from t2diff_jax.data.preparation import prepare
from t2diff_jax.data.sources import load_log, open_parts

what, raw, out = sys.argv[1:4]
values = base.get_config()
values.data.update(source="table", path=raw, min_user_count=1)
config, start, rows = from_mapping(values), time.perf_counter(), 0
if what == "read":
    parts = open_parts(config.data)
    rows = sum(len(block.times) for file in parts.files for block in parts.read(file, config.prepare.block_rows))
elif what == "in memory":
    rows = len(load_log(config.data).items)
elif what != "nothing":
    said = lambda text: print(text, file=sys.stderr)
    options = [] if what == "beam" else None
    rows = len(prepare(config, pathlib.Path(out), said, beam_options=options, shared=None).items)
seconds = time.perf_counter() - start
peak = int(pathlib.Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) / 1024
print(json.dumps({"rows": rows, "seconds": seconds, "peak_mb": peak}))
"""


def make(folder: pathlib.Path, rows: int, kind: str) -> None:
    """Writes the log in parts."""
    draw = np.random.default_rng(0)
    for part in range(PARTS):
        n = rows * (part + 1) // PARTS - rows * part // PARTS
        items = (ITEMS * draw.random(n) ** 3).astype(np.int64)
        times = draw.integers(1_649_000_000, 1_652_000_000, n)
        frame = pl.DataFrame({"user_id": draw.integers(0, USERS, n), "item_id": items, "timestamp": times})
        getattr(frame, f"write_{kind}")(folder / f"part-{part:02}.{kind}")


def main() -> None:
    """One line per way."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=50_000_000)
    parser.add_argument("--kind", choices=("parquet", "csv"), default="parquet")
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=[way for way in WAYS if way != "beam"])
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        raw = pathlib.Path(folder) / "raw"
        raw.mkdir()
        make(raw, args.rows, args.kind)
        read = None  # seconds
        for what in args.ways:
            command = [sys.executable, "-c", CHILD, what, str(raw), str(pathlib.Path(folder) / what)]
            done = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)
            values = {"what": what, "kind": args.kind, "peak_mb": done["peak_mb"]}
            if what != "nothing":
                read = done["seconds"] if what == "read" else read
                rate = done["rows"] / done["seconds"]
                values |= {"rows": done["rows"], "seconds": done["seconds"], "rows_per_s": rate}
                values |= {"kuairand_minutes": KUAIRAND_ROWS / rate / 60}
                values |= {"ratio_to_reading": done["seconds"] / read} if read else {}
            emit("ingestion", **values)


if __name__ == "__main__":
    main()
