"""Finished runs as their folders tell them: reading, small copies, grouping into rows, which evaluation is which."""

import collections
import dataclasses
import itertools
import json
import pathlib
import re
import shlex
import shutil
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from t2diff_jax.config_values import NO_NUMBER

_NO_DIFFERENCE = ("seed", "data.path", *NO_NUMBER)
_SEED = re.compile(r"_seed\d+$")


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
      log_digest: of its log; "" in copies that an older version kept.
    """

    folder: pathlib.Path
    config: dict[str, Any]
    origin: dict[str, Any]
    evaluations: dict[str, dict[str, Any]]
    lines: list[dict[str, Any]]
    log_digest: str

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
      ResultsError: a file is missing or unreadable, or not what ended the run; names it.
    """

    def load(name: str, parse: Callable[[str], Any] = json.loads) -> Any:
        try:
            return parse((folder / name).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise ResultsError(f"{folder / name}: {error}; finish the run, or move its folder away") from error

    evaluations = {path.stem: load(path.name) for path in sorted(folder.glob("eval*.json"))}
    if "eval" not in evaluations:
        raise ResultsError(f"{folder} has no eval.json: finish the run, or move its folder away")
    for name, result in evaluations.items():
        if "milliseconds_per_user" not in result:
            raise ResultsError(f"{folder / name}.json is of an older version: run eval.py on it again")
    lines = load("metrics.jsonl", lambda text: list(map(json.loads, text.splitlines())))
    stored = load("config.json")
    run = Run(folder, stored["config"], load("run.json"), evaluations, lines, stored.get("log_digest", ""))
    if not (is_excluded(run) == run.config["eval"]["exclude_seen"] and _as_trained(run, evaluations["eval"])):
        raise ResultsError(
            f"{folder / 'eval.json'} is an evaluation with other seen items or another sampler than the run's own: "
            "run eval.py on it again, without flags"
        )
    return run


def read_runs(folder: pathlib.Path) -> tuple[list[Run], list[str]]:
    """All finished runs of a folder, by name; and the names of those that were started and not tested yet.

    Raises:
      ResultsError: none is finished, or one is not whole.
    """
    started = sorted(path.parent for path in folder.glob("*/config.json"))
    finished = [run for run in started if (run / "eval.json").exists()]
    if not finished:
        raise ResultsError(f"{folder} holds no finished run" + f" ({len(started)} that are not)" * bool(started))
    return list(map(read_run, finished)), [run.name for run in started if run not in finished]


def keep(run: Run, folder: pathlib.Path) -> None:
    """Copies what the page is made of to a folder of the run's name: no checkpoints, no paths of the machine.

    Raises:
      ResultsError: the copy would be the run itself.
    """
    copy = folder / run.folder.name
    if copy.resolve() == run.folder.resolve():
        raise ResultsError(f"--keep {folder}: is where the runs lie; name another folder")
    copy.mkdir(parents=True, exist_ok=True)
    origin = {
        **run.origin,
        "command": portable_command(run.origin["command"], run.folder.name),
        "environment": portable_environment(run.origin),
    }
    config = {"log_digest": run.log_digest, "config": _without_folders(run.config)}
    for name, value in {"config": config, "run": origin, **run.evaluations}.items():
        (copy / f"{name}.json").write_text(json.dumps(value, indent=1) + "\n", encoding="utf-8")
    for name in ("metrics.jsonl", "test_ranks.npz"):
        if (run.folder / name).exists():
            shutil.copyfile(run.folder / name, copy / name)


def _without_folders(value: Any) -> Any:
    """A configuration whose absolute paths are file names alone."""
    if isinstance(value, dict):
        return {name: _without_folders(v) for name, v in value.items()}
    return pathlib.PurePath(value).name if isinstance(value, str) and value.startswith("/") else value


def _flat(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """A value by its dotted name."""
    parts = (_flat(v, f"{prefix}{name}.") if isinstance(v, dict) else {prefix + name: v} for name, v in tree.items())
    return dict(collections.ChainMap(*parts))


def _generates(run: Run) -> bool:
    model = run.config["model"]
    return model["name"].startswith("t2diff") and model["slot"] != "empty"


def rows_of(runs: Iterable[Run]) -> dict[str, list[Run]]:
    """Runs by row, seeds in order. Where the data lie is no difference: copies that were kept stand beside new runs.

    Where the digest of a log is not known, its name stands for it. A key that only one of two runs has is no difference
    (the version that did not write it did what its default says), nor is one that only says how the same numbers are
    come by.

    Raises:
      ResultsError: runs of one row differ in more than the seed, or in their logs.
    """

    def of_other_logs(one: Run, other: Run) -> bool:
        known = one.log_digest and other.log_digest
        return one.log_digest != other.log_digest if known else one.data != other.data

    def differ(one: Run, other: Run) -> bool:
        a, b = (_flat(_without_folders(run.config)) for run in (one, other))
        free = _NO_DIFFERENCE if _generates(one) or _generates(other) else (*_NO_DIFFERENCE, "diffusion.")
        return any(a[name] != b[name] for name in a.keys() & b.keys() if not name.startswith(free))

    rows: dict[str, list[Run]] = collections.defaultdict(list)
    for run in runs:
        rows[run.label].append(run)
    for label, group in rows.items():
        group.sort(key=lambda run: run.config["seed"])
        if any(differ(*pair) for pair in itertools.combinations(group, 2)):
            raise ResultsError(f"the runs {label}_seed* differ in more than their seed")
        if any(of_other_logs(*pair) for pair in itertools.combinations(group, 2)):
            raise ResultsError(f"the runs {label}_seed* are on different logs: move those of one log away")
        if len({run.config["seed"] for run in group}) < len(group):
            raise ResultsError(f"two of the runs {label}_seed* have the same seed")
    return dict(rows)


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


def portable_environment(origin: dict[str, Any]) -> str:
    """What `run.json` tells of the environment, "" where it is older, without the paths of the machine."""
    return re.sub(r"=/[^\s']*", "=FILE", origin.get("environment", ""))


def is_excluded(run: Run) -> bool:
    """Whether the evaluation that ended the run, of which the ranks are kept, excluded seen items."""
    return run.evaluations["eval"]["seen_items_excluded"]


def main_evaluation(run: Run, excluded: bool) -> dict[str, Any] | None:
    """The run's evaluation as it was trained, with seen items excluded or not; None where there is none."""
    return next((e for e in _own_tests(run) if _as_trained(run, e) and e["seen_items_excluded"] == excluded), None)


def by_sampler(runs: list[Run]) -> dict[tuple[int, int], dict[int, dict[str, Any]]]:
    """Test evaluations of a row, ranked as its runs were at their end, by (estimator calls, intents), then by seed.

    One of each seed, and the same seeds for all: those that have every one of them. Where none has, each has its own.
    """
    found: dict[tuple[int, int], dict[int, dict[str, Any]]] = collections.defaultdict(dict)
    for run in runs:
        for result in _own_tests(run):
            if "slot" in result and result["seen_items_excluded"] == is_excluded(run):
                found[result["slot"]["calls"], result["slot"]["samples"]].setdefault(run.config["seed"], result)
    shared = set.intersection(*map(set, found.values())) if found else set()
    return {key: {seed: e for seed, e in of.items() if seed in shared or not shared} for key, of in found.items()}


def metric_mean(result: dict[str, Any], metric: str) -> float:
    """A metric of one evaluation, over its noise keys; NaN where it has none: other cut-offs, an older version."""
    mean = result["metrics"].get(metric, {}).get("mean")
    return np.nan if mean is None else mean


def _own_tests(run: Run) -> Iterable[dict[str, Any]]:
    """Test evaluations of the checkpoint that ended the run, its own first."""
    own = run.evaluations["eval"]
    for result in (own, *(e for name, e in run.evaluations.items() if name != "eval")):
        if result["split"] == "test" and result["step"] == own["step"]:
            yield result


def _as_trained(run: Run, result: dict[str, Any]) -> bool:
    """Whether an evaluation generated as the run's configuration says."""
    trained, slot = run.config["diffusion"], result.get("slot")
    return slot is None or (slot["calls"], slot["samples"]) == (trained["sampler_steps"], trained["samples"])
