"""The figures of the page of results: one set for every table, so that a figure's curves can be compared."""

import collections
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from t2diff_jax.results.runs import Run, by_sampler, metric_mean

_CURVES = 10  # in one figure

Curve = tuple[Sequence[float | int], Sequence[float]]


def figures(rows: dict[str, list[Run]], folder: pathlib.Path, suffix: str) -> list[tuple[str, pathlib.Path]]:
    """Draws what there is data for; (caption, file) of each figure. `suffix` ends the names of the files.

    A figure has at most ten curves, those of the rows with the most seeds, and none of an oracle, which is off scale.
    """
    plans: list[tuple[str, str, str, str, Callable[[list[Run]], Curve]]] = [
        ("validation", "Validation by training step", "step", "ndcg@10", _validation_curve),
        ("sampler", "Accuracy by estimator calls", "calls", "ndcg@10", _sampler_curve),
        ("denoising", "Error of one call on the truth noised to r", "r", "RMS error / of the last behaviour", _by_r),
        ("popularity", "Recall by the target's popularity", "decile, least popular first", "recall@20", _by_popularity),
        ("history", "Recall by length of the history", "behaviours", "recall@20", _by_history),
    ]
    drawn, by_seeds = [], sorted(rows.items(), key=lambda row: -len(row[1]))
    eligible = [(label, runs) for label, runs in by_seeds if runs[0].config["model"]["slot"] != "oracle"]
    for name, title, x, y, curve in plans:
        made = [(label, curve(runs)) for label, runs in eligible]
        curves = dict(sorted([(label, (xs, ys)) for label, (xs, ys) in made if np.isfinite(ys).sum() > 1][:_CURVES]))
        if curves:
            drawn.append((title, _draw(folder / f"{name}_{suffix}.svg", title, x, y, curves)))
    return drawn


def _validation_curve(runs: list[Run]) -> Curve:
    by_step = collections.defaultdict(list)
    for run in runs:
        for line in run.lines:
            if line["split"] == "validation" and "ndcg@10" in line:
                by_step[line["step"]].append(line["ndcg@10"])
    return list(by_step), [_mean(values) for values in by_step.values()]


def _sampler_curve(runs: list[Run]) -> Curve:
    single = sorted((calls, of) for (calls, samples), of in by_sampler(runs).items() if samples == 1)
    return [calls for calls, _ in single], [_mean([metric_mean(e, "ndcg@10") for e in of.values()]) for _, of in single]


def _by_r(runs: list[Run]) -> Curve:
    slot = runs[0].evaluations["eval"].get("slot", {})
    rows = slot.get("denoised_by_r", [])
    of_last = np.array(slot.get("rms_error_of_last"), np.float64)
    return [row["r"] for row in rows], [_mean([row["rms_error"]]) / of_last for row in rows]


def _by_popularity(runs: list[Run]) -> Curve:
    values = _mean([run.evaluations["eval"]["recall@20_by_popularity_decile"] for run in runs])
    return list(range(1, len(values) + 1)), values


def _by_history(runs: list[Run]) -> Curve:
    first = runs[0].evaluations["eval"]
    values = _mean([run.evaluations["eval"]["recall@20_by_history_decile"] for run in runs])
    return _mean([first["history_length_of_decile"]]), values


def _mean(values: Sequence[Any]) -> Any:
    """Over the runs, numbers or lists of them; NaN, a gap of the curve, where one has none (null, an empty group)."""
    return np.mean(np.array(values, np.float64), axis=0).tolist()


def _draw(path: pathlib.Path, title: str, x: str, y: str, curves: dict[str, Any]) -> pathlib.Path:
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    with pyplot.rc_context({"svg.hashsalt": "t2diff", "svg.fonttype": "none"}):
        figure, axes = pyplot.subplots(figsize=(8, 4), layout="constrained")
        axes.set_prop_cycle(color=pyplot.get_cmap("tab10").colors)
        for label, (xs, ys) in curves.items():
            axes.plot(xs, ys, marker="o", markersize=3, label=label)
        axes.set(title=title, xlabel=x, ylabel=y)
        axes.grid(alpha=0.3)
        figure.legend(loc="outside right upper", fontsize="small")
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, metadata={"Date": None})
        pyplot.close(figure)
    return path
