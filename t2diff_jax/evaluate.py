"""Full-catalogue evaluation: the item table once, then every target's rank; recommendations."""

import dataclasses
import functools
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from t2diff_jax import rng
from t2diff_jax.config import EvalConfig
from t2diff_jax.data.batches import Windows, evaluation_batches
from t2diff_jax.data.log import InteractionLog
from t2diff_jax.data.splits import Targets
from t2diff_jax.models.drift import cosine
from t2diff_jax.retrieval import BlockedTable, Users, block_table, score_targets, table_partition
from t2diff_jax.search import top_k
from t2diff_jax.sharding import (
    batch_sharding,
    fetch_each,
    process_rows,
    put_batch,
    replicated,
    row_sharding,
    to_host,
)
from t2diff_jax.types import Batch, Catalogue, Encoder, Generative, Variables

Curve = list[dict[str, float | int]]


class TargetScores(NamedTuple):
    """How a model did on each target, float32 [noise_keys, n] each.

    Attributes:
      ranks: see `retrieval.score_targets`.
      log_loss: see there, in nats; None of a model whose scores are no logits.
    """

    ranks: np.ndarray
    log_loss: np.ndarray | None


def fastest_milliseconds(function: Callable[..., Any], *args: Any) -> float:
    """Of three calls, after one that compiles."""
    times = []
    for _ in range(4):
        start = time.perf_counter()
        jax.block_until_ready(function(*args))
        times.append(time.perf_counter() - start)
    return 1000 * min(times[1:])


