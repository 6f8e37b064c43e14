"""A workdir belongs to one configuration and one log."""

import dataclasses
import json

import jax
import pytest

from configs import base
from t2diff_jax import workdir
from t2diff_jax.checkpoint import CheckpointError
from t2diff_jax.config_values import ConfigError, from_mapping
from t2diff_jax.workdir import check_same_model, check_same_run, open_workdir, read_config


def base_config():
    return from_mapping(base.get_config())


def changed_config(config, **values):
    """`config` with the keys section__name replaced."""
    for name, value in values.items():
        *sections, key = name.split("__")
        parts = [config]
        for section in sections:
            parts.append(getattr(parts[-1], section))
        for name, part in zip((key, *reversed(sections)), reversed(parts), strict=True):
            value = dataclasses.replace(part, **{name: value})
        config = value
    return config


def test_workdir_is_claimed_and_read_back(tmp_path):
    config, workdir = base_config(), tmp_path / "new" / "run"
    open_workdir(workdir, config, "log")
    assert read_config(workdir, config) == (config, "log")
    open_workdir(workdir, config, "log")
    longer = changed_config(config, train__steps=9999, eval__noise_keys=2)
    open_workdir(workdir, longer, "log")
    assert read_config(workdir, config) == (longer, "log")
    assert [child.name for child in workdir.iterdir()] == ["config.json"]


def test_conflicts_are_listed_and_nothing_is_overwritten(tmp_path):
    config = base_config()
    open_workdir(tmp_path, config, "log")
    before = (tmp_path / "config.json").read_bytes()
    changed = changed_config(config, model__dim=128, optim__clip_norm=2.0, train__steps=1)
    with pytest.raises(ConfigError, match=r"model\.dim: 64 there, 128 now\n.*optim\.clip_norm: 1\.0 ") as caught:
        open_workdir(tmp_path, changed, "log")
    assert "--workdir, or delete it: it holds no checkpoint" in str(caught.value)
    assert "train.steps" not in str(caught.value)
    (tmp_path / "checkpoints" / "5").mkdir(parents=True)
    with pytest.raises(ConfigError, match="--workdir, or set the stored values to go on"):
        open_workdir(tmp_path, changed, "log")
    with pytest.raises(CheckpointError, match=r"digest log there, other now.*--workdir"):
        open_workdir(tmp_path, config, "other")
    assert (tmp_path / "config.json").read_bytes() == before


def test_a_run_of_an_older_version_goes_on(tmp_path):
    """It knew neither today's keys of evaluation nor the sections of other models; what it did not know stays free."""
    config = base_config()
    open_workdir(tmp_path, config, "log")
    path = tmp_path / "config.json"
    stored = json.loads(path.read_text())
    del stored["config"]["auto"], stored["config"]["eval"]["search_recall"], stored["config"]["model"]["interests"]
    del stored["config"]["model"]["mamba"]["chunk"], stored["config"]["model"]["bert4rec"]
    stored["config"]["model"]["bert_masked"] = 0.2
    for name in ("user_scale", "sketch_dropout", "behaviour_dropout"):
        del stored["config"]["model"][name]
    stored["config"]["dry_run"]["items"] = stored["config"]["dry_run"].pop("n_items")
    path.write_text(json.dumps(stored))
    with pytest.raises(ConfigError, match=r"mamba\.chunk: 0 there, 4 now"):  # it had all places at once
        check_same_model(tmp_path, config)
    config = changed_config(config, model__mamba__chunk=0)
    open_workdir(tmp_path, changed_config(config, model__interests__number=9), "log")
    check_same_model(tmp_path, changed_config(config, model__interests__number=9))
    del stored["config"]["model"]["heads"]
    path.write_text(json.dumps(stored))
    with pytest.raises(CheckpointError, match=r"heads: missing"):
        open_workdir(tmp_path, config, "log")


def test_same_model_ignores_how_it_was_trained(tmp_path):
    config = base_config()
    open_workdir(tmp_path, config, "log")
    other = changed_config(config, train__batch_size=8, optim__ema=0.9, eval__block=64, mesh__model=2, data__path="x")
    check_same_model(tmp_path, other)
    with pytest.raises(ConfigError, match=r"model\.heads: 2 there, 4 now\n.*diffusion\.steps: 50 there, 60") as caught:
        check_same_model(tmp_path, changed_config(other, model__heads=4, diffusion__steps=60))
    assert not any(name in str(caught.value) for name in ("batch_size", "ema", "block", "data.path", "mesh."))


@pytest.mark.parametrize(
    ("slot", "noise", "free"),
    [("diffusion", "request", True), ("diffusion", "intent", False), ("learned", "request", False)],
)
def test_intents_may_be_drawn_in_any_number_but_not_where_they_are_learned(tmp_path, slot, noise, free):
    changes = dict(model__name="t2diff_causal", model__slot=slot, diffusion__noise=noise, diffusion__samples=2)
    config = changed_config(base_config(), **changes)
    open_workdir(tmp_path, config, "log")
    more = changed_config(config, diffusion__samples=4)
    if free:
        check_same_model(tmp_path, more)
    else:
        with pytest.raises(ConfigError, match=r"diffusion\.samples: 2 there, 4 now"):
            check_same_model(tmp_path, more)


