"""The commands as a user meets them: logs in, metrics out, and one clear line where something is wrong."""

import json
import re
import shutil

import numpy as np
import pytest
import tiny
from data_files import GENRES, make_100k, write
from test_results import evaluation, make_run
from tiny import shared_compiles  # noqa: F401

from t2diff_jax import final
from t2diff_jax.checkpoint import CheckpointError
from t2diff_jax.config import SyntheticConfig
from t2diff_jax.data.sources.synthetic import make_log
from t2diff_jax.workdir import open_workdir

pytestmark = pytest.mark.usefixtures("shared_compiles")
QUICKSTART = "configs/quickstart.py"
SHORTER = (
    "--config.data.synthetic.n_users=400", "--config.data.window=16", "--config.data.first_target=5",
    "--config.data.eval_positions=5", "--config.model.dim=16", "--config.model.category_dim=4",
    "--config.model.content_dim=4", "--config.model.session_length=6", "--config.model.layers=1",
    "--config.model.hidden=32", "--config.model.activation_hidden=16", "--config.diffusion.steps=10",
    "--config.diffusion.filters=(16, 16)", "--config.diffusion.step_dim=16", "--config.optim.learning_rate=0.01",
    "--config.optim.warmup=20", "--config.train.batch_size=128", "--config.train.steps=200",
    "--config.train.eval_every=100", "--config.train.checkpoint_every=100", "--config.train.log_every=50",
    "--config.eval.ks=(5, 10, 20)",
)  # fmt: skip


@pytest.fixture(scope="module")
def quickstart(tmp_path_factory):
    """Workdir and output of the quickstart, shortened."""
    workdir, cache = tmp_path_factory.mktemp("runs") / "quickstart", tmp_path_factory.mktemp("cache")
    output = tiny.succeed("train.py", workdir, *SHORTER, f"--config.train.compilation_cache={cache}", config=QUICKSTART)
    assert any(cache.iterdir())
    return workdir, output


@pytest.fixture
def copied(quickstart, tmp_path):
    """A copy of the quickstart's workdir, to be spoilt."""
    return shutil.copytree(quickstart[0], tmp_path / "run")


# --- what a run says and leaves --------------------------------------------------------------------------------------


def test_training_says_what_it_does(quickstart):
    workdir, output = quickstart
    assert re.search(
        r"^synthetic: 400 users, [\d,]+ items, [\d,]+ behaviours \(of users with at least 3, items with at least 1\)\n"
        r"t2diff, softmax over all items, on 1 cpu device\(s\), .*\ncompiling, then steps 1 to 200\n",
        output,
    )
    progress = r"^step +{}/200  loss [\d.]+  grad_norm [\d.]+  [\d,]+ examples/s  ETA .*\d s$"
    for step in (50, 100, 150, 200):
        assert re.search(progress.format(step), output, re.MULTILINE)
    assert re.search(r"^step 100: validation ndcg@10 0\.\d{4}$", output, re.MULTILINE)
    assert re.search(
        r"^test, user_holdout, checkpoint of step \d+: \d+ targets of 80 users ranked", output, re.MULTILINE
    )
    assert re.search(r"^metric +t2diff +popularity$", output, re.MULTILINE)
    assert re.search(r"^ndcg@10 +0\.\d{4} ± 0\.\d{4} +0\.\d{4}$", output, re.MULTILINE)
    for name in ("checkpoints", "metrics.jsonl", "eval.json", "config.json", "run.json"):
        assert str(workdir / name) in output and (workdir / name).exists()


