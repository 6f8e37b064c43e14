"""`docs/results.md` from run folders: tables, the command of every row, figures.

python -m t2diff_jax.results runs --out docs/results.md

A run is a folder that `train.py` finished; NAME_seed0, NAME_seed1, ... are one row. `eval.py --name=eval_...` adds
evaluations of it: with another sampler for the sampler's table and figure, with seen items excluded for their table.
"""

import argparse
import collections
import dataclasses
import json
import pathlib
import re
import shlex
import shutil
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

from t2diff_jax.metrics import bootstrap_difference, target_metrics

_METRICS = ("recall@2", "recall@10", "recall@20", "mrr@20", "ndcg@10", "log_loss")
_COMPARED = ("ndcg@10", "recall@20")
_SEED = re.compile(r"_seed\d+$")

Curve = tuple[Sequence[float | int], Sequence[float]]


class ResultsError(ValueError):
    """Run folders that do not belong together, or hold something else than this version writes."""


@dataclasses.dataclass(frozen=True)
class Run:
    """One finished run.

    Attributes:
      folder: where it lies.
      config: `config.json`'s configuration.
      origin: `run.json`.
      evaluations: the files `eval.json` and `eval_*.json`, by stem.
      lines: `metrics.jsonl`.
    """

    folder: pathlib.Path
    config: dict[str, Any]
    origin: dict[str, Any]
    evaluations: dict[str, dict[str, Any]]
    lines: list[dict[str, Any]]

    @property
    def label(self) -> str:
        """The name of its row."""
        return _SEED.sub("", self.folder.name)

    @property
    def minutes(self) -> float:
        """Time spent in training steps, without evaluation, start and compilation."""
        size, seconds, before = self.config["train"]["batch_size"], 0.0, 0
        for line in self.lines:
            if line["split"] == "train":
                seconds += (line["step"] - before) * size / (line["examples_per_s"] or np.inf)
                before = line["step"]
        return seconds / 60

    @property
    def data(self) -> str:
        """The log's name and the protocol."""
        data = self.config["data"]
        return f"{data['source']} {pathlib.PurePath(data['path']).name}".strip() + f", {data['protocol']}"


