"""A pre-ranker behind a trained retriever: logged candidates, training, groups left out, Recall against M and time.

The candidates of a request are what the retriever recommends there. The pre-ranker learns to find the item that was
taken among them, on requests of the training users. From those the retriever has learned itself, so that they flatter
it: when to stop is said by requests that came later. It is measured on the targets of a split.
"""

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from t2diff_jax import rng
from t2diff_jax.config_values import ConfigError
from t2diff_jax.data.batches import TrainingOrder, Windows, gather
from t2diff_jax.data.splits import Targets
from t2diff_jax.evaluate import Evaluator, fastest_milliseconds
from t2diff_jax.experiment import Experiment
from t2diff_jax.metrics import ranking_metrics
from t2diff_jax.models.cold import COLD, feature_groups
from t2diff_jax.sharding import check_batch, put_batch
from t2diff_jax.types import Batch, Catalogue, Variables
from t2diff_jax.writer import say

_MISSED = 2.0**40  # a rank beyond those of any catalogue


class Candidates(NamedTuple):
    """What a retriever found for some requests: ids int32 [n, M], best first, 0 where there are no more.

    scores: float32 [n, M], the retriever's, less that of the best of the request; 0 where the id is.
    """

    targets: Targets
    ids: np.ndarray
    scores: np.ndarray

    def at(self, rows: np.ndarray) -> "Candidates":
        """Those of some requests: numbers, or bool [n]."""
        return Candidates(self.targets.at(rows), self.ids[rows], self.scores[rows])