def test_the_result_file(quickstart):
    workdir, _ = quickstart
    result = tiny.result(workdir)
    known = {key: result[key] for key in ("model", "protocol", "split", "noise_keys", "users")}
    assert known == {
        "model": "t2diff", "protocol": "user_holdout", "split": "test", "noise_keys": 5, "users": 80,
    }  # fmt: skip
    assert 390 <= result["targets"] <= 400  # five per user, fewer where the history is short
    assert result["seen_items_excluded"] is False and result["targets_without_history"] == 0
    names = {f"{name}@{k}" for name in ("recall", "mrr", "ndcg") for k in (5, 10, 20)}
    assert set(result["metrics"]) == names | {"log_loss"} and set(result["popularity"]["metrics"]) == names
    assert 3 < result["metrics"]["log_loss"]["mean"] < np.log(result["catalogue"])
    for value in (result["metrics"][name] for name in names):
        assert 0 < value["mean"] < 1 and 0 <= value["spread"] < 0.05
    assert any(value["spread"] > 0 for value in result["metrics"].values())  # the noise keys do differ
    best = max((line for line in tiny.metrics(workdir) if line["split"] == "validation"), key=lambda x: x["ndcg@10"])
    assert result["step"] == best["step"]
    with np.load(workdir / "test_ranks.npz") as file:
        assert file["ranks"].shape == (5, result["targets"]) and file["targets"].shape == (result["targets"],)
        recall = (file["ranks"] <= 20).mean(axis=1)
    assert result["metrics"]["recall@20"]["mean"] == pytest.approx(recall.mean())
    assert result["metrics"]["recall@20"]["spread"] == pytest.approx(recall.std(ddof=1), rel=1e-4)


def test_the_model_beats_popularity(quickstart):
    result = tiny.result(quickstart[0])
    for metric in ("recall@20", "ndcg@10"):
        assert result["metrics"][metric]["mean"] > 1.3 * result["popularity"]["metrics"][metric]["mean"]


@pytest.mark.parametrize("config", ["named", "of the run"])
def test_evaluation_gives_the_same_numbers(quickstart, copied, config):
    (copied / "eval.json").unlink()
    flags = SHORTER if config == "named" else ()
    named = QUICKSTART if config == "named" else None
    output = tiny.succeed("eval.py", copied, *flags, f"--export={copied / 'vectors'}", config=named)
    arrays = {path.stem: np.load(path, allow_pickle=False) for path in (copied / "vectors").iterdir()}
    assert set(arrays) == {"items", "item_ids", "users", "users_mask", "user_ids"}
    assert len(arrays["items"]) == len(arrays["item_ids"]) and len(arrays["users"]) == len(arrays["user_ids"])
    with np.load(copied / "test_ranks.npz") as run:
        scores = arrays["users"][:, 0].astype(np.float64) @ arrays["items"][1:].T.astype(np.float64)
        own = scores[np.arange(len(scores)), run["targets"] - 1][:, None]
        assert np.abs(1 + (scores > own).sum(axis=1) - run["ranks"][0]).max() < 1  # ties apart
    assert (np.diff(arrays["item_ids"][1:]) > 0).all() and arrays["users_mask"].all()
    assert tiny.result(copied) == tiny.result(quickstart[0])
    table = output[output.index("metric") : output.index("user tower: ")].strip()
    assert table in quickstart[1]


def test_evaluation_of_a_given_step_shows_recommendations(quickstart, copied):
    other = ({100, 200} - {tiny.result(quickstart[0])["step"]}).pop()
    free = ("--config.eval.exclude_seen=True", "--config.eval.noise_keys=1", "--config.eval.popularity=False")
    against = ("--name=eval_other", "--against", str(copied))
    now = ("--now", "--show=2", f"--export={copied / 'now'}")
    output = tiny.succeed("eval.py", copied, *free, f"--step={other}", *now, *against, config=None)
    assert re.search(
        r"^against .*\n\nmetric +here   there  .*\nrecall@5 +0\.\d{4}  0\.\d{4} +\+0\.0000  \[", output, re.MULTILINE
    )
    result = json.loads((copied / "eval_other.json").read_text())
    assert tiny.result(copied) == tiny.result(quickstart[0])
    assert (result["step"], result["noise_keys"], result["seen_items_excluded"]) == (other, 1, True)
    assert "popularity" not in result and "seen items excluded" in output
    had = result["targets_seen_before"]
    assert had > 0 and f"\n{had:,} of the targets are items that their users had before: " in output
    assert len(re.findall(r"^user [12], after \d+ behaviours$", output, re.MULTILINE)) == 2 and "next:" not in output
    assert len(re.findall(r"^  last:  \w+ item \d+ \[\d+\]; ", output, re.MULTILINE)) == 2
    assert len(re.findall(r"^ +\d+\.  \w+ item \d+ \[\d+\]", output, re.MULTILINE)) == 20
    assert np.load(copied / "now" / "user_ids.npy").tolist() == list(range(1, 401))