def test_a_key_that_is_gone_is_no_damage(tmp_path):
    open_workdir(tmp_path, base_config(), "log")
    stored = json.loads((tmp_path / "config.json").read_text())
    stored["config"]["model"]["conv"] = 8
    (tmp_path / "config.json").write_text(json.dumps(stored))
    with pytest.raises(CheckpointError, match=r"does not fit this version \(config.model.conv: no such key.*run.json"):
        read_config(tmp_path, base_config())


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "{}", '{"config": 3, "log_digest": "x"}', '{"config": {}, "log_digest": "x"}', "\udcff"]
)
def test_an_unreadable_config_is_an_error_and_stays(tmp_path, text):
    path = tmp_path / "config.json"
    path.write_bytes(text.encode(errors="surrogateescape"))
    before = path.read_bytes()
    for call in (
        lambda: open_workdir(tmp_path, base_config(), "log"),
        lambda: read_config(tmp_path, base_config()),
        lambda: check_same_model(tmp_path, base_config()),
    ):
        with pytest.raises(CheckpointError, match=r"config\.json cannot be read .*--workdir"):
            call()
    assert path.read_bytes() == before


def test_a_missing_config_is_an_error_where_one_is_needed(tmp_path):
    with pytest.raises(CheckpointError, match="no run was started"):
        read_config(tmp_path / "nowhere", base_config())
    (tmp_path / "checkpoints" / "1").mkdir(parents=True)
    with pytest.raises(CheckpointError, match=r"checkpoints but no config\.json"):
        open_workdir(tmp_path, base_config(), "log")
    assert not (tmp_path / "config.json").exists()


def test_whether_a_finished_run_is_of_a_configuration(tmp_path):
    """What says how the same numbers are come by is free; what `-1` may have come to too, and nothing else."""
    config = base_config()
    open_workdir(tmp_path / "full", changed_config(config, loss__negatives=0), "log")
    drawn = changed_config(config, loss__negatives=config.auto.negatives, optim__lazy_rows=True)
    open_workdir(tmp_path / "drawn", drawn, "log")
    for folder in ("full", "drawn"):
        check_same_run(tmp_path / folder, config, finished=True)
        other = changed_config(config, train__checkpoint_every=7, eval__block=3, mesh__model=2)
        check_same_run(tmp_path / folder, other, finished=True)
        for key in ("train__steps", "seed", "eval__noise_keys"):
            with pytest.raises(
                ConfigError, match=key.replace("__", r"\.") + r": \d+ there, 9 now\nName another --workdir$"
            ):
                check_same_run(tmp_path / folder, changed_config(config, **{key: 9}), finished=True)
    open_workdir(tmp_path / "few", changed_config(drawn, loss__negatives=16), "log")
    with pytest.raises(ConfigError, match=r"loss\.negatives: 16 there, -1 now"):
        check_same_run(tmp_path / "few", config, finished=True)
    with pytest.raises(ConfigError, match=r"loss\.negatives: 4096 there, -1 now"):
        check_same_run(tmp_path / "drawn", changed_config(config, auto__negatives=16), finished=True)


def test_whether_a_run_that_goes_on_is_of_a_configuration(tmp_path):
    """As when it is started: so that a comparison refuses it before it trains another."""
    config = changed_config(base_config(), loss__negatives=0)
    open_workdir(tmp_path, config, "log")
    for changed in (changed_config(config, train__steps=9999), changed_config(config, loss__negatives=-1)):
        check_same_run(tmp_path, changed, finished=False)
    with pytest.raises(
        ConfigError, match=r"train\.keep: .*\nName another --workdir, or delete it: it holds no checkpoint"
    ):
        check_same_run(tmp_path, changed_config(config, train__keep=7), finished=False)


def test_intents_that_an_older_version_let_be_set_without_effect(tmp_path):
    config = changed_config(base_config(), model__name="sasrec")
    open_workdir(tmp_path, config, "log")
    stored = json.loads((tmp_path / "config.json").read_text())
    stored["config"]["diffusion"]["samples"] = 4
    (tmp_path / "config.json").write_text(json.dumps(stored))
    assert read_config(tmp_path, config) == (config, "log")


def test_another_process_must_have_the_settings_log_and_folder_of_the_first(tmp_path, monkeypatch):
    config = base_config()
    open_workdir(tmp_path / "run", config, "log")
    stored = (tmp_path / "run" / "config.json").read_text()
    monkeypatch.setattr(jax, "process_index", lambda: 1)
    open_workdir(tmp_path / "run", changed_config(config, data__path="/elsewhere"), "log")
    with pytest.raises(ConfigError, match=r"(?s)process 0 has other settings.*seed: 0 there, 1 now"):
        open_workdir(tmp_path / "run", changed_config(config, seed=1), "log")
    with pytest.raises(ConfigError, match=r"train.steps"):  # which may change from start to start
        open_workdir(tmp_path / "run", changed_config(config, train__steps=7), "log")
    with pytest.raises(CheckpointError, match=r"process 0 read another interaction log"):
        open_workdir(tmp_path / "run", config, "another")
    with pytest.raises(CheckpointError, match=r"which process 0 wrote, is not here"):
        open_workdir(tmp_path / "mine", config, "log")
    assert not (tmp_path / "mine").exists() and (tmp_path / "run" / "config.json").read_text() == stored


def test_what_one_process_refuses_the_others_do_not_begin(tmp_path, monkeypatch):
    monkeypatch.setattr(workdir, "_any", lambda own: True)
    with pytest.raises(CheckpointError, match="another process"):
        open_workdir(tmp_path / "run", base_config(), "log")
