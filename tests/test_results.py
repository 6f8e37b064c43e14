"""The page of results, from run folders made up for the purpose."""

import json
import re

import numpy as np
import pytest

from configs import base
from t2diff_jax.metrics import bootstrap_difference
from t2diff_jax.results import __main__ as page_of_results
from t2diff_jax.results import figures as curves
from t2diff_jax.results.runs import ResultsError, keep, portable_command, read_run, rows_of
from t2diff_jax.results.tables import accuracy_table, commands_table, mean_over_seeds, sampler_table


def evaluation(ndcg, *, excluded=False, slot=None, split="test"):
    names = [f"{name}@{k}" for name in ("recall", "mrr", "ndcg") for k in (2, 10, 20)]
    result = {
        "metrics": {name: {"mean": ndcg if name == "ndcg@10" else 0.5, "spread": 0.0} for name in names},
        "popularity": {"metrics": {name: {"mean": 0.01, "spread": 0.0} for name in names}},
        "seen_items_excluded": excluded,
        "split": split,
        "step": 60,
        "parameters": 12345,
        "milliseconds_per_user": 0.25,
        "recall@20_by_popularity_decile": np.linspace(0.1, 0.5, 10).tolist(),
        "recall@20_by_history_decile": np.linspace(0.4, 0.5, 10).tolist(),
        "history_length_of_decile": np.arange(10.0, 110, 10).tolist(),
    }
    if slot:
        calls, samples, cosine = slot
        by_r = [{"r": r, "cosine": 0.9, "rms_error": 0.1 * r} for r in (1, 5)]
        result["slot"] = {
            "calls": calls, "samples": samples, "cosine": cosine, "cosine_of_last": 0.25, "rms_error": 0.5,
            "rms_error_of_last": 2.0, "as_query": {"ndcg@10": 0.05}, "denoised_by_r": by_r,
        }  # fmt: skip
        result["metrics"]["log_loss"] = {"mean": 5.25, "spread": 0.0}  # that of runs without a slot is older
    return result


