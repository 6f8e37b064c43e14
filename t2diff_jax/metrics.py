"""Ranking metrics from ranks: one relevant item per target, so Recall@K is the hit rate."""

import numpy as np


def target_metrics(ranks: np.ndarray, ks: tuple[int, ...]) -> dict[str, np.ndarray]:
    """Recall@K, MRR@K (0 beyond K) and NDCG@K (1 / log2(rank + 1)) of each target, in the shape of `ranks`.

    ranks: float, 1 + greater + ties / 2; a hit is rank <= K.

    Raises:
      FloatingPointError: a rank is NaN, which means that a score was.
    """
    if not np.isfinite(ranks).all():
        raise FloatingPointError("a score is NaN or infinite: the model has diverged; evaluate an earlier checkpoint")
    terms = {"recall": np.ones_like(ranks), "mrr": 1 / ranks, "ndcg": 1 / np.log2(ranks + 1)}
    return {f"{name}@{k}": np.where(ranks <= k, term, 0) for name, term in terms.items() for k in ks}


def ranking_metrics(ranks: np.ndarray, ks: tuple[int, ...]) -> dict[str, float]:
    """Means of `target_metrics` over the targets; NaN where there are none."""
    return {
        name: float(values.mean()) if values.size else float("nan")
        for name, values in target_metrics(ranks, ks).items()
    }


def mean_and_spread(rows: list[dict[str, float]]) -> dict[str, tuple[float, float]]:
    """(mean, sample standard deviation) of each metric over repetitions; the deviation of a single one is 0."""
    return {
        name: (float(np.mean(values)), float(np.std(values, ddof=1)) if len(values) > 1 else 0.0)
        for name in rows[0]
        for values in [[row[name] for row in rows]]
    }


def recall_by(values: np.ndarray, ranks: np.ndarray, k: int, groups: int) -> list[float]:
    """Recall@k by group of a value of each target, the smallest first; groups hold equal numbers of targets.

    Targets of one value that two groups share count with their mean in both: which is in which would say nothing.
    """
    _, value = np.unique(values, return_inverse=True)
    recall = np.bincount(value, ranks <= k) / np.bincount(value)
    parts = np.array_split(recall[np.sort(value)], groups)
    return [float(part.mean()) if len(part) else float("nan") for part in parts]


def group_means(values: np.ndarray, groups: int) -> list[float]:
    """Mean value of each group of `recall_by`."""
    parts = np.array_split(np.sort(values, kind="stable"), groups)
    return [float(part.mean()) if len(part) else float("nan") for part in parts]


def bootstrap_difference(
    a: np.ndarray, b: np.ndarray, users: np.ndarray, *, draws: int, seed: int
) -> tuple[float, float, float]:
    """Paired bootstrap over users of mean(a - b): (difference, 2.5 %, 97.5 %). a, b, users: per target [n]."""
    _, user = np.unique(users, return_inverse=True)
    total, count = np.bincount(user, a - b), np.bincount(user)
    generator = np.random.default_rng(seed)
    picks = (generator.integers(0, len(count), len(count)) for _ in range(draws))  # all at once: draws x users numbers
    means = [total[drawn].sum() / count[drawn].sum() for drawn in picks]
    return float((a - b).mean()), *map(float, np.quantile(means, [0.025, 0.975]))