def test_validation_targets_are_evaluated_on_request(copied):
    """As the training did at that step, with its one noise key; the test's result stays as it is."""
    before = tiny.result(copied)
    flags = ("--split=validation", "--config.eval.noise_keys=1", "--config.eval.popularity=False")
    more = ("--against", str(copied), "--show=2")
    output = tiny.succeed("eval.py", copied, *SHORTER, *flags, *more, config=QUICKSTART)
    assert re.search(r"^validation, user_holdout, checkpoint of step", output, re.MULTILINE)
    assert len(re.findall(r"^  next:  \w+ item \d+ \[\d+\]$", output, re.MULTILINE)) == 2
    result = json.loads((copied / "eval_validation.json").read_text())
    lines = map(json.loads, (copied / "metrics.jsonl").read_text().splitlines())
    expected = next(line for line in lines if (line["split"], line["step"]) == ("validation", result["step"]))
    assert result["metrics"]["ndcg@10"]["mean"] == pytest.approx(expected["ndcg@10"], rel=1e-5)
    assert result["split"] == "validation" and tiny.result(copied) == before
    with np.load(copied / "validation_ranks.npz") as arrays:
        assert len(arrays["targets"]) == result["targets"] != before["targets"]


def test_another_sampler_is_an_evaluation_of_its_own(quickstart, copied):
    """The sampler is free at evaluation; under another name the result of the training stays as it is."""
    flags = ("--name=eval_calls_2", "--config.diffusion.sampler_steps=2", "--config.eval.popularity=False")
    output = tiny.succeed("eval.py", copied, *SHORTER, *flags, config=QUICKSTART)
    assert f"written to {copied / 'eval_calls_2.json'}" in output
    assert re.search(r"^generated item: cosine to the next one -?0\.\d+ \(last behaviour", output, re.MULTILINE)
    one, two = tiny.result(copied), json.loads((copied / "eval_calls_2.json").read_text())
    assert one == tiny.result(quickstart[0])
    assert (one["slot"]["calls"], two["slot"]["calls"]) == (1, 2) and one["slot"]["as_query"] != two["slot"]["as_query"]
    by_r = one["slot"]["denoised_by_r"]
    assert [row["r"] for row in by_r] == sorted(row["r"] for row in by_r) and by_r == two["slot"]["denoised_by_r"]
    assert by_r[0]["rms_error"] < by_r[-1]["rms_error"]  # less noise, less error


def test_no_result_is_written_over_another_file(copied):
    before = tiny.snapshot(copied)
    for flags, told in [
        (["--name=config"], "must be eval or begin with it"),
        (["--name=eval", "--split=validation"], "that of the other split's result"),
        (["--name=eval_validation"], "that of the other split's result"),
        (["--now"], "--now says whose requests --show and --export are about"),
    ]:
        done = tiny.command("eval.py", copied, *SHORTER, *flags, config=QUICKSTART)
        assert done.returncode != 0 and told in done.stdout + done.stderr
        assert tiny.snapshot(copied) == before


def test_what_cannot_be_compared_shows_before_the_evaluation(tmp_path):
    open_workdir(tmp_path / "mine", tiny.tiny(), "one")
    make_run(tmp_path / "other", [evaluation(0.2)], log="one")
    for folder, told in (("other", r"other/test_ranks.npz .*evaluate that run first"), ("gone", "No such file")):
        done = tiny.command("eval.py", tmp_path / "mine", "--against", str(tmp_path / folder))
        assert done.returncode == 1 and re.search(told, done.stderr) and "Traceback" not in done.stderr
        assert [child.name for child in (tmp_path / "mine").iterdir()] == ["config.json"]


def test_another_evaluation_than_the_runs_own_has_a_name(tmp_path):
    open_workdir(tmp_path, tiny.tiny(), "")
    for flags, told in [
        (["--step=4"], "--step: the result would take the place of eval.json"),
        (["--config.eval.exclude_seen=True", "--name=eval"], "--config.eval.exclude_seen: the result would"),
        (["--config.diffusion.sampler_steps=2", "--split=validation"], "take the place of eval_validation.json"),
    ]:
        done = tiny.command("eval.py", tmp_path, *flags)
        assert done.returncode == 1 and told in done.stderr and "give it a --name" in done.stderr