def make_run(
    folder,
    evaluations,
    *,
    seed=0,
    ranks=None,
    losses=None,
    users=None,
    taken=None,
    steps=3000,
    device="cpu",
    log="",
    **changes,
):
    config = base.get_config().to_dict()
    config["seed"] = seed
    config["data"].update(source="movielens", path="/home/somebody/ml-1m", content="/home/somebody/content.npy")
    config["model"].update(changes)
    config["eval"]["exclude_seen"] = evaluations[0]["seen_items_excluded"]
    config["train"].update(steps=steps, batch_size=256)
    folder.mkdir(parents=True)
    for name, value in {"eval": evaluations[0], **{f"eval_{i}": e for i, e in enumerate(evaluations[1:])}}.items():
        (folder / f"{name}.json").write_text(json.dumps(value))
    (folder / "config.json").write_text(json.dumps({"log_digest": log, "config": config}))
    command = f"python train.py --config configs/ml1m.py --config.data.path=/home/somebody/ml-1m --workdir {folder}"
    origin = {"command": f"{command} --config.seed={seed}", "commit": "abc1234", "device": device, "devices": 1}
    (folder / "run.json").write_text(json.dumps({**origin, "cores": 2, "jax": "0.10.2"}))
    lines = [{"step": step, "split": "train", "examples_per_s": 256.0, "loss": 1.0} for step in (60, 120)]
    lines += [{"step": step, "split": "validation", "ndcg@10": step / 1000} for step in (60, 120)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    if ranks is not None:
        users = np.arange(len(ranks)) if users is None else np.array(users)
        targets = users if taken is None else np.array(taken)
        arrays = dict(users=users, positions=users + 1, targets=targets, ranks=np.array([ranks]))
        if losses is not None:  # older runs have none
            arrays["log_loss"] = np.array([losses])
        np.savez(folder / "test_ranks.npz", **arrays)


def tables(page):
    """Section -> rows of cells, the head first."""
    found = {}
    for section in page.split("\n## ")[1:]:
        lines = [line for line in section.splitlines() if line.startswith("|")]
        found[section.splitlines()[0]] = [[c.strip() for c in line.strip("|").split("|")] for line in lines]
    return found


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """Three rows: two seeds of a generator with two samplers, an empty slot with and without exclusion."""
    folder = tmp_path_factory.mktemp("results")
    generated = [
        evaluation(0.3, slot=(1, 1, 0.4)),
        evaluation(0.29, slot=(4, 1, 0.35)),
        evaluation(0.31, slot=(1, 8, 0.4)),
        evaluation(0.99, slot=(1, 1, 0.99), split="validation"),
    ]
    make_run(folder / "runs" / "diffusion_seed0", generated, ranks=[1.0, 1.0, 9.0, 1.0])
    make_run(
        folder / "runs" / "diffusion_seed1", [evaluation(0.32, slot=(1, 1, 0.44))], seed=1, ranks=[1.0, 1.0, 11.0, 1.0]
    )
    empty = [evaluation(0.2), evaluation(0.25, excluded=True)]
    make_run(folder / "runs" / "empty_seed0", empty, slot="empty", ranks=[2.0, 2.0, 11.0, 2.0])
    out = folder / "docs" / "results.md"
    page_of_results.main([str(folder / "runs"), "--out", str(out), "--against", "empty"])
    return out


def test_the_accuracy_tables(page):
    found = tables(page.read_text())
    head, _, first, second, popularity = found["movielens ml-1m, user_holdout, seen items not excluded"]
    row = dict(zip(head, first, strict=True))
    assert row["row"] == "diffusion" and row["seeds"] == "2" and row["ndcg@10"] == "0.3100 ± 0.0141"
    assert row["cosine of the generated item (last behaviour)"] == "0.420 ± 0.028 (0.250)" and row["calls"] == "1"
    assert (
        row["minutes of training"] == "2" and row["ms per user"] == "0.25" and row["parameters"] == "12,345"
    )  # 120 steps of 256 at 256 a second
    # Hits at 1, 1, (9 and out), 1 against 2, 2, out, 2.
    difference = (3 * (1 - 1 / np.log2(3)) + 1 / np.log2(10) / 2) / 4
    assert row["ndcg@10 against empty [95 %]"].startswith(f"{difference:+.4f} [")
    assert row["recall@20 against empty [95 %]"] == "+0.0000 [+0.0000, +0.0000]"  # all are among the first 20
    assert row["log_loss"] == "5.2500 ± 0.0000"
    row = dict(zip(head, second, strict=True))
    assert (row["row"], row["seeds"], row["ndcg@10"], row["log_loss"]) == ("empty", "1 of 2", "0.2000", "")
    assert popularity[:8] == ["popularity", "2", *["0.0100 ± 0.0000"] * 5, ""]
    head, _, only, _ = found["movielens ml-1m, user_holdout, seen items excluded"]
    assert dict(zip(head, only, strict=True))["ndcg@10"] == "0.2500"


def test_tables_come_in_the_order_of_the_rows_compared_with(tmp_path):
    make_run(tmp_path / "runs" / "open_seed0", [evaluation(0.2)], ranks=[1.0])
    make_run(tmp_path / "runs" / "closed_seed0", [evaluation(0.2, excluded=True)], ranks=[1.0])
    kept, excluded = (f"movielens ml-1m, user_holdout, seen items {what}" for what in ("not excluded", "excluded"))
    for against, titles in (([], [kept, excluded]), (["open"], [kept, excluded]), (["closed"], [excluded, kept])):
        page_of_results.main([str(tmp_path / "runs"), "--out", str(tmp_path / "x.md"), "--against", *against])
        assert list(tables((tmp_path / "x.md").read_text()))[:2] == titles


def test_speed_is_that_of_a_kind_of_device(tmp_path):
    for seed, device, ms in ((0, "cpu", 4.0), (1, "GPU X", 0.01), (2, "GPU X", 0.03)):
        run = evaluation(0.2) | {"milliseconds_per_user": ms}
        make_run(tmp_path / f"a_seed{seed}", [run], seed=seed, device=device)
    page_of_results.main([str(tmp_path), "--out", str(tmp_path / "x.md")])
    head, _, row, _ = tables((tmp_path / "x.md").read_text())["movielens ml-1m, user_holdout, seen items not excluded"]
    assert dict(zip(head, row, strict=True))["ms per user"] == "4.00; 0.02 (GPU X)"


def test_only_rows_that_learned_for_as_long_are_compared(tmp_path):
    for name, steps in (("a", 100), ("b", 100), ("a_long", 9000), ("b_long", 9000), ("c_longest", 20_000)):
        make_run(tmp_path / f"{name}_seed0", [evaluation(0.2)], ranks=[1.0], steps=steps)
    page_of_results.main([str(tmp_path), "--out", str(tmp_path / "x.md"), "--against", "a", "a_long"])
    text = (tmp_path / "x.md").read_text()
    heads, *lines = [re.findall(rf"^{start}", text, re.M) for start in (r"[\d,]+ steps of 256 examples:", r"\| \w+ ")]
    assert heads == [f"{steps} steps of 256 examples:" for steps in ("20,000", "9,000", "100")]
    labels = [line.strip("| ") for line in lines[0] if line != "| row "][:8]
    assert labels == ["c_longest", "popularity", "a_long", "b_long", "popularity", "a", "b", "popularity"]
    assert text.count("ndcg@10 against a_long [95 %]") == text.count("ndcg@10 against a [95 %]") == 1


def test_the_sampler_table(page):
    """Of the one seed that has all of them."""
    _, _, *rows = tables(page.read_text())["Sampler"]
    assert [row[:5] for row in rows] == [
        ["diffusion", "1", "1", "1 (seed 0)", "0.3000"],
        ["diffusion", "1", "8", "1 (seed 0)", "0.3100"],
        ["diffusion", "4", "1", "1 (seed 0)", "0.2900"],
    ]  # fmt: skip


def test_a_run_counts_once_for_a_sampler(tmp_path):
    """As it ended: what was evaluated again, or at another step, is no further seed."""
    again, earlier = evaluation(0.9, slot=(1, 1, 0.4)), evaluation(0.9, slot=(2, 1, 0.4)) | {"step": 30}
    more = [evaluation(0.3 + seed / 10, slot=(1, 1, 0.4)) for seed in (0, 1)]
    make_run(tmp_path / "a_seed0", [more[0], again, earlier, evaluation(0.2, slot=(4, 1, 0.4))])
    make_run(tmp_path / "a_seed1", [more[1], evaluation(0.4, slot=(4, 1, 0.4))], seed=1)
    make_run(
        tmp_path / "b_seed0", [evaluation(0.1, slot=(1, 1, 0.4)), evaluation(0.2, slot=(2, 1, 0.4)) | {"step": 30}]
    )
    rows = rows_of(map(read_run, tmp_path.iterdir()))
    _, _, *lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in sampler_table(rows).splitlines()]
    assert [line[:5] for line in lines] == [
        ["a", "1", "1", "2 (seed 0, 1)", "0.3500 ± 0.0707"], ["a", "4", "1", "2 (seed 0, 1)", "0.3000 ± 0.1414"]
    ]  # fmt: skip


