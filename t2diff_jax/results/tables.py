"""The tables of the page of results, as Markdown."""

from collections.abc import Collection, Sequence
from typing import Any, NamedTuple

import numpy as np

from t2diff_jax.metrics import bootstrap_difference, target_metrics
from t2diff_jax.results.runs import (
    Run,
    by_sampler,
    is_excluded,
    main_evaluation,
    metric_mean,
    portable_command,
    portable_environment,
)

_METRICS = ("recall@2", "recall@10", "recall@20", "mrr@20", "ndcg@10", "log_loss")
_COMPARED = ("ndcg@10", "recall@20", "log_loss")


def mean_over_seeds(values: Sequence[float | None], digits: int = 4) -> str:
    """`.1234 ± .0005`: mean and sample standard deviation; the mean alone of one; "" where one is missing."""
    if np.isnan(np.array(values, np.float64)).any():
        return ""
    mean = f"{np.mean(values):.{digits}f}"
    return f"{mean} ± {np.std(values, ddof=1):.{digits}f}" if len(values) > 1 else mean


def accuracy_table(rows: dict[str, list[Run]], name: str, excluded: bool, against: str | None) -> str:
    """One row per label with an evaluation of that kind, best first, and popularity.

    Where a row has not all seeds of the table, it says of how many: users that are held out change with the seed.
    """
    head = ["row", "seeds", *_METRICS, "cosine of the generated item (last behaviour)", "as query, ndcg@10", "calls"]
    head += ["parameters", "ms per user", "minutes of training"]
    head += [f"{metric} against {against} [95 %]" for metric in _COMPARED if against]
    shown = {label: _evaluated(runs, excluded) for label, runs in rows.items()}
    shown = {label: pairs for label, pairs in shown.items() if pairs and pairs[0][0].data == name}
    seeds = {run.config["seed"] for pairs in shown.values() for run, _ in pairs}
    select = next((pairs[0][0].config["eval"]["select"] for pairs in shown.values()), "")
    body, popularity = [], {}
    for label, pairs in shown.items():
        runs, found = map(list, zip(*pairs, strict=True))
        cells = [label, _seeds_cell(len(runs), len(seeds)), *(_metric_cell(found, m) for m in _METRICS)]
        size = next((e["parameters"] for e in found if "parameters" in e), None)  # older versions did not say
        cells += [
            *_slot_cells(found),
            f"{size:,}" if size else "",
            _by_device(runs, [e["milliseconds_per_user"] for e in found], 2),
            _by_device(runs, [run.minutes for run in runs], 0),
        ]
        if against:
            ranked = all(is_excluded(run) == excluded for run in (*runs, *rows[against]))
            compared = label != against and ranked
            cells += [_difference(runs, rows[against], metric) if compared else "" for metric in _COMPARED]
        body.append((np.mean([metric_mean(e, select) for e in found]), cells))
        popularity = {run.config["seed"]: e["popularity"] for run, e in pairs if "popularity" in e} | popularity
    body.sort(key=lambda pair: np.nan_to_num(-pair[0], nan=np.inf))
    lines = [cells for _, cells in body]
    if popularity:
        cells = (_metric_cell(list(popularity.values()), m) for m in _METRICS)
        lines.append(["popularity", _seeds_cell(len(popularity), len(seeds)), *cells])
    return _markdown(head, lines)


def _evaluated(runs: list[Run], excluded: bool) -> list[tuple[Run, dict[str, Any]]]:
    """The runs that have an evaluation of that kind, with it."""
    return [(run, found) for run in runs if (found := main_evaluation(run, excluded)) is not None]


def _seeds_cell(number: int, of_table: int) -> str:
    return str(number) if number == of_table else f"{number} of {of_table}"


def columns(table: str, names: Sequence[str]) -> str:
    """Some columns of a table, in that order, set for a terminal."""
    head, _, *body = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()]
    at = [head.index(name) for name in names]
    lines = [[row[i] for i in at] for row in (head, *body)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    text = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines]
    return "\n".join([text[0], "-" * len(text[0]), *text[1:]])


def sampler_table(rows: dict[str, list[Run]]) -> str:
    """NDCG@10 and Recall@20 by estimator calls and intents, of rows that were evaluated with several samplers."""
    body = []
    for label, runs in rows.items():
        samplers = by_sampler(runs)
        if len(samplers) < 2:
            continue
        for (calls, samples), of_seed in sorted(samplers.items()):
            found, seeds = list(of_seed.values()), f"{len(of_seed)} (seed {', '.join(map(str, of_seed))})"
            scores = [_metric_cell(found, m) for m in ("ndcg@10", "recall@20")]
            body.append([label, str(calls), str(samples), seeds, *scores, *_slot_cells(found)[:2]])
    head = ["row", "calls", "intents", "seeds", "ndcg@10", "recall@20", "cosine (last behaviour)", "as query, ndcg@10"]
    return _markdown(head, body) if body else ""