def test_runs_that_ranked_other_items_are_not_compared(tmp_path):
    """Nor runs on another log, where it is known; ranks that an older version kept need nothing new beside them."""
    for name, excluded, log in (("a", False, "one"), ("b", True, "one"), ("c", False, "two"), ("d", False, "")):
        make_run(tmp_path / name, [evaluation(0.2, excluded=excluded)], ranks=[1.0, 20.0], log=log)
    with pytest.raises(CheckpointError, match=r"b was ranked among other items .*seen_items_excluded: True there"):
        final.compare(tmp_path / "a", tmp_path / "b", (10,))
    with pytest.raises(CheckpointError, match="c belongs to another log"):
        final.compare(tmp_path / "a", tmp_path / "c", (10,))
    assert "+0.0000" in final.compare(tmp_path / "a", tmp_path / "d", (10,))
    (tmp_path / "d" / "eval.json").unlink()
    with pytest.raises(CheckpointError, match=r"d/eval\.json cannot be read .*evaluate that run first"):
        final.compare(tmp_path / "a", tmp_path / "d", (10,))


def test_a_run_is_compared_with_another(quickstart, copied, tmp_path):
    other = tmp_path / "other"
    shutil.copytree(copied, other)
    with np.load(other / "test_ranks.npz") as arrays:
        ranks = dict(arrays)
    np.savez(other / "test_ranks.npz", **{**ranks, "ranks": ranks["ranks"] + 5})
    text = final.compare(copied, other, (10,))
    mean = tiny.result(copied)["metrics"]["ndcg@10"]["mean"]
    line = next(line for line in text.splitlines() if line.startswith("ndcg@10"))
    numbers = [float(x) for x in re.findall(r"[-+]?\d*\.\d+", line)]
    assert numbers[0] == pytest.approx(mean, abs=1e-4) and numbers[2] == pytest.approx(
        numbers[0] - numbers[1], abs=2e-4
    )
    assert 0 < numbers[3] < numbers[2] < numbers[4]
    np.savez(other / "test_ranks.npz", **{**ranks, "positions": ranks["positions"] + 1})
    with pytest.raises(CheckpointError, match="other targets"):
        final.compare(copied, other, (10,))
    whole = (copied / "test_ranks.npz").read_bytes()
    middle = len(whole) // 3  # of packed numbers
    for damaged in (b"garbage", b"", whole[:middle] + b"0" * 8 + whole[middle + 8 :]):
        (other / "test_ranks.npz").write_bytes(damaged)
        with pytest.raises(CheckpointError, match="evaluate that run first"):
            final.compare(copied, other, (10,))


# --- what is wrong is said in one line -------------------------------------------------------------------------------