def test_a_seed_without_an_evaluation_leaves_the_others_their_row(tmp_path):
    make_run(tmp_path / "a_seed0", [evaluation(0.2), evaluation(0.3, excluded=True)])
    make_run(tmp_path / "a_seed1", [evaluation(0.2)], seed=1)
    make_run(tmp_path / "b_seed1", [evaluation(0.2), evaluation(0.4, excluded=True)], seed=1)
    runs = list(map(read_run, tmp_path.iterdir()))
    lines = accuracy_table(rows_of(runs), runs[0].data, True, None).splitlines()[2:]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    assert [row[:2] for row in cells] == [["b", "1 of 2"], ["a", "1 of 2"], ["popularity", "2"]]


def test_popularity_is_a_mean_over_the_seeds_of_the_table(tmp_path):
    """Each seed once, however many rows have it."""
    for row, seeds in (("a", (0,)), ("b", (0, 1, 2))):
        for seed in seeds:
            result = evaluation(0.2)
            result["popularity"]["metrics"]["ndcg@10"]["mean"] = 0.01 * (seed + 1)
            make_run(tmp_path / f"{row}_seed{seed}", [result], seed=seed)
    runs = list(map(read_run, tmp_path.iterdir()))
    head, _, *lines = accuracy_table(rows_of(runs), runs[0].data, False, None).splitlines()
    names = [cell.strip() for cell in head.strip("|").split("|")]
    rows = [dict(zip(names, [cell.strip() for cell in line.strip("|").split("|")], strict=True)) for line in lines]
    assert {row["row"]: row["seeds"] for row in rows} == {"a": "1 of 3", "b": "3", "popularity": "3"}
    assert rows[-1]["ndcg@10"] == "0.0200 ± 0.0100"