@dataclasses.dataclass(frozen=True)
class Evaluator:
    """Evaluates one retriever on one log. Functions are compiled once per evaluator and shape.

    Attributes:
      catalogue: on the devices; its shapes and a `log` of None do for `programs`.
      seed: names the evaluation noise: with it, (noise key, user, position) determine a user vector.
    """

    retriever: Encoder
    catalogue: Catalogue
    log: InteractionLog | None
    windows: Windows
    config: EvalConfig
    mesh: Mesh
    seed: int

    def score_targets(self, variables: Variables, targets: Targets, noise_keys: int) -> TargetScores:
        """Rank and log loss of every target under every noise key."""
        table, keys = self._build_table(variables, self.catalogue), jnp.stack(self._keys(noise_keys))
        parts = fetch_each(self._score(variables, self.catalogue, table, b, keys) for b in self._batches(targets))
        return TargetScores(*(np.concatenate(a, axis=1)[:, : len(targets)] for a in zip(*parts, strict=True)))

    def recommend(self, variables: Variables, targets: Targets, k: int) -> tuple[np.ndarray, np.ndarray]:
        """Top-k scores float32 [n, k] and item ids int32 [n, k] for every target's request, under the first noise key.

        Fewer than k where that many items may not be recommended: the rest is id 0 with score -inf.
        """
        table, key = self._build_searched(variables, self.catalogue), self._keys(1)[0]
        parts = fetch_each(self._recommend(variables, self.catalogue, table, b, key, k) for b in self._batches(targets))
        scores, ids = (np.concatenate(column) for column in zip(*parts, strict=True))
        return scores[: len(targets)], ids[: len(targets)]

    def vectors(self, variables: Variables, targets: Targets) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Item vectors [N + 1, U] by id, and user vectors [n, M, U] and their mask [n, M] under the first noise key."""
        items = to_host(self.mesh, self._encode_items(variables, self.catalogue))[: self.catalogue.n_items + 1]
        key = self._keys(1)[0]
        parts = fetch_each(self._encode_users(variables, self.catalogue, b, key)[:2] for b in self._batches(targets))
        users, mask = (np.concatenate(column)[: len(targets)] for column in zip(*parts, strict=True))
        return items, users, mask

    def search_recall(self, variables: Variables, targets: Targets, found: np.ndarray) -> float | None:
        """Share of the true k best items among those found, ids [n, k]; None where the search is exact."""
        exact_config = dataclasses.replace(self.config, search="float32", search_recall=1.0)
        if self.config == exact_config:
            return None
        exact = dataclasses.replace(self, config=exact_config)
        _, best = exact.recommend(variables, targets, found.shape[1])
        hits = (found[:, :, None] == best[:, None]).any(axis=1) & (best > 0)
        return float(hits.sum() / (best > 0).sum())

    def slot_quality(self, variables: Variables, targets: Targets) -> dict[str, np.ndarray] | None:
        """What a `Generative` model generates against what came next, per target [n], under the first noise key.

        `cosine` and `square_error` (per dimension) of the first intent, the same `_of_last` of the last behaviour, and
        the target's `rank` among all e(i) with the generated item as the query. None where nothing is generated.
        """
        if not isinstance(self.retriever, Generative):
            return None
        key, table = self._keys(1)[0], self._build_embeddings(variables, self.catalogue)
        parts = fetch_each(self._compare(variables, self.catalogue, table, b, key) for b in self._batches(targets))
        if None in parts:
            return None
        columns = {name: [part[name] for part in parts] for name in parts[0]}
        return {name: np.concatenate(column)[: len(targets)] for name, column in columns.items()}

    def denoising_quality(self, variables: Variables, targets: Targets, steps: Sequence[int]) -> Curve:
        """By r, what one call makes of the true next item noised to step r: mean cosine to it and RMS error.

        Empty for a model that diffuses nothing.
        """
        if not isinstance(self.retriever, Generative):
            return []
        how, warm = (self._keys(1)[0], jnp.array(steps, jnp.int32)), targets.positions > 0
        table = self._build_embeddings(variables, self.catalogue)
        parts = fetch_each(self._denoise(variables, self.catalogue, table, b, how) for b in self._batches(targets))
        if None in parts:
            return []
        arrays = (np.concatenate(a, axis=1)[:, : len(targets)][:, warm] for a in zip(*parts, strict=True))
        cosines, squares = (a.mean(axis=1, dtype=np.float64).tolist() for a in arrays)
        return [
            {"r": int(r), "cosine": cosine, "rms_error": square**0.5}
            for r, cosine, square in zip(steps, cosines, squares, strict=True)
        ]

    def milliseconds_per_user(self, variables: Variables, targets: Targets) -> float:
        """Of the user tower at `eval.batch_size` alone, without the scan of the items: the fastest of three calls."""
        batch, key = next(iter(self._batches(targets))), self._keys(1)[0]
        return fastest_milliseconds(self._encode_alone, variables, self.catalogue, batch, key) / len(batch["target"])

    @property
    def batch_rows(self) -> int:
        """Rows of a batch: `eval.batch_size`, rounded up to a multiple of the data axis."""
        return -(-self.config.batch_size // self.mesh.shape["data"]) * self.mesh.shape["data"]

    def programs(self, variables: Variables, batch: Batch) -> dict[str, tuple[Any, tuple[Any, ...]]]:
        """The compiled functions of an evaluation by what they make, each with its arguments (their shapes will do).

        Of a model that generates also what the final evaluation compares the generated item with.
        """
        args, keys = (variables, self.catalogue), jax.eval_shape(lambda: jnp.stack(self._keys(self.config.noise_keys)))

        def made(build: Any, search: str) -> BlockedTable:
            shapes, at = jax.eval_shape(build, *args), self._table_shardings(search)
            return jax.tree.map(lambda a, place: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=place), shapes, at)

        table, searched = made(self._build_table, "float32"), made(self._build_searched, self.config.search)
        key, k = jax.eval_shape(lambda: self._keys(1)[0]), min(max(self.config.ks), self.catalogue.n_items)
        programs = {
            "item table": (self._build_searched, args),
            "ranks": (self._score, (*args, table, batch, keys)),
            "recommendations": (self._recommend, (*args, searched, batch, key, k)),
        }
        if not isinstance(self.retriever, Generative):
            return programs
        embeddings, step = made(self._build_embeddings, "float32"), jax.ShapeDtypeStruct((1,), jnp.int32)
        generated = {
            "generated items": (self._compare, (*args, embeddings, batch, key)),
            "denoised items": (self._denoise, (*args, embeddings, batch, (key, step))),
        }
        makes = {name: jax.eval_shape(program, *given) for name, (program, given) in generated.items()}
        return programs | {name: generated[name] for name in generated if makes[name] is not None}

    def _table(self, make: Any, search: str) -> Any:
        """What makes the blocked table of the vectors that `make` gives for (variables, catalogue)."""

        def build(variables: Variables, catalogue: Catalogue) -> BlockedTable:
            how = dict(parts=self.mesh.shape["model"], search=search)
            return block_table(make(variables, catalogue), catalogue.n_items, self.config.block, **how)

        return jax.jit(build, out_shardings=self._table_shardings(search))

    def _table_shardings(self, search: str) -> BlockedTable:
        return jax.tree.map(lambda spec: NamedSharding(self.mesh, spec), table_partition(search))

    def _keys(self, n: int) -> list[jax.Array]:
        stream = rng.stream(self.seed, "evaluation")
        return [rng.at_step(stream, i) for i in range(n)]

    def _batches(self, targets: Targets):
        rows = process_rows(self.mesh, self.batch_rows)
        args = dict(with_seen=self.config.exclude_seen)
        for batch in evaluation_batches(self.log, targets, self.windows, self.batch_rows, rows, **args):
            yield put_batch(self.mesh, batch, self.batch_rows)

    @functools.cached_property
    def _build_table(self):
        return self._table(self.retriever.encode_items, "float32")

    @functools.cached_property
    def _build_searched(self):
        exact = self.config.search == "float32"
        return self._build_table if exact else self._table(self.retriever.encode_items, self.config.search)

    @functools.cached_property
    def _score(self):
        def score(variables: Variables, catalogue: Catalogue, table: BlockedTable, batch: Batch, keys: jax.Array):
            own = table.rows(batch["target"])

            def under_one_key(users: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
                users = Users(*users, batch.get("seen"))
                return score_targets(users, table, batch["target"], own, merge=self.config.merge, mesh=self.mesh)

            # What the noise does not reach is encoded once for all keys.
            encode = jax.vmap(self.retriever.encode_user, (None, None, None, 0))
            return jax.lax.map(under_one_key, self._by_rows(encode, out=1)(variables, catalogue, batch, keys))

        placed = (None, row_sharding(self.mesh), None, batch_sharding(self.mesh), None)
        return jax.jit(score, in_shardings=placed, out_shardings=replicated(self.mesh))

    @functools.cached_property
    def _encode_alone(self):
        return jax.jit(self._encode, in_shardings=(None, row_sharding(self.mesh), batch_sharding(self.mesh), None))

    @functools.cached_property
    def _encode_users(self):
        placed = (None, row_sharding(self.mesh), batch_sharding(self.mesh), None)
        return jax.jit(self._encode, in_shardings=placed, out_shardings=replicated(self.mesh))

    @functools.cached_property
    def _encode_items(self):
        return jax.jit(self.retriever.encode_items, out_shardings=row_sharding(self.mesh))

    @functools.cached_property
    def _build_embeddings(self):
        return self._table(self.retriever.item_embeddings, "float32")

    @functools.cached_property
    def _compare(self):
        def compare(variables: Variables, catalogue: Catalogue, table: BlockedTable, batch: Batch, key: jax.Array):
            generated = self._by_rows(self.retriever.generate_items, out=0)(variables, catalogue, batch, key)
            if generated is None:
                return None
            target, last, first = table.rows(batch["target"]), table.rows(batch["history"][:, -1]), generated[:, 0]
            users = Users(first[:, None], jnp.ones((len(first), 1), bool), batch.get("seen"))
            return {
                "cosine": cosine(first, target),
                "cosine_of_last": cosine(last, target),
                "square_error": jnp.square(first - target).mean(axis=-1),
                "square_error_of_last": jnp.square(last - target).mean(axis=-1),
                "rank": score_targets(users, table, batch["target"], target, merge="max", mesh=self.mesh)[0],
            }

        placed = (None, row_sharding(self.mesh), None, batch_sharding(self.mesh), None)
        return jax.jit(compare, in_shardings=placed, out_shardings=replicated(self.mesh))

    @functools.cached_property
    def _denoise(self):
        def denoise(
            variables: Variables, catalogue: Catalogue, table: BlockedTable, batch: Batch, how: tuple[Array, Array]
        ):
            def at_each(variables: Variables, catalogue: Catalogue, batch: Batch, how: tuple[Array, Array]):
                # What does not depend on r is computed once.
                return jax.vmap(self.retriever.denoise_items, (*[None] * 4, 0))(variables, catalogue, batch, *how)

            items = self._by_rows(at_each, out=1)(variables, catalogue, batch, how)
            if items is None:
                return None
            target = table.rows(batch["target"])[None]
            return cosine(items, target), jnp.square(items - target).mean(axis=-1)

        placed = (None, row_sharding(self.mesh), None, batch_sharding(self.mesh), None)
        return jax.jit(denoise, in_shardings=placed, out_shardings=replicated(self.mesh))

    @functools.cached_property
    def _recommend(self):
        def recommend(variables, catalogue: Catalogue, table: BlockedTable, batch: Batch, key: jax.Array, k: int):
            users = self._encode(variables, catalogue, batch, key)
            return top_k(users, table, k, merge=self.config.merge, mesh=self.mesh, found=self.config.search_recall)

        placed = (None, row_sharding(self.mesh), None, batch_sharding(self.mesh), None)
        return jax.jit(recommend, static_argnums=5, in_shardings=placed, out_shardings=replicated(self.mesh))

    def _encode(self, variables: Variables, catalogue: Catalogue, batch: Batch, key: jax.Array) -> Users:
        vectors, mask = self._by_rows(self.retriever.encode_user, out=0)(variables, catalogue, batch, key)
        return Users(vectors, mask, batch.get("seen"))

    def _by_rows(self, encode: Any, *, out: int) -> Any:
        """`encode` on the rows of a batch where they lie; its results have them on axis `out`.

        Left to itself the compiler collects whole batches in front of convolutions over several keys or intents.
        """
        own, all_rows = PartitionSpec("data"), PartitionSpec()
        specs = dict(in_specs=(all_rows, all_rows, own, all_rows), out_specs=PartitionSpec(*[None] * out, "data"))
        return jax.shard_map(encode, mesh=self.mesh, axis_names={"data"}, check_vma=False, **specs)