def read_run(folder: pathlib.Path) -> Run:
    """Reads one run folder.

    Raises:
      ResultsError: a file is missing or unreadable; names it.
    """

    def load(name: str) -> dict[str, Any]:
        try:
            return json.loads((folder / name).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise ResultsError(f"{folder / name}: {error}; finish the run, or move its folder away") from error

    evaluations = {path.stem: load(path.name) for path in sorted(folder.glob("eval*.json"))}
    if "eval" not in evaluations:
        raise ResultsError(f"{folder} has no eval.json: finish the run, or move its folder away")
    for name, result in evaluations.items():
        if "milliseconds_per_user" not in result:
            raise ResultsError(f"{folder / name}.json is of an older version: run eval.py on it again")
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    return Run(folder, load("config.json")["config"], load("run.json"), evaluations, lines)


def read_runs(folder: pathlib.Path) -> list[Run]:
    """All finished runs of a folder, by name.

    Raises:
      ResultsError: there is none, or one is not whole.
    """
    runs = [read_run(path.parent) for path in sorted(folder.glob("*/config.json"))]
    if not runs:
        raise ResultsError(f"{folder} holds no run")
    return runs


def keep(run: Run, folder: pathlib.Path) -> None:
    """Copies what the page is made of to a folder of the run's name: no checkpoints, no paths of the machine.

    Raises:
      ResultsError: the copy would be the run itself.
    """
    copy = folder / run.folder.name
    if copy.resolve() == run.folder.resolve():
        raise ResultsError(f"--keep {folder}: is where the runs lie; name another folder")
    copy.mkdir(parents=True, exist_ok=True)
    origin = {**run.origin, "command": portable_command(run.origin["command"], run.folder.name)}
    for name, value in {"config": {"config": _without_folders(run.config)}, "run": origin, **run.evaluations}.items():
        (copy / f"{name}.json").write_text(json.dumps(value, indent=1) + "\n", encoding="utf-8")
    for name in ("metrics.jsonl", "test_ranks.npz"):
        if (run.folder / name).exists():
            shutil.copyfile(run.folder / name, copy / name)


def _without_folders(value: Any) -> Any:
    """A configuration whose absolute paths are file names alone."""
    if isinstance(value, dict):
        return {name: _without_folders(v) for name, v in value.items()}
    return pathlib.PurePath(value).name if isinstance(value, str) and value.startswith("/") else value


def rows_of(runs: Iterable[Run]) -> dict[str, list[Run]]:
    """Runs by row, seeds in order. Where the data lie is no difference: copies that were kept stand beside new runs.

    Raises:
      ResultsError: runs of one row differ in more than the seed.
    """

    def recipe(run: Run) -> dict[str, Any]:
        return {**_without_folders(run.config), "seed": 0}

    rows: dict[str, list[Run]] = collections.defaultdict(list)
    for run in runs:
        rows[run.label].append(run)
    for label, group in rows.items():
        group.sort(key=lambda run: run.config["seed"])
        if any(recipe(run) != recipe(group[0]) for run in group):
            raise ResultsError(f"the runs {label}_seed* differ in more than their seed")
        if len({run.config["seed"] for run in group}) < len(group):
            raise ResultsError(f"two of the runs {label}_seed* have the same seed")
    return dict(rows)


def mean_over_seeds(values: Sequence[float], digits: int = 4) -> str:
    """`.1234 ± .0005`: mean and sample standard deviation; the mean alone of a single value."""
    mean = f"{np.mean(values):.{digits}f}"
    return f"{mean} ± {np.std(values, ddof=1):.{digits}f}" if len(values) > 1 else mean


def accuracy_table(rows: dict[str, list[Run]], name: str, excluded: bool, against: str | None) -> str:
    """One row per label with an evaluation of that kind, and popularity."""
    head = ["row", "seeds", *_METRICS, "cosine of the generated item (last behaviour)", "as query, ndcg@10", "calls"]
    head += ["ms per user", "minutes of training"]
    head += [f"{metric} against {against} [95 %]" for metric in _COMPARED if against]
    body, popularity = [], None
    for label, runs in rows.items():
        found = [next(_main(run, excluded), None) for run in runs]
        if runs[0].data != name or None in found:
            continue
        cells = [label, str(len(runs)), *(_metric_cell(found, m) for m in _METRICS)]
        speed = np.mean([e["milliseconds_per_user"] for e in found])
        cells += [*_slot_cells(found), f"{speed:.2f}", f"{np.mean([run.minutes for run in runs]):.0f}"]
        if against:
            ranked = all(_is_excluded(run) == excluded for run in (*runs, *rows[against]))
            shown = label != against and ranked
            cells += [_difference(runs, rows[against], metric) if shown else "" for metric in _COMPARED]
        body.append((np.mean([_mean(e, "ndcg@10") for e in found]), cells))
        popularity = popularity or next((e["popularity"] for e in found if "popularity" in e), None)
    body.sort(key=lambda pair: -pair[0])
    lines = [cells for _, cells in body]
    if popularity:
        lines.append(["popularity", "", *(_metric_cell([popularity], m) for m in _METRICS)])
    return _markdown(head, lines)


def sampler_table(rows: dict[str, list[Run]]) -> str:
    """NDCG@10 and Recall@20 by estimator calls and intents, of rows that were evaluated with several samplers."""
    body = []
    for label, runs in rows.items():
        by_sampler = _by_sampler(runs)
        if len(by_sampler) < 2:
            continue
        for (calls, samples), found in sorted(by_sampler.items()):
            scores = [mean_over_seeds([_mean(e, m) for e in found]) for m in ("ndcg@10", "recall@20")]
            body.append([label, str(calls), str(samples), *scores, *_slot_cells(found)[:2]])
    head = ["row", "calls", "intents", "ndcg@10", "recall@20", "cosine (last behaviour)", "as query, ndcg@10"]
    return _markdown(head, body) if body else ""


def commands_table(rows: dict[str, list[Run]]) -> str:
    """How each row was made."""
    body = []
    for label, runs in rows.items():
        origin = runs[0].origin
        seeds = ", ".join(str(run.config["seed"]) for run in runs)
        commits = ", ".join(sorted({str(run.origin["commit"]) for run in runs}))
        hardware = f"{origin['devices']} x {origin['device']}, {origin['cores']} core(s), jax {origin['jax']}"
        body.append([label, f"`{portable_command(origin['command'], runs[0].folder.name)}`", seeds, hardware, commits])
    return _markdown(["row", "command", "seeds", "hardware", "commit"], body)


def portable_command(command: str, name: str) -> str:
    """A command without the paths of the machine it ran on: data is in DIR, the workdir in runs/, the rest in FILE."""
    words, out = shlex.split(command), []
    for i, word in enumerate(words):
        if i and words[i - 1] == "--workdir":
            word = f"runs/{name}"
        word = re.sub(r"^(--workdir=).*", rf"\g<1>runs/{name}", word)
        word = re.sub(r"^(--config\.data\.path=).*", r"\g<1>DIR", word)
        out.append(re.sub(r"^(--[\w.]+=)?/.*", r"\g<1>FILE", word))
    return shlex.join(out)


def figures(rows: dict[str, list[Run]], folder: pathlib.Path) -> list[tuple[str, pathlib.Path]]:
    """Draws what there is data for; (caption, file) of each figure."""
    plans: list[tuple[str, str, str, str, Callable[[list[Run]], Curve]]] = [
        ("validation", "Validation by training step", "step", "ndcg@10", _validation_curve),
        ("sampler", "Accuracy by estimator calls", "calls", "ndcg@10", _sampler_curve),
        ("denoising", "Error of one call on the truth noised to r", "r", "RMS error / of the last behaviour", _by_r),
        ("popularity", "Recall by the target's popularity", "decile, least popular first", "recall@20", _by_popularity),
        ("history", "Recall by length of the history", "behaviours", "recall@20", _by_history),
    ]
    drawn = []
    for name, title, x, y, curve in plans:
        curves = {label: values for label, runs in rows.items() if len((values := curve(runs))[0]) > 1}
        if curves:
            drawn.append((title, _draw(folder / f"{name}.svg", title, x, y, curves)))
    return drawn


def document(runs: Iterable[Run], out: pathlib.Path, against: Sequence[str], intro: str) -> str:
    """The page; draws the figures beside it."""
    rows = rows_of(runs)
    for label in against:
        if label not in rows:
            raise ResultsError(f"--against {label}: rows are {', '.join(rows)}")
    parts = ["# Results", intro]
    for name in sorted({runs[0].data for runs in rows.values()}):
        for excluded in (False, True):
            fitting = (a for a in against if rows[a][0].data == name and _is_excluded(rows[a][0]) == excluded)
            table = accuracy_table(rows, name, excluded, next(fitting, None))
            if table.count("\n") > 1:
                parts += [f"## {name}, seen items {'excluded' if excluded else 'not excluded'}", table]
    if table := sampler_table(rows):
        parts += ["## Sampler", table]
    for caption, path in figures(rows, out.parent / "figures"):
        parts += [f"## {caption}", f"![{caption}]({path.relative_to(out.parent).as_posix()})"]
    return "\n\n".join([*parts, "## Commands", commands_table(rows)]) + "\n"


def _is_excluded(run: Run) -> bool:
    """Whether the evaluation that ended the run, of which the ranks are kept, excluded seen items."""
    return run.evaluations["eval"]["seen_items_excluded"]


def _main(run: Run, excluded: bool) -> Iterable[dict[str, Any]]:
    """The run's evaluation as it was trained, with seen items excluded or not."""
    trained = run.config["diffusion"]
    for result in run.evaluations.values():
        slot = result.get("slot")
        same = slot is None or (slot["calls"], slot["samples"]) == (trained["sampler_steps"], trained["samples"])
        if same and result["seen_items_excluded"] == excluded and result["split"] == "test":
            yield result


def _by_sampler(runs: list[Run]) -> dict[tuple[int, int], list[dict[str, Any]]]:
    found: dict[tuple[int, int], list[dict[str, Any]]] = collections.defaultdict(list)
    for run in runs:
        for result in run.evaluations.values():
            if "slot" in result and result["seen_items_excluded"] == _is_excluded(run) and result["split"] == "test":
                found[result["slot"]["calls"], result["slot"]["samples"]].append(result)
    return found


def _mean(result: dict[str, Any], metric: str) -> float:
    return result["metrics"][metric]["mean"]


def _metric_cell(found: list[dict[str, Any]], metric: str) -> str:
    """Over seeds; empty where an evaluation lacks the metric (kept runs older than the log loss have none)."""
    lacking = any(metric not in result["metrics"] for result in found)
    return "" if lacking else mean_over_seeds([_mean(result, metric) for result in found])


def _slot_cells(found: list[dict[str, Any]]) -> list[str]:
    if "slot" not in found[0]:
        return ["", "", ""]
    slots = [result["slot"] for result in found]
    last = np.mean([slot["cosine_of_last"] for slot in slots])
    cosine = f"{mean_over_seeds([slot['cosine'] for slot in slots], 3)} ({last:.3f})"
    return [cosine, mean_over_seeds([slot["as_query"]["ndcg@10"] for slot in slots]), str(slots[0]["calls"])]


def _difference(runs: list[Run], others: list[Run], metric: str) -> str:
    """A metric, averaged over noise keys and seeds, against another row's; paired bootstrap over users."""
    mine, theirs = (_target_scores(group, metric) for group in (runs, others))
    if mine is None or theirs is None or not np.array_equal(mine[1], theirs[1]):
        return "other targets"
    d, low, high = bootstrap_difference(mine[0], theirs[0], mine[1], draws=2000, seed=0)
    return f"{d:+.4f} [{low:+.4f}, {high:+.4f}]"


def _target_scores(runs: list[Run], metric: str) -> tuple[np.ndarray, np.ndarray] | None:
    cutoff = int(metric.split("@")[1])
    scores, users = [], None
    for run in runs:
        path = run.folder / "test_ranks.npz"
        if not path.exists():
            return None
        with np.load(path) as arrays:
            warm = arrays["positions"] > 0
            if users is not None and not np.array_equal(users, arrays["users"][warm]):
                return None
            users = arrays["users"][warm]
            scores.append(target_metrics(arrays["ranks"][:, warm], (cutoff,))[metric].mean(axis=0))
    return np.mean(scores, axis=0), users


def _validation_curve(runs: list[Run]) -> Curve:
    by_step = collections.defaultdict(list)
    for run in runs:
        for line in run.lines:
            if line["split"] == "validation" and "ndcg@10" in line:
                by_step[line["step"]].append(line["ndcg@10"])
    return list(by_step), [float(np.mean(values)) for values in by_step.values()]


def _sampler_curve(runs: list[Run]) -> Curve:
    single = sorted((calls, found) for (calls, samples), found in _by_sampler(runs).items() if samples == 1)
    return [calls for calls, _ in single], [float(np.mean([_mean(e, "ndcg@10") for e in found])) for _, found in single]


def _by_r(runs: list[Run]) -> Curve:
    slot = runs[0].evaluations["eval"].get("slot", {})
    rows = slot.get("denoised_by_r", [])
    return [row["r"] for row in rows], [row["rms_error"] / slot["rms_error_of_last"] for row in rows]


def _by_popularity(runs: list[Run]) -> Curve:
    values = np.mean([run.evaluations["eval"]["recall@20_by_popularity_decile"] for run in runs], axis=0)
    return list(range(1, len(values) + 1)), values.tolist()


def _by_history(runs: list[Run]) -> Curve:
    first = runs[0].evaluations["eval"]
    values = np.mean([run.evaluations["eval"]["recall@20_by_history_decile"] for run in runs], axis=0)
    return first["history_length_of_decile"], values.tolist()


def _draw(path: pathlib.Path, title: str, x: str, y: str, curves: dict[str, Any]) -> pathlib.Path:
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    with pyplot.rc_context({"svg.hashsalt": "t2diff", "svg.fonttype": "none"}):
        figure, axes = pyplot.subplots(figsize=(7, 4), layout="constrained")
        for label, (xs, ys) in curves.items():
            axes.plot(xs, ys, marker="o", markersize=3, label=label)
        axes.set(title=title, xlabel=x, ylabel=y)
        axes.grid(alpha=0.3)
        axes.legend(fontsize="small")
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, metadata={"Date": None})
        pyplot.close(figure)
    return path


def _markdown(head: list[str], body: list[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *([*row, *[""] * (len(head) - len(row))] for row in body)]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


def main(argv: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description="Writes a page of results from the folders of finished runs.")
    parser.add_argument("runs", type=pathlib.Path, help="folder of run folders")
    parser.add_argument("--out", type=pathlib.Path, required=True, help="the page; figures go to figures/ beside it")
    against = "rows, one a table, that the others are compared with, by paired bootstrap"
    parser.add_argument("--against", nargs="*", default=[], metavar="ROW", help=against)
    parser.add_argument(
        "--keep", type=pathlib.Path, help="folder for small copies of the runs, of which the page can be made again"
    )
    parser.add_argument("--intro", type=pathlib.Path, help="file with text for the top of the page")
    args = parser.parse_args(argv)
    intro = args.intro.read_text(encoding="utf-8").strip() if args.intro else "Generated by `t2diff_jax.results`."
    try:
        runs = read_runs(args.runs)
        page = document(runs, args.out, args.against, intro)
        for run in runs if args.keep else ():
            keep(run, args.keep)
    except ResultsError as error:
        parser.exit(1, f"ResultsError: {error}\n")
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(page, encoding="utf-8")


if __name__ == "__main__":
    main()