def test_a_row_may_lack_a_metric(tmp_path):
    """Rows stand in the order of the metric that chose their checkpoints."""
    for name, mean in (("a", 0.2), ("b", 0.3)):
        result = evaluation(0.5, slot=(1, 1, 0.4))
        for metrics in (result["metrics"], result["popularity"]["metrics"], result["slot"]["as_query"]):
            metrics.pop("ndcg@10")
        result["metrics"] |= {"recall@5": {"mean": mean, "spread": 0.0}, "recall@20": {"mean": None, "spread": None}}
        other = result | {"slot": result["slot"] | {"calls": 2}}
        make_run(tmp_path / "runs" / f"{name}_seed0", [result, other])
        stored = json.loads((tmp_path / "runs" / f"{name}_seed0" / "config.json").read_text())
        stored["config"]["eval"].update(ks=[2, 5, 20], select="recall@5")
        (tmp_path / "runs" / f"{name}_seed0" / "config.json").write_text(json.dumps(stored))
    page_of_results.main([str(tmp_path / "runs"), "--out", str(tmp_path / "x.md"), "--against", "a"])
    found = tables((tmp_path / "x.md").read_text())
    head, _, *rows, _ = found["movielens ml-1m, user_holdout, seen items not excluded"]
    rows = [dict(zip(head, row, strict=True)) for row in rows]
    assert [(row["row"], row["ndcg@10"], row["recall@20"], row["recall@2"]) for row in rows] == [
        ("b", "", "", "0.5000"), ("a", "", "", "0.5000")
    ]  # fmt: skip
    assert len(found["Sampler"]) == 6


def test_seeds_of_the_same_targets_are_no_further_users(tmp_path):
    """Where the ranks of one run were not kept, the means of the seeds that both rows have are compared."""
    ranks = {"a": ([1.0, 9.0], [2.0, 9.0], None), "b": ([3.0, 9.0], [3.0, 9.0], [3.0, 9.0])}
    for name, of_seeds in ranks.items():
        for seed, of_seed in enumerate(of_seeds):
            make_run(tmp_path / f"{name}_seed{seed}", [evaluation(0.2)], seed=seed, ranks=of_seed)
    rows = rows_of(map(read_run, tmp_path.iterdir()))
    a, b = np.array([(1 + 1 / np.log2(3)) / 2, 1 / np.log2(10)]), np.array([1 / 2, 1 / np.log2(10)])
    d, low, high = bootstrap_difference(a, b, np.arange(2), draws=2000, seed=0)
    table = accuracy_table(rows, rows["a"][0].data, False, "b")
    assert f"{d:+.4f} [{low:+.4f}, {high:+.4f}] (seed 0, 1)" in table


def test_the_commands(page):
    text = page.read_text()
    _, _, first, _ = tables(text)["Commands"]
    command = "`python train.py --config configs/ml1m.py --config.data.path=DIR --workdir runs/diffusion_seed0"
    assert first == ["diffusion", f"{command} --config.seed=0`", "0, 1", "1 x cpu, 2 core(s), jax 0.10.2", "abc1234"]
    assert "somebody" not in text