def commands_table(rows: dict[str, list[Run]]) -> str:
    """How each row was made; a line for each hardware, commit and environment that its seeds ran on."""
    body = []
    for label, runs in rows.items():
        made: dict[tuple[str, str, str], list[Run]] = {}
        for run in runs:
            told = _hardware(run.origin), str(run.origin["commit"]), portable_environment(run.origin)
            made.setdefault(told, []).append(run)
        for (hardware, commit, environment), group in made.items():
            command = portable_command(group[0].origin["command"], group[0].folder.name)
            command = f"{environment} {command}".strip()
            seeds = ", ".join(str(run.config["seed"]) for run in group)
            body.append([label, f"`{command}`", seeds, hardware, commit])
    return _markdown(["row", "command", "seeds", "hardware", "commit"], body)


def _hardware(origin: dict[str, Any]) -> str:
    return f"{origin['devices']} x {origin['device']}, {origin['cores']} core(s), jax {origin['jax']}"


def _metric_cell(found: list[dict[str, Any]], metric: str) -> str:
    """Over seeds; empty where an evaluation lacks the metric (kept runs older than the log loss have none)."""
    return mean_over_seeds([metric_mean(result, metric) for result in found])


def _by_device(runs: list[Run], values: list[float], digits: int) -> str:
    """The mean over the runs of each kind of device, which is named where it is no CPU."""
    kinds: dict[str, list[float]] = {}
    for run, value in zip(runs, values, strict=True):
        kinds.setdefault(run.origin["device"], []).append(value)
    cells = ((kind, f"{np.mean(of_kind):.{digits}f}") for kind, of_kind in kinds.items())
    return "; ".join(mean if kind == "cpu" else f"{mean} ({kind})" for kind, mean in cells)


def _slot_cells(found: list[dict[str, Any]]) -> list[str]:
    if "slot" not in found[0]:
        return ["", "", ""]
    slots = [result["slot"] for result in found]
    last = np.mean(np.array([slot["cosine_of_last"] for slot in slots], np.float64))
    cosine = f"{mean_over_seeds([slot['cosine'] for slot in slots], 3)} ({last:.3f})"
    return [cosine, mean_over_seeds([slot["as_query"].get("ndcg@10") for slot in slots]), str(slots[0]["calls"])]


def _difference(runs: list[Run], others: list[Run], metric: str) -> str:
    """A metric against another row's; paired bootstrap over users.

    Over means of noise keys and seeds where all runs have the same targets; where ranks of some were not kept, of the
    seeds of which both rows have them. Where each seed holds out other users, seed by seed, of the seeds that both rows
    have, and the users of all of these are drawn from together.
    """
    mine, theirs = ({run.config["seed"]: _scored(run, metric) for run in group} for group in (runs, others))
    if None not in (everything := [*mine.values(), *theirs.values()]) and _one_set(everything):
        return _of_means(mine.values(), theirs.values())
    pairs = {seed: (mine[seed], theirs[seed]) for seed in mine if None not in (mine[seed], theirs.get(seed))}
    if not pairs:
        return ""
    pairs = {seed: pair for seed, pair in pairs.items() if _one_set(pair)}
    if not pairs:
        return "other targets"
    alone = "" if pairs.keys() == mine.keys() == theirs.keys() else f" (seed {', '.join(map(str, pairs))})"
    ours, others_scored = zip(*pairs.values(), strict=True)
    if _one_set(ours):
        return _of_means(ours, others_scored) + alone
    a, b = (np.concatenate([scored.scores for scored in side]) for side in (ours, others_scored))
    users = [scored.targets[0] for scored in ours]
    apart = 1 + max(of_seed.max() for of_seed in users)
    everyone = np.concatenate([of_seed + number * apart for number, of_seed in enumerate(users)])
    return _interval(a, b, everyone) + alone


def _of_means(ours: Collection["_Scored"], others: Collection["_Scored"]) -> str:
    """Of the means over seeds of either row; all have the same targets."""
    a, b = (np.mean([scored.scores for scored in side], axis=0) for side in (ours, others))
    return _interval(a, b, next(iter(ours)).targets[0])


def _interval(a: np.ndarray, b: np.ndarray, users: np.ndarray) -> str:
    d, low, high = bootstrap_difference(a, b, users, draws=2000, seed=0)
    return f"{d:+.4f} [{low:+.4f}, {high:+.4f}]"


class _Scored(NamedTuple):
    """A metric of each target with a history, mean over noise keys, [n]; users, positions and items of these [3, n]."""

    scores: np.ndarray
    targets: np.ndarray


def _one_set(scored: Sequence[_Scored]) -> bool:
    """Whether all have the same targets."""
    return all(np.array_equal(one.targets, scored[0].targets) for one in scored)


def _scored(run: Run, metric: str) -> _Scored | None:
    """None where the ranks or the log loss of a run were not kept."""
    path = run.folder / "test_ranks.npz"
    if not path.exists():
        return None
    with np.load(path) as arrays:
        warm = arrays["positions"] > 0
        if metric == "log_loss":
            if metric not in arrays:
                return None
            scores = arrays[metric][:, warm].mean(axis=0)
        else:
            scores = target_metrics(arrays["ranks"][:, warm], (int(metric.split("@")[1]),))[metric].mean(axis=0)
        targets = [arrays[name][warm].astype(np.int64) for name in ("users", "positions", "targets")]
        return _Scored(scores, np.stack(targets))


def _markdown(head: list[str], body: list[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *([*row, *[""] * (len(head) - len(row))] for row in body)]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)
