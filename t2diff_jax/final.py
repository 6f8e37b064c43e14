"""The final evaluation of a run: a checkpoint on the test targets, beside the popularity baseline."""

import json
import pathlib
import zipfile
import zlib
from typing import Any

import jax
import numpy as np

from t2diff_jax.checkpoint import Checkpointer, CheckpointError
from t2diff_jax.config import Config
from t2diff_jax.data.splits import Targets
from t2diff_jax.diffusion.samplers import sampling_steps
from t2diff_jax.experiment import Experiment, build
from t2diff_jax.metrics import bootstrap_difference, target_metrics
from t2diff_jax.report import recommendations_text, report, summarise
from t2diff_jax.sharding import to_host
from t2diff_jax.train_state import TrainState
from t2diff_jax.workdir import CONFIG_FILE, check_same_model, tell_other_logs
from t2diff_jax.writer import metrics_table, say, write_arrays, write_json

_STEPS_SHOWN, _DENOISED_TARGETS = 8, 1000  # of the table of denoising quality by r


def evaluation_name(split: str) -> str:
    """What the evaluation of a split is called where the user gives no name."""
    return "eval" if split == "test" else f"eval_{split}"


def _ranks_file(name: str) -> str:
    """Where the ranks of an evaluation are kept: of those without a name in test_ranks.npz, validation_ranks.npz."""
    usual = {evaluation_name(split): split for split in ("test", "validation")}
    return f"{usual.get(name, name)}_ranks.npz"


def evaluate_checkpoint(
    experiment: Experiment, workdir: pathlib.Path, step: int | None, name: str = "eval", split: str = "test"
) -> dict[str, Any]:
    """Evaluates a checkpoint (the best by validation if `step` is None) on the targets of a split: test, validation.

    Prints the table, writes `{name}.json` and `{name}_ranks.npz`, for the usual names `{split}_ranks.npz` (users,
    positions, targets; ranks and log_loss [noise_keys, n]).
    """
    config, log, targets = experiment.config, experiment.log, getattr(experiment.split, split)
    state, step = restore(experiment, workdir, step)
    counts = to_host(experiment.mesh, experiment.catalogue.counts)
    evaluator, variables = experiment.evaluator(), state.evaluation_variables()
    del state  # the optimiser's moments
    scores = evaluator.score_targets(variables, targets, config.eval.noise_keys)
    result = {"model": config.model.name, "step": step, "protocol": config.data.protocol, "split": split}
    result |= report(evaluator, variables, targets, scores, counts)
    result["parameters"] = sum(leaf.size for leaf in jax.tree.leaves(variables["params"]))
    result["milliseconds_per_user"] = evaluator.milliseconds_per_user(variables, targets)
    if "slot" in result:
        diffusion = config.diffusion
        steps = sampling_steps(diffusion.steps, min(diffusion.steps, _STEPS_SHOWN))[::-1].tolist()
        by_r = evaluator.denoising_quality(variables, targets.first(_DENOISED_TARGETS), steps)
        result["slot"] |= {"calls": diffusion.sampler_steps, "samples": diffusion.samples, "denoised_by_r": by_r}
    rows = {config.model.name: summarise(scores, targets, config.eval.ks)}
    if config.eval.popularity:
        popular = experiment.popularity_evaluator()
        # Counts are no logits.
        popular_scores = popular.score_targets({}, targets, 1)._replace(log_loss=None)
        result["popularity"] = report(popular, {}, targets, popular_scores, counts)
        rows["popularity"] = {
            name: (mean, None) for name, (mean, _) in summarise(popular_scores, targets, config.eval.ks).items()
        }
    say(_describe(result, rows, config.eval.select))
    if jax.process_index() == 0:
        items = log.items[log.offsets[targets.users] + targets.positions]
        arrays = dict(users=targets.users, positions=targets.positions, targets=items, **scores._asdict())
        write_arrays(workdir / _ranks_file(name), **arrays)
        write_json(workdir / f"{name}.json", result)
    return result