@dataclasses.dataclass(frozen=True)
class PreRanking:
    """One experiment's pre-ranker.

    Attributes:
      retriever_variables: of the trained retriever.
    """

    experiment: Experiment
    retriever_variables: Variables

    @functools.cached_property
    def evaluator(self) -> Evaluator:
        """Of the retriever; its programs are compiled once."""
        return self.experiment.evaluator()

    def logged(self, targets: Targets) -> Candidates:
        """The `cold.candidates` best items of the retriever for each request."""
        k = min(self.experiment.config.cold.candidates, self.experiment.log.n_items)
        scores, ids = self.evaluator.recommend(self.retriever_variables, targets, k)
        below = np.subtract(scores, scores[:, :1], out=np.zeros_like(scores), where=ids > 0)
        return Candidates(targets, ids, below)

    def training_requests(self) -> Targets:
        """`cold.requests` random positions of training users, none of which the evaluation holds."""
        config = self.experiment.config
        drawn = dataclasses.replace(config.data, training_targets="drawn", fixed_targets=False)
        order = TrainingOrder.of(self.experiment.split, drawn, config.seed)
        wanted = config.cold.requests
        parts = [order.epoch(epoch) for epoch in range(-(-wanted // order.epoch_size))]
        users, positions = (np.concatenate([getattr(p, n) for p in parts])[:wanted] for n in ("users", "positions"))
        return Targets(users, positions)

    def with_the_taken(self, log: Candidates) -> Candidates:
        """The requests whose candidates hold the item that was taken.

        From the others a pre-ranker would learn that what was taken is unlike what is retrieved.
        """
        kept = (log.ids == self.targets_of(log)[:, None]).any(axis=1)
        say(f"{len(kept):,} logged requests, of which {kept.sum():,} hold the item that was taken")
        if not kept.any():
            raise ConfigError("config.cold.candidates: no logged request holds the item that was taken; raise it")
        return log.at(kept)

    def later_requests(self, split: str) -> tuple[Targets, Targets]:
        """What says when to stop, at most `cold.later` targets, and what is measured: they share no target.

        The first are of the validation. Where that is measured itself, half of its users go to either.
        """
        config, split_of = self.experiment.config, self.experiment.split
        to_stop = _warm(split_of.validation)
        draw = np.random.default_rng([config.seed, len(to_stop)])
        if split == "test":
            to_measure = _warm(split_of.test)
        else:
            users = draw.permutation(np.unique(to_stop.users))
            first = np.isin(to_stop.users, users[: len(users) // 2])
            to_stop, to_measure = to_stop.at(first), to_stop.at(~first)
            if not len(to_stop):
                raise ConfigError("--split: the validation has no two users, to stop by and to measure: use test")
        if not len(to_stop):
            raise ConfigError("config.data: no validation target has a history, so that nothing says when to stop")
        return to_stop.at(np.sort(draw.permutation(len(to_stop))[: config.cold.later])), to_measure

    def train(self, groups: tuple[str, ...], learning: Candidates, later: Candidates) -> tuple[COLD, Variables]:
        """A pre-ranker of these groups of features, learned from logged candidates.

        Its item vectors are the retriever's, as logged requests are few beside what that has learned from. Of at most
        `cold.steps` steps it is as it was when its loss on later requests was least; after none it is the retriever.
        """
        config, catalogue = self.experiment.config.cold, self.experiment.catalogue
        cold = COLD(config, self.experiment.config.model, self.experiment.retriever.sizes, groups)
        looked_at = self._batches_to_look_at(later)
        known, tx = {"items": self.retriever_variables["params"]["items"]}, optax.adam(config.learning_rate)
        params, loss_of = self._start(cold, looked_at[0]), jax.jit(cold.loss)
        step, state, best = _step(cold, tx), tx.init(params), (np.inf, 0, params)
        for number in range(config.steps + 1):
            if number:
                params, state = step(params, state, known, catalogue, *self._training_batch(learning, number))
            if number % config.check_every == 0 or number == config.steps:
                loss = np.mean([loss_of({"params": params | known}, catalogue, *part) for part in looked_at])
                if not np.isfinite(loss):
                    raise FloatingPointError(f"the pre-ranker's loss is {loss}: lower config.cold.learning_rate")
                if loss < best[0]:
                    best = loss, number, jax.tree.map(jnp.copy, params)
        say(f"{len(groups)} groups: loss {best[0]:.4f} on later requests, after {best[1]:,} steps")
        return cold, {"params": best[2] | known}

    def _start(self, cold: COLD, example: tuple[Batch, jax.Array]) -> Any:
        """The parameters that are to be learned: all but the item vectors, which are not even drawn."""

        @jax.jit
        def drawn(key: jax.Array, catalogue: Catalogue, batch: Batch, items: jax.Array) -> Any:
            params = cold.init(key, catalogue, batch, items)["params"]
            return {name: value for name, value in params.items() if name != "items"}

        return drawn(rng.stream(self.experiment.config.seed, "cold"), self.experiment.catalogue, *example)

    def _training_batch(self, log: Candidates, step: int) -> tuple[Batch, jax.Array]:
        """Drawn requests, as `_to_learn_from` gives them."""
        draw = np.random.default_rng([self.experiment.config.seed, step])
        return self._to_learn_from(log.at(draw.integers(0, len(log.ids), self.experiment.config.cold.batch_size)), draw)

    def _batches_to_look_at(self, later: Candidates) -> list[tuple[Batch, jax.Array]]:
        """Every later request once; the last batch is filled up with the first of them."""
        size, draw = self.experiment.config.cold.batch_size, np.random.default_rng(self.experiment.config.seed)
        rows = np.resize(np.arange(len(later.ids)), (-(-len(later.ids) // size), size))
        return [self._to_learn_from(later.at(of_batch), draw) for of_batch in rows]

    def _to_learn_from(self, drawn: Candidates, draw: np.random.Generator) -> tuple[Batch, jax.Array]:
        """Windows, and items [B, 1 + n]: the one that was taken, then others of its candidates."""
        config = self.experiment.config.cold
        taken = self.targets_of(drawn)[:, None]
        first = np.argmax(drawn.ids == taken, axis=1)[:, None]
        others = draw.integers(0, drawn.ids.shape[1], (len(drawn.ids), config.negatives))
        places = np.concatenate([first, others], axis=1)
        others = np.take_along_axis(drawn.ids, others, axis=1)
        items = np.concatenate([taken, np.where(others == taken, 0, others)], axis=1)
        return self._batch(drawn, np.take_along_axis(drawn.scores, places, axis=1)), jnp.asarray(items)

    def gates(self, cold: COLD, variables: Variables, log: Candidates) -> dict[str, float]:
        """Mean gate of each group over some logged pairs."""
        means = jax.jit(cold.gates)(variables, self.experiment.catalogue, *self._training_batch(log, 0))
        return dict(zip(cold.groups, np.asarray(means).tolist(), strict=True))

    def scores(self, cold: COLD, variables: Variables, found: Candidates) -> np.ndarray:
        """Of all candidates, float32 [n, M]."""
        size, parts = self.evaluator.batch_rows, []
        score = jax.jit(cold.score)
        for start in range(0, len(found.ids), size):
            lot = self._lot(found, start, size)
            args = self.experiment.catalogue, self._batch(lot, lot.scores), jnp.asarray(lot.ids)
            parts.append(np.asarray(score(variables, *args)))
        return np.concatenate(parts)[: len(found.ids)]

    def milliseconds(self, cold: COLD, variables: Variables, found: Candidates, m: int) -> float:
        """Per request to score m candidates, at `eval.batch_size` requests a call: the fastest of three."""
        size = self.evaluator.batch_rows
        lot = self._lot(found, 0, size)
        args = self.experiment.catalogue, self._batch(lot, lot.scores[:, :m]), jnp.asarray(lot.ids[:, :m])
        return fastest_milliseconds(jax.jit(cold.score), variables, *args) / size

    def _lot(self, found: Candidates, start: int, size: int) -> Candidates:
        """`size` requests from `start` on; the last lot is filled up with the first request."""
        rows = np.arange(start, start + size)
        return found.at(np.where(rows < len(found.ids), rows, 0))

    def _batch(self, requests: Candidates, retrieved: np.ndarray) -> Batch:
        """Their windows, and the retriever's scores [B, C] of the items that are to be scored."""
        targets, windows = requests.targets, Windows.of(self.experiment.config)
        batch = gather(self.experiment.log, targets.users, targets.positions, windows)
        return put_batch(self.experiment.mesh, batch | {"retrieved": retrieved}, len(targets))

    def targets_of(self, found: Candidates) -> np.ndarray:
        """The items that were taken, int32 [n]."""
        log = self.experiment.log
        return log.items[log.offsets[found.targets.users] + found.targets.positions]


def _warm(targets: Targets) -> Targets:
    """Those with a history, as in the evaluation: nothing can be known of the others."""
    return targets.at(targets.positions > 0)


def _step(cold: COLD, tx: optax.GradientTransformation) -> Any:
    """Compiled (params, state, known, catalogue, batch, items) -> (params, state) after a step; takes their memory."""

    @functools.partial(jax.jit, donate_argnums=(0, 1))
    def step(
        params: Any, state: Any, known: Any, catalogue: Catalogue, batch: Batch, items: jax.Array
    ) -> tuple[Any, Any]:
        gradient = jax.grad(lambda p: cold.loss({"params": p | known}, catalogue, batch, items))(params)
        updates, state = tx.update(gradient, state)
        return optax.apply_updates(params, updates), state

    return step


def ranks_among(ids: np.ndarray, scores: np.ndarray, taken: np.ndarray, m: int) -> np.ndarray:
    """Rank of the taken item among the first m candidates by score, float [n]; where it is not among them, `_MISSED`.

    ids, scores: [n, M]; taken: [n]. As everywhere 1 + greater + ties / 2. NaN where a score is not finite.
    """
    finite = np.isfinite(scores[:, :m]).all(axis=1)
    ids, scores = ids[:, :m], np.where(ids[:, :m] > 0, scores[:, :m], -np.inf)
    own = ids == taken[:, None]
    score = np.where(own, scores, -np.inf).max(axis=1, keepdims=True)
    greater, ties = (scores > score).sum(axis=1), ((scores == score) & ~own).sum(axis=1)
    ranks = np.where(own.any(axis=1), 1 + greater + ties / 2, _MISSED)
    return np.where(finite, ranks, np.nan)


def metrics_among(
    found: Candidates, scores: np.ndarray, taken: np.ndarray, m: int, ks: tuple[int, ...]
) -> dict[str, float]:
    """Metrics of the first m candidates by score, at the cut-offs up to m: no more items are passed on.

    scores: [n, M]; taken: [n].
    """
    return ranking_metrics(ranks_among(found.ids, scores, taken, m), tuple(k for k in ks if k <= m))


def kept_groups(gates: dict[str, float], number: int) -> tuple[str, ...]:
    """The groups with the greatest gates, in their old order."""
    best = set(sorted(gates, key=gates.__getitem__, reverse=True)[:number])
    return tuple(name for name in gates if name in best)


def measured(pre: PreRanking, cold: COLD, variables: Variables, found: Candidates) -> list[dict[str, float]]:
    """A row per M of `cold.cutoffs`: metrics after re-ranking, milliseconds per request, pairs a second."""
    config, taken, rows = pre.experiment.config, pre.targets_of(found), []
    scores = pre.scores(cold, variables, found)
    for m in sorted({min(m, found.ids.shape[1]) for m in config.cold.cutoffs}):
        metrics = metrics_among(found, scores, taken, m, config.eval.ks)
        milliseconds = pre.milliseconds(cold, variables, found, m)
        rows.append({"candidates": m, **metrics, "ms": milliseconds, "pairs_per_s": 1000 * m / milliseconds})
    return rows


def run(experiment: Experiment, variables: Variables, split: str) -> dict[str, Any]:
    """Trains with all groups, then with fewer (`cold.keep`), and measures each on the targets of a split."""
    config, pre = experiment.config, PreRanking(experiment, variables)
    if jax.process_count() > 1:
        raise ConfigError("prerank.py runs in one process: start it without others beside it")
    check_batch(experiment.mesh, config.cold.batch_size, "config.cold.batch_size")
    to_stop, to_measure = pre.later_requests(split)
    log = pre.with_the_taken(pre.logged(pre.training_requests()))
    later, found = pre.with_the_taken(pre.logged(to_stop)), pre.logged(to_measure)
    alone = metrics_among(found, found.scores, pre.targets_of(found), found.ids.shape[1], config.eval.ks)
    groups, results = feature_groups(config.model, experiment.retriever.sizes), []
    for number in (len(groups), *config.cold.keep):
        if results:
            groups = kept_groups(results[0]["gates"], number)
        cold, learned = pre.train(groups, log, later)
        rows = measured(pre, cold, learned, found)
        results.append({"groups": groups, "gates": pre.gates(cold, learned, log), "rows": rows})
    return {"split": split, "retriever": alone, "preranker": results}


def described(result: dict[str, Any]) -> str:
    """The table for people."""
    shown = [name for name in result["retriever"] if name in ("recall@10", "recall@20", "recall@50", "ndcg@10")]
    head = f"{'':<24}{'M':>5}" + "".join(f"{name:>11}" for name in shown) + f"{'ms/request':>12}{'pairs/s':>11}"
    alone = "".join(f"{result['retriever'][name]:>11.4f}" for name in shown)
    lines = [f"{result['split']}", head, f"{'retriever':<24}{'':>5}{alone}"]
    for part in result["preranker"]:
        for row in part["rows"]:
            values = "".join(f"{row[name]:>11.4f}" if name in row else f"{'':>11}" for name in shown)
            label = f"COLD, {len(part['groups'])} groups"
            lines.append(f"{label:<24}{row['candidates']:>5}{values}{row['ms']:>12.3f}{row['pairs_per_s']:>11,.0f}")
    gates = ", ".join(f"{name} {value:.2f}" for name, value in result["preranker"][0]["gates"].items())
    return "\n".join([*lines, "", f"mean gates: {gates}"])
