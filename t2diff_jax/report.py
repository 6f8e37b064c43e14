"""What is told of an evaluated model: means over targets, the report, recommendations for people."""

from typing import Any

import numpy as np

from t2diff_jax.data.log import InteractionLog
from t2diff_jax.data.splits import Targets
from t2diff_jax.evaluate import Evaluator, TargetScores
from t2diff_jax.metrics import group_means, mean_and_spread, ranking_metrics, recall_by
from t2diff_jax.types import Variables

_SEARCHED_AGAIN = 1024  # targets for which a search at less precision is compared with the exact one


def summarise(scores: TargetScores, targets: Targets, ks: tuple[int, ...]) -> dict[str, tuple[float, float]]:
    """(mean, spread over noise keys) of each metric, over the targets that have a history."""
    return _summary(scores, targets.positions > 0, ks)


def _summary(scores: TargetScores, of: np.ndarray, ks: tuple[int, ...]) -> dict[str, tuple[float, float]]:
    rows = [ranking_metrics(ranks, ks) for ranks in scores.ranks[:, of]]
    if scores.log_loss is not None:
        losses = scores.log_loss[:, of].sum(axis=1, dtype=np.float64) / of.sum() if of.any() else [np.nan] * len(rows)
        rows = [row | {"log_loss": float(loss)} for row, loss in zip(rows, losses, strict=True)]
    return mean_and_spread(rows)


def summarise_slot(quality: dict[str, np.ndarray], targets: Targets, ks: tuple[int, ...]) -> dict[str, Any]:
    """Means over the targets with a history; errors as root mean squares, the rank as ranking metrics."""
    warm = targets.positions > 0
    means = {name: float(np.mean(values[warm], dtype=np.float64)) for name, values in quality.items()}
    return {
        "cosine": means["cosine"],
        "cosine_of_last": means["cosine_of_last"],
        "rms_error": means["square_error"] ** 0.5,
        "rms_error_of_last": means["square_error_of_last"] ** 0.5,
        "as_query": ranking_metrics(quality["rank"][warm], ks),
    }


def coverage(recommended: np.ndarray, n_items: int, ks: tuple[int, ...]) -> dict[str, float]:
    """Share of the catalogue that is among anybody's top K, by K; recommended: item ids [n, max K], 0 for none."""
    return {f"coverage@{k}": np.setdiff1d(recommended[:, :k], [0]).size / n_items for k in ks}


def report(
    evaluator: Evaluator, variables: Variables, targets: Targets, scores: TargetScores, popularity: np.ndarray
) -> dict[str, Any]:
    """All that is told about one evaluated model, ready for JSON; popularity: training counts by item id [R]."""
    ks, log = evaluator.config.ks, evaluator.log
    warm = targets.positions > 0
    target_items = log.items[log.offsets[targets.users] + targets.positions]
    k = min(max(ks), log.n_items)
    _, recommended = evaluator.recommend(variables, targets, k)
    metrics, ranks_by_key = summarise(scores, targets, ks), scores.ranks
    result = {
        "metrics": {name: {"mean": mean, "spread": spread} for name, (mean, spread) in metrics.items()},
        "noise_keys": len(ranks_by_key),
        "users": int(np.unique(targets.users[warm]).size),
        "targets": int(warm.sum()),
        "targets_without_history": int((~warm).sum()),
        # Excluded, and so behind all items.
        "targets_seen_before": int((ranks_by_key[0][warm] > log.n_items).sum()),
        "catalogue": log.n_items,
        "seen_items_excluded": evaluator.config.exclude_seen,
        "coverage": coverage(recommended[warm], log.n_items, ks),
        "recall@20_by_popularity_decile": recall_by(popularity[target_items[warm]], ranks_by_key[0][warm], 20, 10),
        "recall@20_by_history_decile": recall_by(targets.positions[warm], ranks_by_key[0][warm], 20, 10),
        "history_length_of_decile": group_means(targets.positions[warm], 10),
    }
    again = targets.first(_SEARCHED_AGAIN), recommended[:_SEARCHED_AGAIN]
    if (found := evaluator.search_recall(variables, *again)) is not None:
        how = {"dtype": evaluator.config.search, "recall": evaluator.config.search_recall}
        result["search"] = {**how, "k": k, "found": found}
    if (quality := evaluator.slot_quality(variables, targets)) is not None:
        result["slot"] = summarise_slot(quality, targets, ks)
    if not warm.all():
        cold = _summary(scores, ~warm, ks)
        result["metrics_without_history"] = {k: {"mean": m, "spread": s} for k, (m, s) in cold.items()}
    return result


def recommendations_text(log: InteractionLog, targets: Targets, items: np.ndarray) -> str:
    """For people: per request the last behaviours, what came next (where it did), and the recommended items [n, k]."""

    def name(item: np.integer) -> str:
        return str(log.item_ids[item]) if log.titles is None else f"{log.titles[item]} [{log.item_ids[item]}]"

    blocks = []
    for user, position, row in zip(targets.users, targets.positions, items, strict=True):
        start = log.offsets[user]
        history, target = log.items[max(start, start + position - 5) : start + position], 0
        lines = [f"user {log.user_ids[user]}, after {position} behaviours", "  last:  " + "; ".join(map(name, history))]
        if start + position < log.offsets[user + 1]:
            target = log.items[start + position]
            lines += [f"  next:  {name(target)}"]
        lines += [
            f"  {place:>4}.  {name(i)}{'   <- next' if i == target else ''}" for place, i in enumerate(row, 1) if i
        ]
        blocks.append("\n".join(lines))
    return "\n\n".join(blocks)