def _describe(result: dict[str, Any], rows: dict[str, dict[str, tuple[float, float | None]]], metric: str) -> str:
    seen = "excluded" if result["seen_items_excluded"] else "not excluded"
    head = (
        f"\n{result['split']}, {result['protocol']}, checkpoint of step {result['step']}: "
        f"{result['targets']:,} targets of {result['users']:,} users ranked among "
        f"{result['catalogue']:,} items, seen items {seen}, {result['noise_keys']} noise key(s)"
    )
    cold = result["targets_without_history"]
    slot = f"\n\n{_describe_slot(result['slot'], metric)}" if "slot" in result else ""
    tail = f"\n{cold:,} further targets have no history; see metrics_without_history in the result" if cold else ""
    if had := result["targets_seen_before"]:
        tail += f"\n{had:,} of the targets are items that their users had before: not ranked, so never found"
    search = result.get("search")
    how = f"{search['dtype']}{', approximate' if search['recall'] < 1 else ''}" if search else ""
    searched = f"\nsearch in {how}: {search['found']:.2%} of the top {search['k']}" if search else ""
    speed = f"\n\n{result['parameters']:,} parameters; user tower: {result['milliseconds_per_user']:.3f} ms per user"
    return f"{head}\n\n{metrics_table(rows)}{slot}{speed}{searched}{tail}"


def _describe_slot(slot: dict[str, Any], metric: str) -> str:
    return (
        f"generated item: cosine to the next one {slot['cosine']:.3f} (last behaviour {slot['cosine_of_last']:.3f}), "
        f"root mean square error {slot['rms_error']:.3f} ({slot['rms_error_of_last']:.3f}), as the query {metric} "
        f"{slot['as_query'][metric]:.4f}"
    )


def reopen(config: Config, workdir: pathlib.Path) -> Experiment:
    """The parts of a run that was trained in `workdir`, built anew; tells what it is.

    Raises:
      ConfigError: `config` describes another model or other data than the workdir's.
    """
    check_same_model(workdir, config)
    if config.train.compilation_cache:
        jax.config.update("jax_compilation_cache_dir", config.train.compilation_cache)
    experiment = build(config)
    say(experiment.summary())
    return experiment


def restore(experiment: Experiment, workdir: pathlib.Path, step: int | None) -> tuple[TrainState, int]:
    """The state of a checkpoint and its step: the best by validation where `step` is None, else the latest.

    Raises:
      CheckpointError: there is no checkpoint, or it cannot be used.
    """
    config, digest = experiment.config, experiment.log.digest()
    args = dict(keep=config.train.keep, select=config.eval.select, log_digest=digest, read_only=True)
    with Checkpointer(workdir, **args) as checkpointer:
        if step is None:  # a given step is restored even where another checkpoint is damaged
            step = checkpointer.best_step()
        if step is None:
            step = checkpointer.latest_step()
        if step is not None:
            return checkpointer.restore(step, experiment.abstract_state), step
    raise CheckpointError(f"{workdir} holds no checkpoint yet: train first, or name another --workdir")


def check_comparable(workdir: pathlib.Path, other: pathlib.Path, name: str = "eval") -> None:
    """Checks what of `compare` can be known before `workdir` is evaluated.

    Raises:
      CheckpointError: the other run was not evaluated under that name, or is on another log.
    """
    _read_ranks(other, name)
    _read_json(other, f"{name}.json")
    if tell_other_logs(*(_read_json(folder, CONFIG_FILE) for folder in (workdir, other))):
        raise CheckpointError(f"{other} belongs to another log than {workdir}: train both on the same files")


