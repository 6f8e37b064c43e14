"""The full-table scan: ranks and top 100 of a batch, beside the bare product and faiss's exact flat index, in turns.

python benchmarks/scan.py [--items 1000000] [--dim 64] [--users 256] [--k 100]     (faiss: pip install faiss-cpu)

`ratio_to_product`: to the products of all users and items alone, in the same blocks, of which only the maximum is kept.
`memory_mb`: arguments and temporaries of the compiled program; the table has `table_mb`. `found`: share of the true top
k that a search at less precision finds. `bound_ms`: what the products take at the measured ceiling of their precision,
or the reading of the table at that of copies, whichever is longer.
"""

import argparse
import functools
import importlib.util
import statistics
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from ceilings import ceilings
from measure import emit

from t2diff_jax.retrieval import BlockedTable, Users, block_table, score_targets
from t2diff_jax.search import top_k


def product(users: Users, table: BlockedTable) -> jax.Array:
    """The greatest score of every user: the products and the least that can be done with them."""

    def block(best: jax.Array, vectors: jax.Array) -> tuple[jax.Array, None]:
        scores = jnp.einsum("bu,nu->bn", users.vectors[:, 0], vectors[0], precision=jax.lax.Precision.HIGHEST)
        return jnp.maximum(best, scores.max(axis=1)), None

    return jax.lax.scan(block, jnp.full(len(users.vectors), -jnp.inf), table.blocks)[0]


def in_turns(calls: dict[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Median seconds of each, all called once a round."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    for turn in range(rounds + 1):
        for name, call in calls.items():
            start = time.perf_counter()
            jax.block_until_ready(call())
            if turn:  # the first is to warm up
                times[name].append(time.perf_counter() - start)
    return {name: statistics.median(found) for name, found in times.items()}


def main() -> None:
    """Measures and prints one line per way of scanning."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--items", type=int, default=1_000_000)
    parser.add_argument("--dim", type=int, default=64)
    parser.add_argument("--users", type=int, default=256)
    parser.add_argument("--k", type=int, default=100)
    parser.add_argument("--block", type=int, default=4096)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--size", type=int, default=2048, help="of the products that measure the ceilings")
    args = parser.parse_args()
    keys = jax.random.split(jax.random.key(0))
    vectors = jax.random.normal(keys[0], (args.items + 1, args.dim))
    queries = jax.random.normal(keys[1], (args.users, args.dim))
    users, most = Users(queries[:, None], jnp.ones((args.users, 1), bool), None), ceilings(args.size, args.size // 4)
    targets = jnp.arange(1, args.users + 1)

    def ranks(users: Users, table: BlockedTable) -> tuple[jax.Array, jax.Array]:
        return score_targets(users, table, targets, table.rows(targets), merge="max")

    def best(users: Users, table: BlockedTable, found: float = 1.0) -> tuple[jax.Array, jax.Array]:
        return top_k(users, table, args.k, merge="max", found=found)

    cut = jax.jit(block_table, static_argnums=(1, 2), static_argnames="search")
    tables = {search: cut(vectors, args.items, args.block, search=search) for search in ("float32", "bfloat16", "int8")}
    programs = {"product": (product, "float32"), "ranks": (lambda *args: ranks(*args)[0], "float32")}
    programs |= {"ranks and log loss": (ranks, "float32")}
    programs |= {f"top k, {search}": (best, search) for search in tables}
    programs |= {"top k, float32, recall .95": (functools.partial(best, found=0.95), "float32")}
    compiled = {name: jax.jit(f).lower(users, tables[search]).compile() for name, (f, search) in programs.items()}
    calls = {name: lambda f=compiled[name], t=tables[search]: f(users, t) for name, (_, search) in programs.items()}
    if importlib.util.find_spec("faiss"):
        import faiss

        index = faiss.IndexFlatIP(args.dim)
        index.add(np.asarray(vectors))
        calls["faiss flat"] = lambda: index.search(np.asarray(queries), args.k)
    times, exact = in_turns(calls, args.rounds), np.asarray(calls["top k, float32"]()[1])
    for name, seconds in times.items():
        values = {"ms": 1000 * seconds, "ratio_to_product": seconds / times["product"]}
        if "faiss flat" in times:
            values["times_faster_than_faiss"] = times["faiss flat"] / seconds
        if name in compiled:
            memory = compiled[name].memory_analysis()
            search = programs[name][1]
            item_bytes = {"float32": 4, "bfloat16": 2, "int8": 1}[search] * args.dim
            flops = 2 * args.items * args.dim * args.users
            matrix = most["float32" if search == "float32" else "bfloat16"]
            bound = max(flops / matrix / 1e9, args.items * item_bytes / most["copy"] / 1e6)
            values |= {"bound_ms": bound, "share_of_bound": bound / values["ms"]}
            values["memory_mb"] = (memory.argument_size_in_bytes + memory.temp_size_in_bytes) / 2**20
        if name.startswith("top k"):
            found = np.asarray(calls[name]()[1])
            values["found"] = np.mean([np.isin(a, b).mean() for a, b in zip(exact, found, strict=True)])
        sizes = dict(items=args.items, dim=args.dim, users=args.users, k=args.k, table_mb=vectors.nbytes / 2**20)
        emit("scan", what=name, **sizes, **values)


if __name__ == "__main__":
    main()