def test_every_commit_and_hardware_is_told_with_its_seeds(tmp_path):
    for seed, device in enumerate(("GPU X", "cpu", "GPU X")):
        make_run(tmp_path / f"a_seed{seed}", [evaluation(0.2)], seed=seed, device=device)
    (first, second) = commands_table(rows_of(map(read_run, tmp_path.iterdir()))).splitlines()[2:]
    assert "--config.seed=0` | 0, 2 | 1 x GPU X, 2 core(s), jax 0.10.2 | abc1234 |" in first
    assert "--config.seed=1` | 1 | 1 x cpu, 2 core(s), jax 0.10.2 | abc1234 |" in second
    origin = json.loads((tmp_path / "a_seed2" / "run.json").read_text()) | {
        "environment": "XLA_FLAGS='--xla_a=1 --xla_dump_to=/home/somebody/x'"
    }
    (tmp_path / "a_seed2" / "run.json").write_text(json.dumps(origin))
    lines = commands_table(rows_of(map(read_run, tmp_path.iterdir()))).splitlines()[2:]
    assert (
        len(lines) == 3
        and "`XLA_FLAGS='--xla_a=1 --xla_dump_to=FILE' python " in lines[2]
        and "` | 2 | 1 x GPU X" in lines[2]
    )
    keep(read_run(tmp_path / "a_seed2"), tmp_path / "kept")
    kept = json.loads((tmp_path / "kept" / "a_seed2" / "run.json").read_text())
    assert kept["environment"] == "XLA_FLAGS='--xla_a=1 --xla_dump_to=FILE'"


def test_the_figures(page):
    text = page.read_text()
    linked = re.findall(r"!\[.*\]\((.*)\)", text)
    assert len(linked) == 5 and all((page.parent / name).read_text().startswith("<?xml") for name in linked)
    (denoising,) = (page.parent / name for name in linked if "denoising" in name)
    assert denoising.name == "denoising_movielens_ml_1m_user_holdout_not_excluded.svg"
    assert "diffusion" in denoising.read_text() and "empty" not in denoising.read_text()


def test_a_figure_shows_the_rows_of_its_table(tmp_path):
    make_run(tmp_path / "runs" / "a_seed0", [evaluation(0.2)])
    make_run(tmp_path / "runs" / "b_seed0", [evaluation(0.2, excluded=True)])
    page_of_results.main([str(tmp_path / "runs"), "--out", str(tmp_path / "x.md")])
    for row, other, ranked in (("a", "b", "not_excluded"), ("b", "a", "excluded")):
        text = (tmp_path / "figures" / f"validation_movielens_ml_1m_user_holdout_{ranked}.svg").read_text()
        assert f">{row}</text>" in text and f">{other}</text>" not in text


def test_a_figure_has_at_most_ten_curves_and_no_oracle(tmp_path):
    """Those of the rows with most seeds."""
    for i in range(11):
        make_run(tmp_path / "runs" / f"row{i:02}_seed0", [evaluation(0.2)])
    make_run(tmp_path / "runs" / "row10_seed1", [evaluation(0.2)], seed=1)
    make_run(tmp_path / "runs" / "bound_seed0", [evaluation(1.0)], slot="oracle")
    page_of_results.main([str(tmp_path / "runs"), "--out", str(tmp_path / "x.md")])
    text = (tmp_path / "figures" / "validation_movielens_ml_1m_user_holdout_not_excluded.svg").read_text()
    shown = re.findall(r">(row\d+|bound)</text>", text)
    assert shown == [*(f"row{i:02}" for i in range(9)), "row10"]