def compare(workdir: pathlib.Path, other: pathlib.Path, ks: tuple[int, ...], name: str = "eval") -> str:
    """A table of the evaluations of a name of two runs: both means, and their difference with its interval.

    Raises:
      CheckpointError: a run was not evaluated, on other targets or another log, or among other items.
    """
    check_comparable(workdir, other, name)
    mine, theirs = _read_ranks(workdir, name), _read_ranks(other, name)
    for key in ("catalogue", "seen_items_excluded"):
        ours, others = (_read_json(folder, f"{name}.json").get(key) for folder in (workdir, other))
        if ours != others:
            raise CheckpointError(
                f"{other} was ranked among other items than {workdir} ({key}: {others} there, {ours} here): "
                "evaluate both alike, under one --name"
            )
    for column in ("users", "positions", "targets"):
        if not np.array_equal(mine[column], theirs[column]):
            raise CheckpointError(
                f"{other} was evaluated on other targets than {workdir}: same data, protocol and seed?"
            )
    warm = mine["positions"] > 0
    a, b = (target_metrics(run["ranks"][:, warm], ks) for run in (mine, theirs))
    lines = [f"against {other}: difference, and its 95 % interval by paired bootstrap over users\n"]
    lines.append(f"{'metric':<11} {'here':>6}  {'there':>6}  {'here - there':>12}")
    for metric in a:
        ours, other_values = a[metric].mean(axis=0), b[metric].mean(axis=0)
        difference, low, high = bootstrap_difference(ours, other_values, mine["users"][warm], draws=2000, seed=0)
        means = f"{ours.mean():.4f}  {other_values.mean():.4f}"
        lines.append(f"{metric:<11} {means}  {difference:+12.4f}  [{low:+.4f}, {high:+.4f}]")
    return "\n".join(lines)


def _read_ranks(workdir: pathlib.Path, name: str) -> dict[str, np.ndarray]:
    path = workdir / _ranks_file(name)
    try:
        with np.load(path, allow_pickle=False) as arrays:
            return {column: arrays[column] for column in ("users", "positions", "targets", "ranks")}
    except (OSError, ValueError, KeyError, EOFError, NotImplementedError, zipfile.BadZipFile, zlib.error) as error:
        raise _not_evaluated(path, error) from error


def _read_json(workdir: pathlib.Path, file: str) -> dict[str, Any]:
    try:
        return json.loads((workdir / file).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise _not_evaluated(workdir / file, error) from error


def _not_evaluated(path: pathlib.Path, error: Exception) -> CheckpointError:
    return CheckpointError(f"{path} cannot be read ({type(error).__name__}: {error}): evaluate that run first")


def show_recommendations(experiment: Experiment, workdir: pathlib.Path, step: int | None, targets: Targets) -> None:
    """Prints what the model recommends for the requests of targets, with titles where the log has them."""
    state, _ = restore(experiment, workdir, step)
    _, items = experiment.evaluator().recommend(state.evaluation_variables(), targets, min(10, experiment.log.n_items))
    say(recommendations_text(experiment.log, targets, items))


def export_vectors(
    experiment: Experiment, workdir: pathlib.Path, step: int | None, targets: Targets, folder: pathlib.Path
) -> None:
    """Writes what an index elsewhere needs: items.npy [N + 1, U], row i the vector of item i, and its own id in
    item_ids.npy (row 0 is no item); users.npy [n, M, U], users_mask.npy [n, M] and user_ids.npy for the requests of
    targets, in order.

    A score is the inner product; of M user vectors the scores are merged as `eval.merge` says.
    """
    log = experiment.log
    state, _ = restore(experiment, workdir, step)
    items, users, mask = experiment.evaluator().vectors(state.evaluation_variables(), targets)
    if jax.process_index() == 0:
        folder.mkdir(parents=True, exist_ok=True)
        arrays = {"items": items, "item_ids": log.item_ids, "users": users, "users_mask": mask}
        arrays["user_ids"] = log.user_ids[targets.users]
        for name, array in arrays.items():
            np.save(folder / f"{name}.npy", array, allow_pickle=False)
