"""The top 100 of a batch from a table in a file, read in blocks: seconds and memory, beside bare reading of the file.

python benchmarks/disk_scan.py [--items 32038725] [--dim 64] [--users 256] [--folder DIR]

Linux. The file (8.2 GB of float32 at the defaults) is made first, in the folder or that for temporary files. `cold`
says whether the file was told out of the page cache before; `memory_gb` is what this process had at most of its own,
without pages of the file. `ratio_to_product`: to the products alone, of as many rows that are in memory.
"""

import argparse
import os
import pathlib
import tempfile
import time

import jax
import jax.numpy as jnp
import numpy as np
from measure import emit, seconds

from t2diff_jax.retrieval import Users
from t2diff_jax.search import top_k_from_disk


def make(path: pathlib.Path, items: int, dim: int) -> None:
    """Writes a table of unit normals, repeated every million rows with another sign and scale: drawing takes long."""
    draw = np.random.default_rng(0).normal(size=(1_000_000, dim)).astype(np.float32)
    scales = np.random.default_rng(1).uniform(-1, 1, items // len(draw) + 1).astype(np.float32)
    table = np.lib.format.open_memmap(path, mode="w+", dtype=np.float32, shape=(items + 1, dim))
    for number, scale in enumerate(scales):
        rows = table[number * len(draw) : (number + 1) * len(draw)]
        rows[:] = draw[: len(rows)] * scale
    table.flush()


def forget(path: pathlib.Path) -> None:
    """Tells the file out of the page cache."""
    with open(path, "rb") as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def read(path: pathlib.Path, lot: int) -> float:
    """Seconds to read the whole file into memory, a lot of bytes at a time."""
    start, buffer = time.perf_counter(), bytearray(lot)
    with open(path, "rb", buffering=0) as file:
        while file.readinto(buffer):
            pass
    return time.perf_counter() - start


def own_memory() -> float:
    """GB of this process that are not pages of files."""
    status = pathlib.Path("/proc/self/status").read_text()
    return int(status.split("RssAnon:")[1].split()[0]) / 2**20


def main() -> None:
    """One line with a cold file, one with what the cache then holds of it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--items", type=int, default=32_038_725)
    parser.add_argument("--dim", type=int, default=64)
    parser.add_argument("--users", type=int, default=256)
    parser.add_argument("--k", type=int, default=100)
    parser.add_argument("--rows", type=int, default=1_000_000, help="read at a time")
    parser.add_argument("--block", type=int, default=4096, help="scored at a time")
    parser.add_argument("--folder", default=None)
    args = parser.parse_args()
    queries = np.random.default_rng(2).normal(size=(args.users, 1, args.dim)).astype(np.float32)
    users = Users(jnp.asarray(queries), jnp.ones((args.users, 1), bool), None)
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        path = pathlib.Path(folder) / "items.npy"
        make(path, args.items, args.dim)
        table = np.load(path, mmap_mode="r")
        rows = min(args.rows, len(table))
        product = jax.jit(lambda u, t: jnp.einsum("bu,nu->bn", u, t, precision="highest").max())
        lot = [jnp.asarray(part) for part in np.split(np.array(table[: rows // 10 * 10]), 10)]  # whose scores fit
        bare = seconds(lambda: [product(queries[:, 0], part) for part in lot], repeats=3)["min"] * len(table) / rows
        top_k_from_disk(users, table[:rows], args.k, merge="max", rows=rows, block=args.block)  # compiles
        for cold in (True, False):
            times = {}
            for what, call in (("reading", lambda: read(path, 1 << 26)), ("search", None)):
                if cold:
                    forget(path)
                start = time.perf_counter()
                if call is None:
                    search = dict(merge="max", rows=rows, block=args.block)
                    top_k_from_disk(users, table, args.k, **search)
                    times[what] = time.perf_counter() - start
                else:
                    times[what] = call()
            sizes = dict(items=args.items, dim=args.dim, users=args.users, k=args.k, table_gb=table.nbytes / 2**30)
            result = {"s": times["search"], "users_per_s": args.users / times["search"], "memory_gb": own_memory()}
            result |= {
                f"ratio_to_{name}": times["search"] / t
                for name, t in (("reading", times["reading"]), ("product", bare))
            }
            emit("disk_scan", cold=cold, **sizes, **result)


if __name__ == "__main__":
    main()