def test_a_group_without_targets_is_a_gap_in_its_curve(tmp_path):
    result = evaluation(0.2, slot=(1, 1, 0.4))
    for name in ("recall@20_by_popularity_decile", "recall@20_by_history_decile", "history_length_of_decile"):
        result[name][3] = None
    result["slot"]["denoised_by_r"].append({"r": 9, "cosine": None, "rms_error": None})
    make_run(tmp_path / "runs" / "a_seed0", [result])
    make_run(tmp_path / "runs" / "b_seed0", [evaluation(0.2)])
    page_of_results.main([str(tmp_path / "runs"), "--out", str(tmp_path / "x.md")])
    for name in ("popularity", "history", "denoising"):
        assert f"{name}_movielens" in (tmp_path / "x.md").read_text()
    shown = {label: curves._by_popularity([read_run(tmp_path / "runs" / f"{label}_seed0")])[1] for label in ("a", "b")}
    assert np.flatnonzero(np.isnan(shown["a"])).tolist() == [3] and np.isfinite(shown["b"]).all()


def test_the_page_is_the_same_again(page, tmp_path):
    out = tmp_path / "results.md"
    page_of_results.main([str(page.parent.parent / "runs"), "--out", str(out), "--against", "empty"])
    assert out.read_text() == page.read_text()
    for figure in (page.parent / "figures").iterdir():
        assert (tmp_path / "figures" / figure.name).read_bytes() == figure.read_bytes()


def test_kept_copies_make_the_same_page(page, tmp_path):
    """They are small, and name no path of the machine; ranks of another kind of ranking are not compared."""
    kept, out = tmp_path / "kept", tmp_path / "docs" / "results.md"
    page_of_results.main([str(page.parent.parent / "runs"), "--out", str(tmp_path / "x.md"), "--keep", str(kept)])
    assert all(b"somebody" not in file.read_bytes() for file in kept.rglob("*.*") if file.is_file())
    page_of_results.main([str(kept), "--out", str(out), "--against", "empty"])
    assert out.read_text() == page.read_text()


def test_ranks_of_another_kind_of_ranking_are_not_compared(tmp_path):
    make_run(tmp_path / "a_seed0", [evaluation(0.2)], ranks=[1.0])
    make_run(tmp_path / "b_seed0", [evaluation(0.2, excluded=True), evaluation(0.1)], ranks=[2.0])
    page_of_results.main([str(tmp_path), "--out", str(tmp_path / "x.md"), "--against", "a", "b"])
    found = tables((tmp_path / "x.md").read_text())
    head, _, *rows, _ = found["movielens ml-1m, user_holdout, seen items not excluded"]
    assert head[-3] == "ndcg@10 against a [95 %]" and [row[-3] for row in rows] == ["", ""]
    head, _, only, _ = found["movielens ml-1m, user_holdout, seen items excluded"]
    assert head[-3] == "ndcg@10 against b [95 %]" and (only[0], only[-3]) == ("b", "")


def test_rows_whose_seeds_hold_out_other_users_are_compared_seed_by_seed(tmp_path):
    for name, ranks in (("a", ([1.0, 1.0], [1.0, 30.0])), ("b", ([2.0, 2.0], [1.0, 2.0]))):
        for seed, of_seed in enumerate(ranks):
            users = ([3, 5], [3, 9])[seed]
            losses = [3.0, 4.0] if name == "b" else [2.5, 4.0]
            make_run(
                tmp_path / f"{name}_seed{seed}", [evaluation(0.2)], seed=seed, ranks=of_seed, users=users, losses=losses
            )
    make_run(tmp_path / "c_seed0", [evaluation(0.2)], ranks=[1.0, 1.0], users=[3, 5])  # has but one of the seeds
    make_run(tmp_path / "d_seed0", [evaluation(0.2)], ranks=[1.0, 1.0], users=[3, 5], taken=[4, 8])
    page_of_results.main([str(tmp_path), "--out", str(tmp_path / "x.md"), "--against", "b"])
    head, _, *rows, _ = tables((tmp_path / "x.md").read_text())[
        "movielens ml-1m, user_holdout, seen items not excluded"
    ]
    cells = {row[0]: row[head.index("ndcg@10 against b [95 %]")] for row in rows}
    second = 1 / np.log2(3)
    assert cells["a"].startswith(f"{(2 * (1 - second) + 0 - second) / 4:+.4f} [")
    assert cells["c"].startswith(f"{1 - second:+.4f} [") and cells["c"].endswith("] (seed 0)")
    assert cells["d"] == "other targets"
    cells = {row[0]: row[head.index("log_loss against b [95 %]")] for row in rows}
    assert cells["a"].startswith("-0.2500 [") and cells["b"] == cells["c"] == cells["d"] == ""