def spoil_a_checkpoint(workdir):
    """Changes bytes in the middle of the largest file of the best checkpoint."""
    folder = workdir / "checkpoints" / str(tiny.result(workdir)["step"]) / "state"
    file = max((f for f in folder.rglob("*") if f.is_file()), key=lambda f: f.stat().st_size)
    data = bytearray(file.read_bytes())
    middle = slice(len(data) // 3, 2 * len(data) // 3)
    data[middle] = bytes(byte ^ 0x10 for byte in data[middle])
    file.write_bytes(data)


WRONG = {
    "misspelt key": ("train.py", ("--config.model.dmi=8",), "ConfigError: config.model.dmi: no such key; did you mean"),
    "a setting as a flag": (
        "train.py", ("--steps=5",), "^--steps: no such flag; a setting is given as --config.diffusion.steps or",
    ),
    "no such folder": (
        "train.py", ("--config.data.source=movielens", "--config.data.path=no/such/folder"),
        "DataError: no/such/folder: no such file or folder; set data.path",
    ),
    "short window": ("train.py", ("--config.data.window=5",), "ConfigError: config.data.window: is shorter than"),
    "other settings": ("train.py", ("--config.optim.ema=0.5",), "ConfigError: .*was written by a run with other set"),
    "other model": ("eval.py", ("--config.model.layers=2",), "ConfigError: the checkpoints in .* are of another model"),
    "no such step": ("eval.py", ("--step=150", "--name=eval_150"), "CheckpointError: .* step 150; present: 100, 200"),
    "altered checkpoint": ("eval.py", (), "CheckpointError: .*(damaged|cannot be read).*delete that folder"),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
def test_what_is_wrong_is_said_without_a_traceback(copied, case):
    script, flags, told = WRONG[case]
    if case == "altered checkpoint":
        spoil_a_checkpoint(copied)
    before = tiny.snapshot(copied)
    done = tiny.command(script, copied, *SHORTER, *flags, config=QUICKSTART)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    lines = [line for line in done.stderr.splitlines() if line.strip()]
    assert re.match(told, lines[0])
    listed = 2 if case in ("other settings", "other model") else 0  # the settings that differ, and a remedy
    assert len(lines) == 1 + listed
    assert tiny.snapshot(copied) == before


def test_a_missing_config_or_workdir_is_said_as_well(tmp_path):
    done = tiny.command("train.py", tmp_path / "run", config="configs/none.py")
    assert (done.returncode, "Traceback" in done.stderr) == (1, False)
    assert re.search(r"--config: .*No such file or directory: 'configs/none.py'", done.stderr)
    for config in (tiny.CONFIG, None):
        done = tiny.command("eval.py", tmp_path / "run", config=config)
        assert (done.returncode, "Traceback" in done.stderr) == (1, False)
        told = r"CheckpointError: .*config.json does not exist: no run was started in this workdir"
        assert re.match(told, done.stderr)
    done = tiny.command("train.py", tmp_path / "run", config=None)
    assert done.returncode == 1 and "Flag --config must have a value" in done.stdout + done.stderr
    assert not (tmp_path / "run").exists()


# --- other logs, other types -----------------------------------------------------------------------------------------


def own_table(folder):
    generator = np.random.default_rng(0)
    rows = [f"visitor {u},{generator.integers(12)},{1000 * t + u}.5" for u in range(24) for t in range(8)]
    write(folder / "log.csv", "who,sku,when", *rows)
    columns = ("--config.data.table.user=who", "--config.data.table.item=sku", "--config.data.table.time=when")
    return "log: 24 users, 12 items, 192 behaviours", ("table", folder / "log.csv", *columns)


def prepared_tfds(folder):
    pytest.importorskip("tensorflow_datasets")
    pytest.importorskip("array_record")
    from t2diff_jax.data.sources.tfds_builder import write_log

    log = make_log(SyntheticConfig(seed=0, n_users=30, n_items=20, categories=3, mean_length=9))
    write_log(log, str(folder))
    return f"synthetic: 30 users, {log.n_items} items, {len(log.items)} behaviours", ("tfds", folder)


def movielens_100k(parent):
    folder = make_100k(parent / "ml-100k")
    generator = np.random.default_rng(0)
    rows = [f"{u}\t{generator.integers(1, 13)}\t4\t{100 * t + u}" for u in range(1, 25) for t in range(8)]
    write(folder / "u.data", *rows)
    flags = "|".join("1" if g == 8 else "0" for g in range(GENRES))
    write(folder / "u.item", *(f"{i}|Film {i} (1995)|01-Jan-1995||http://x|{flags}" for i in range(1, 13)))
    write(folder / "u.user", *(f"{u}|{20 + u}|M|technician|85711" for u in range(1, 25)))
    return "ml-100k: 24 users, 12 items, 192 behaviours", ("movielens", folder)


@pytest.mark.parametrize("make", [own_table, prepared_tfds, movielens_100k])
def test_other_logs_train(tmp_path, make):
    told, (source, path, *flags) = make(tmp_path)
    flags += [f"--config.data.source={source}", f"--config.data.path={path}", "--config.data.protocol=leave_one_out"]
    flags += ["--config.data.first_target=1", "--config.model.name=sasrec", "--config.train.steps=2"]
    output = tiny.succeed("train.py", tmp_path / "run", *flags, "--config.eval.popularity=False")
    assert told in output
    result = tiny.result(tmp_path / "run")
    assert (result["protocol"], result["model"]) == ("leave_one_out", "sasrec")
    assert 0 < result["metrics"]["recall@10"]["mean"] <= 1


def test_bfloat16(tmp_path):
    flags = ("--config.model.dtype=bfloat16", "--config.train.steps=2")
    tiny.succeed("train.py", tmp_path, *flags, "--config.eval.popularity=False")
    losses = [line["loss"] for line in tiny.metrics(tmp_path) if line["split"] == "train"]
    assert len(losses) == 1 and 3 < losses[0] < 8
    assert tiny.result(tmp_path)["step"] == 2