def test_copies_stand_beside_new_runs(tmp_path):
    """A kept copy names no folder of its data; a new seed of the same row does."""
    make_run(tmp_path / "a_seed0", [evaluation(0.2)])
    make_run(tmp_path / "new" / "a_seed1", [evaluation(0.2)], seed=1)
    keep(read_run(tmp_path / "a_seed0"), tmp_path / "kept")
    runs = [read_run(tmp_path / "new" / "a_seed1"), read_run(tmp_path / "kept" / "a_seed0")]
    assert [run.config["seed"] for run in rows_of(runs)["a"]] == [0, 1]


def test_a_row_is_of_one_log(tmp_path):
    """The same files under another path are the same log, other files under the same name are not; copies know it."""
    for seed, (log, path) in enumerate(
        [("a1", "/home/x/ml-1m"), ("a1", "ml-1m.csv"), ("b2", "/home/y/ml-1m"), ("", "b")]
    ):
        make_run(tmp_path / f"a_seed{seed}", [evaluation(0.2)], seed=seed, log=log)
        stored = json.loads((tmp_path / f"a_seed{seed}" / "config.json").read_text())
        stored["config"]["data"]["path"] = path
        (tmp_path / f"a_seed{seed}" / "config.json").write_text(json.dumps(stored))
        keep(read_run(tmp_path / f"a_seed{seed}"), tmp_path / "kept")
    for folder in (tmp_path, tmp_path / "kept"):
        first, elsewhere, other, unknown = (read_run(folder / f"a_seed{seed}") for seed in range(4))
        assert rows_of([first, elsewhere])["a"] == [first, elsewhere]
        for different in (other, unknown):
            with pytest.raises(ResultsError, match=r"a_seed\* are on different logs"):
                rows_of([first, different])


def test_a_key_that_an_older_version_did_not_know_is_no_difference(tmp_path):
    make_run(tmp_path / "a_seed0", [evaluation(0.2)])
    make_run(tmp_path / "a_seed1", [evaluation(0.2)], seed=1)
    path = tmp_path / "a_seed0" / "config.json"
    stored = json.loads(path.read_text())
    del stored["config"]["dry_run"], stored["config"]["eval"]["search"]
    path.write_text(json.dumps(stored))
    assert len(rows_of([read_run(tmp_path / "a_seed0"), read_run(tmp_path / "a_seed1")])["a"]) == 2
    stored["config"]["eval"]["block"] += 1
    path.write_text(json.dumps(stored))
    assert len(rows_of([read_run(tmp_path / "a_seed0"), read_run(tmp_path / "a_seed1")])["a"]) == 2
    stored["config"]["optim"]["warmup"] += 1
    path.write_text(json.dumps(stored))
    with pytest.raises(ResultsError, match="differ in more than their seed"):
        rows_of([read_run(tmp_path / "a_seed0"), read_run(tmp_path / "a_seed1")])


@pytest.mark.parametrize(("changes", "same"), [({}, False), ({"slot": "empty"}, True), ({"name": "sasrec"}, True)])
def test_how_it_would_generate_is_no_difference_where_nothing_is_generated(tmp_path, changes, same):
    make_run(tmp_path / "a_seed0", [evaluation(0.2)], **changes)
    make_run(tmp_path / "a_seed1", [evaluation(0.2)], seed=1, **changes)
    path = tmp_path / "a_seed0" / "config.json"
    stored = json.loads(path.read_text())
    stored["config"]["diffusion"]["target"] = "item"
    path.write_text(json.dumps(stored))
    runs = [read_run(tmp_path / "a_seed0"), read_run(tmp_path / "a_seed1")]
    if same:
        assert len(rows_of(runs)["a"]) == 2
    else:
        with pytest.raises(ResultsError, match="differ in more than their seed"):
            rows_of(runs)


def test_what_does_not_belong_together_is_refused(tmp_path, capsys):
    make_run(tmp_path / "a_seed0", [evaluation(0.2)])
    make_run(tmp_path / "a_seed1", [evaluation(0.2)], seed=1, dropout=0.7)
    with pytest.raises(ResultsError, match="a_seed\\* differ in more than their seed"):
        rows_of([read_run(tmp_path / "a_seed0"), read_run(tmp_path / "a_seed1")])
    make_run(tmp_path / "b_seed0", [evaluation(0.2)])
    make_run(tmp_path / "b_seed7", [evaluation(0.2)])
    with pytest.raises(ResultsError, match="same seed"):
        rows_of([read_run(tmp_path / "b_seed0"), read_run(tmp_path / "b_seed7")])
    old = evaluation(0.2)
    del old["milliseconds_per_user"]
    make_run(tmp_path / "c_seed0", [old])
    with pytest.raises(ResultsError, match=r"c_seed0/eval\.json is of an older version"):
        read_run(tmp_path / "c_seed0")
    with pytest.raises(ResultsError, match="is where the runs lie"):
        keep(read_run(tmp_path / "a_seed0"), tmp_path)
    make_run(tmp_path / "d_seed0", [evaluation(0.2)])
    for other in (evaluation(0.2, excluded=True), evaluation(0.2, slot=(4, 1, 0.4))):
        (tmp_path / "d_seed0" / "eval.json").write_text(json.dumps(other))
        with pytest.raises(ResultsError, match=r"d_seed0/eval\.json is an evaluation with other seen items"):
            read_run(tmp_path / "d_seed0")
    (tmp_path / "b_seed7" / "eval.json").unlink()
    with pytest.raises(ResultsError, match=r"b_seed7 has no eval\.json"):
        read_run(tmp_path / "b_seed7")
    (tmp_path / "b_seed0" / "run.json").write_text("{")
    with pytest.raises(ResultsError, match=r"run\.json"):
        read_run(tmp_path / "b_seed0")
    (tmp_path / "a_seed1" / "metrics.jsonl").unlink()
    with pytest.raises(ResultsError, match=r"a_seed1/metrics\.jsonl.*finish the run"):
        read_run(tmp_path / "a_seed1")
    with pytest.raises(SystemExit) as stop:
        page_of_results.main([str(tmp_path / "nothing"), "--out", str(tmp_path / "x.md")])
    assert stop.value.code == 1 and not (tmp_path / "x.md").exists()
    assert "nothing holds no finished run\n" in capsys.readouterr().err


def test_a_run_that_is_not_finished_is_named_and_left_out(tmp_path, capsys):
    for name in ("a_seed0", "a_seed1", "b_seed0"):
        make_run(tmp_path / "runs" / name, [evaluation(0.2)], seed=int(name[-1]), ranks=[1.0, 2.0])
    for name in ("a_seed1", "b_seed0"):
        (tmp_path / "runs" / name / "eval.json").unlink()
    page_of_results.main([str(tmp_path / "runs"), "--out", str(tmp_path / "x.md")])
    assert "not finished, and left out: a_seed1, b_seed0\n" in capsys.readouterr().out
    assert "a_seed0" in (page := (tmp_path / "x.md").read_text()) and "a_seed1" not in page and "| b |" not in page


def test_mean_over_seeds_by_hand():
    assert mean_over_seeds([0.25]) == "0.2500"
    assert mean_over_seeds([0.1, 0.3], 2) == "0.20 ± 0.14"


def test_a_command_names_no_path_of_its_machine():
    command = "python train.py --config=configs/ml1m.py --workdir=/root/x --config.data.path=/root/d --config.seed=3"
    command += " --config.data.content=/root/c.npy --config.train.compilation_cache /root/cache"
    expected = "python train.py --config=configs/ml1m.py --workdir=runs/a_seed0 --config.data.path=DIR --config.seed=3"
    expected += " --config.data.content=FILE --config.train.compilation_cache FILE"
    assert portable_command(command, "a_seed0") == expected
