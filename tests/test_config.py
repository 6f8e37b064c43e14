"""Configuration: the conversion, its errors, what may change on resume, and every file of configs/."""

import ast
import dataclasses
import importlib
import inspect
import json
import pathlib
import sys

import pytest
from absl import flags
from ml_collections import ConfigDict, config_flags

from configs import base
from t2diff_jax import config_rules
from t2diff_jax.config_rules import metric_names
from t2diff_jax.config_values import (
    ConfigError,
    as_computed,
    differences,
    from_mapping,
    resume_conflicts,
    settled,
    to_dict,
)

ROOT = pathlib.Path(__file__).parent.parent
FILES = sorted(
    ".".join(path.relative_to(ROOT / "configs").with_suffix("").parts)
    for path in (ROOT / "configs").rglob("*.py")
    if path.stem not in ("__init__", "base", "of_run")
)


def flatten(tree, prefix=""):
    if not isinstance(tree, dict):
        return {prefix[:-1]: tree}
    return {name: leaf for key, value in tree.items() for name, leaf in flatten(value, f"{prefix}{key}.").items()}


def values(changes=()):
    """The default configuration as nested dicts, with dotted keys changed."""
    tree = base.get_config().to_dict()
    for key, value in dict(changes).items():
        section, name = parent(tree, key)
        section[name] = value
    return tree


def parent(tree, key):
    *sections, name = key.split(".")
    for part in sections:
        tree = tree[part]
    return tree, name


KEYS = sorted(flatten(values()))


def test_every_key_of_base_is_converted():
    assert flatten(to_dict(from_mapping(base.get_config()))) == flatten(values())


def test_parts_are_frozen():
    config = from_mapping(base.get_config())
    for part in (config, *(getattr(config, f.name) for f in dataclasses.fields(config))):
        if dataclasses.is_dataclass(part):
            with pytest.raises(dataclasses.FrozenInstanceError):
                setattr(part, dataclasses.fields(part)[0].name, 1)


@pytest.mark.parametrize(
    ("key", "hint"),
    [
        ("sead", "did you mean config.seed?"),
        ("model.dimm", "did you mean config.model.dim?"),
        ("data.movielens.min_ratings", "did you mean config.data.movielens.min_rating?"),
        ("mesh.zzz", "known keys: data, model"),
    ],
)
def test_unknown_key_is_an_error_with_a_hint(key, hint):
    tree = values()
    section, name = parent(tree, key)
    section[name] = 3
    with pytest.raises(ConfigError) as error:
        from_mapping(tree)
    assert f"config.{key}: no such key" in str(error.value) and hint in str(error.value)


def test_every_missing_key_is_named():
    sections = {key.rsplit(".", 1)[0] for key in KEYS if "." in key}
    for key in [*KEYS, *sections]:
        tree = values()
        section, name = parent(tree, key)
        del section[name]
        with pytest.raises(ConfigError, match=f"config.{key}: missing; start from configs/base.py"):
            from_mapping(tree)


def test_every_key_refuses_a_wrong_type():
    wrong = {str: [3, None, ("a",)], int: ["3", 1.5, True, None], float: ["0.1", True, None], bool: [1, "True", None]}
    for key, value in flatten(values()).items():
        for bad in wrong.get(type(value), [5, "abc", None]):
            with pytest.raises(ConfigError, match=f"^config.{key}: "):
                from_mapping(values({key: bad}))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"eval.ks": (5, "ten")}, r"config.eval.ks\[1\]: expected int, got 'ten'"),
        ({"diffusion.filters": [8, True]}, r"config.diffusion.filters\[1\]: expected int, got True"),
        ({"optim.clip_norm": float("inf")}, "config.optim.clip_norm: expected a finite number, got inf"),
        ({"optim.weight_decay": float("nan")}, "config.optim.weight_decay: expected a finite number, got nan"),
        ({"model": 3}, "config.model: expected a section, got 3"),
        ({"data.tfds": "t2diff_log"}, "config.data.tfds: expected a section"),
        ({"model.dim": {"a": 1}}, "config.model.dim: expected int"),
        ({"data.protocol": "random"}, "'random' is none of 'user_holdout', 'leave_one_out', 'temporal'"),
        ({"model.dtype": ["float32"]}, "config.model.dtype: "),
    ],
)
def test_messages_of_wrong_values(changes, message):
    with pytest.raises(ConfigError, match=message):
        from_mapping(values(changes))


def test_whole_numbers_become_floats_and_lists_become_tuples():
    config = from_mapping(values({"optim.clip_norm": 5, "eval.ks": [1, 10]}))
    assert type(config.optim.clip_norm) is float and config.optim.clip_norm == 5.0
    assert config.eval.ks == (1, 10)


RULES = [
    ("seed", {"seed": -1}),
    ("data.window", {"data.window": 9}),
    ("data.window", {"data.window": 0, "model.session_length": 0}),
    ("model.session_length", {"model.session_length": 0}),
    ("model.session_gap", {"model.session_gap": 60, "data.real_times": False}),
    ("data.protocol", {"data.protocol": "temporal", "data.real_times": False}),
    ("model.session_gap", {"model.session_gap": -1}),
    ("model.heads", {"model.heads": 3}),
    ("model.heads", {"model.heads": 0}),
    ("model.positions", {"model.positions": "rotary", "model.heads": 64}),
    ("model.dim", {"model.dim": 32}),
    ("model.item_tower", {"model.user_tower": "concat"}),
    (
        "model.user_tower",
        {"model.user_tower": "concat", "model.item_tower": "dense", "model.name": "t2diff_causal"},
    ),
    ("model.sketch_dim", {"model.sketch_dim": 8}),
    ("model.row_multiple", {"model.row_multiple": 0}),
    ("model.dropout", {"model.dropout": 1.0}),
    *(("model", {f"model.{name}": -1}) for name in ("category_dim", "content_dim", "sketch_dim", "layers")),
    *(("model", {f"model.{name}": 0}) for name in ("hidden", "activation_hidden", "user_feature_dim", "init_sd")),
    ("model.user_scale", {"model.user_scale": 0.0, "model.name": "sasrec"}),
    ("model.user_scale", {"model.user_scale": 2.0, "model.name": "stosa"}),
    ("model.bert4rec.masked", {"model.bert4rec.masked": 1.1}),
    ("model.caser", {"model.caser.last": 0}),
    ("model.mamba", {"model.mamba.conv": 0}),
    ("model.mamba", {"model.mamba.chunk": -1}),
    ("model.two_tower.temperature", {"model.two_tower.temperature": -1.0}),
    ("model.two_tower.temperature", {"model.two_tower.temperature": 0.0, "model.name": "dat"}),
    ("model.dat.unknown_users", {"model.dat.unknown_users": 1.0}),
    *(("model.dat", {f"model.dat.{name}": -1.0}) for name in ("mimic", "alignment")),
    *(("model.interests", {f"model.interests.{name}": 0}) for name in ("number", "iterations")),
    *(("model.interests", {f"model.interests.{name}": -1.0}) for name in ("label_power", "diversity_weight")),
    ("model.interests", {"model.interests.last": -1}),
    ("model.interests.label_power", {"model.interests.label_power": 0.5, "model.name": "mind"}),
    ("model.interests.label_power", {"model.interests.label_power": 2.0, "model.name": "comirec_sa"}),
    ("model.interests.number", {"model.interests.number": 5, "model.name": "mind"}),
    ("diffusion.samples", {"diffusion.samples": 2, "model.name": "diffurec"}),
    ("diffusion.samples", {"diffusion.samples": 2, "model.name": "sasrec"}),
    ("model.dat.unknown_users", {"model.dat.unknown_users": 0.0, "model.name": "dat"}),
    ("eval.merge", {"eval.merge": "logsumexp", "model.name": "mind"}),
    ("loss.seen_before", {"loss.seen_before": -1}),
    ("model.contrast_vae", {"model.contrast_vae.temperature": 0.0}),
    *(("model.contrast_vae", {f"model.contrast_vae.{name}": -1.0}) for name in ("kl_weight", "contrast_weight")),
    ("model.vectors", {"model.name": "stosa", "model.vectors": 2}),
    ("loss.block", {"loss.block": 8, "loss.merge": "max"}),
    ("loss.block", {"loss.block": 8, "model.name": "mtmi"}),
    ("dry_run.n_users", {"dry_run.n_users": 0}),
    *(
        ("cold", {f"cold.{name}": 0})
        for name in ("requests", "negatives", "steps", "later", "check_every", "learning_rate")
    ),
    ("cold", {"cold.keep": (3, 0)}),
    ("cold.hidden", {"cold.hidden": ()}),
    *(("cold.cutoffs", {"cold.cutoffs": cutoffs}) for cutoffs in ((), (10, 201))),
    ("model.dropout", {"model.dropout": -0.1}),
    *(("model.behaviour_dropout", {"model.name": "sasrec", "model.behaviour_dropout": rate}) for rate in (-0.1, 1.0)),
    *(
        ("model.behaviour_dropout", {"model.name": name, "model.behaviour_dropout": 0.1})
        for name in ("t2diff", "bert4rec", "diffurec")
    ),
    (
        "model.behaviour_dropout",
        {"model.name": "t2diff_causal", "model.behaviour_dropout": 0.1, "diffusion.target": "drift"},
    ),
    *(("model.sketch_dropout", {"model.sketch_dropout": rate}) for rate in (-0.1, 1.0)),
    ("diffusion.steps", {"diffusion.steps": 0}),
    ("diffusion.sampler_steps", {"diffusion.sampler_steps": 51}),
    ("diffusion.sampler_steps", {"diffusion.sampler_steps": 0}),
    ("diffusion.sampler_steps", {"diffusion.sampler": "ddpm"}),
    ("diffusion.samples", {"diffusion.samples": 0}),
    ("diffusion.filters", {"diffusion.filters": ()}),
    ("diffusion.filters", {"diffusion.filters": (8, 0)}),
    ("model.slot", {"model.slot": "regressor"}),
    ("model.slot", {"model.slot": "oracle", "model.name": "sasrec"}),
    ("diffusion.sampler_steps", {"model.slot": "vae", "model.name": "t2diff_causal", "diffusion.sampler_steps": 2}),
    ("diffusion.samples", {"model.slot": "regressor", "model.name": "t2diff_causal", "diffusion.samples": 2}),
    ("diffusion.samples", {"model.slot": "empty", "diffusion.samples": 2}),
    ("diffusion.samples", {"loss.label_smoothing": 0.1, "diffusion.samples": 2}),
    ("diffusion.samples", {"loss.label_smoothing": 0.1, "model.name": "sasrec", "model.vectors": 2}),
    ("diffusion.noise", {"diffusion.noise": "intent"}),
    ("eval.search_recall", {"eval.search_recall": 0.0}),
    ("eval.search_recall", {"eval.search_recall": 1.5}),
    ("prepare", {"prepare.bucket_rows": 0}),
    ("dry_run.n_items", {"dry_run.n_items": 0}),
    ("dry_run", {"dry_run.categories_per_item": 0}),
    ("dry_run", {"dry_run.seen": -1}),
    ("dry_run.user_features", {"dry_run.user_features": (3, 0)}),
    ("model.vectors", {"model.vectors": 0}),
    ("loss.block", {"loss.block": -1}),
    ("optim.table_rate", {"optim.table_rate": 0.0}),
    ("loss.block", {"loss.block": 8, "loss.batch_negatives": 8}),
    ("loss.batch_negatives", {"loss.batch_negatives": -1}),
    *(("loss.frequency_decay", {"loss.frequency_decay": decay}) for decay in (0.0, 1.1)),
    *(("loss.block", {"loss.block": 8, **more}) for more in ({"loss.chunk": 8}, {"loss.negatives": 8})),
    ("loss.block", {"loss.block": 8, "loss.label_smoothing": 0.1}),
    ("loss.block", {"loss.block": 8, "diffusion.estimate": "catalogue", "model.name": "t2diff_causal"}),
    ("model.vectors", {"model.vectors": 2}),
    ("diffusion.sampler_steps", {"model.slot": "learned", "model.name": "t2diff_causal", "diffusion.sampler_steps": 2}),
    ("diffusion.estimate", {"diffusion.estimate": "catalogue"}),
    (
        "diffusion.estimate",
        {"diffusion.estimate": "catalogue", "model.name": "t2diff_causal", "model.slot": "gan"},
    ),
    (
        "diffusion.estimate",
        {"diffusion.estimate": "catalogue", "model.name": "t2diff_causal", "loss.negatives": 8},
    ),
    ("diffusion", {"diffusion.kl_weight": -1.0}),
    ("diffusion.head_hidden", {"diffusion.head_hidden": 0}),
    ("diffusion.head_blocks", {"diffusion.head_blocks": -1}),
    ("diffusion.step_dim", {"diffusion.step_dim": 0}),
    ("diffusion.step_dim", {"diffusion.step_dim": 3}),
    ("diffusion.scale", {"diffusion.scale": 0.0}),
    ("diffusion.scale", {"diffusion.rate": 5.0}),
    ("diffusion.scale", {"diffusion.rate": 1e6}),
    ("diffusion.weight", {"diffusion.weight": -0.5}),
    ("diffusion.scale_decay", {"diffusion.scale_decay": 1.0}),
    ("loss.chunk", {"loss.chunk": -1}),
    ("loss.negatives", {"loss.negatives": -2}),
    ("auto.negatives", {"auto.negatives": 0}),
    ("loss.exclude_seen", {"loss.exclude_seen": True}),
    ("loss.label_smoothing", {"loss.label_smoothing": 1.0}),
    ("loss.label_smoothing", {"loss.label_smoothing": 0.1, "loss.negatives": 64}),
    ("train.steps", {"train.steps": -1}),
    ("train.batch_size", {"train.batch_size": 0}),
    *(("train", {f"train.{name}": 0}) for name in ("log_every", "eval_every", "checkpoint_every", "keep")),
    *(("eval", {f"eval.{name}": 0}) for name in ("batch_size", "block", "noise_keys")),
    ("eval.ks", {"eval.ks": ()}),
    ("eval.ks", {"eval.ks": (0, 10)}),
    ("eval.select", {"eval.select": "ndcg@11"}),
    ("data.test_users", {"data.test_users": 0.0}),
    ("data.test_users", {"data.validation_users": 1.0}),
    ("data.validation_cut", {"data.validation_cut": 0.9}),
    ("data.validation_cut", {"data.test_cut": 1.0}),
    ("data.eval_positions", {"data.eval_positions": 0}),
    ("data.eval_positions", {"data.validation_positions": 0}),
    ("data.eval_positions", {"data.first_target": 0}),
    ("data.targets_per_user", {"data.targets_per_user": 0}),
    ("data.prefetch", {"data.prefetch": -1}),
    ("data.table.category_separator", {"data.table.category_separator": ""}),
    ("data.training_targets", {"data.training_targets": "tiled", "model.name": "t2diff"}),
    ("data.fixed_targets", {"data.fixed_targets": True, "data.training_targets": "every"}),
    ("optim", {"optim.learning_rate": 0.0}),
    ("optim", {"optim.ema": 1.0}),
    ("optim.lazy_rows", {"optim.lazy_rows": True, "loss.negatives": 0}),
    *(("optim", {f"optim.{name}": -1}) for name in ("warmup", "decay_steps", "weight_decay", "clip_norm")),
    ("mesh", {"mesh.model": 0}),
    ("mesh", {"mesh.data": -2}),
]


def test_every_rule_is_an_error_that_names_the_key():
    messages = set()
    for key, changes in RULES:
        with pytest.raises(ConfigError, match=f"^config.{key}: ") as error:
            from_mapping(values(changes))
        messages.add(str(error.value))
    returned = [node.value for node in ast.walk(ast.parse(inspect.getsource(config_rules))) if type(node) is ast.Return]
    rules = [rule for value in returned if type(value) is ast.List for rule in value.elts]
    assert len(messages) == len({ast.unparse(ast.Tuple(rule.elts[1:])) for rule in rules})  # none is left out


def test_round_trip_through_json():
    config = from_mapping(values({"optim.weight_decay": 1e-7, "data.table.user_columns": ("sex", "age")}))
    assert from_mapping(json.loads(json.dumps(to_dict(config)))) == config


def test_differences_and_resume_conflicts():
    old = from_mapping(base.get_config())
    free = {"train.steps": 9, "eval.batch_size": 7, "eval.select": "recall@10", "data.path": "/elsewhere"}
    free |= {"mesh.model": 2, "dry_run.n_items": 5, "prepare.block_rows": 5}
    bound = {"seed": 1, "train.batch_size": 8, "data.window": 60, "data.movielens.min_rating": 4.0}
    new = from_mapping(values(free | bound))
    assert differences(old, old) == {}
    assert differences(old, new) == {key: (flatten(values())[key], value) for key, value in (free | bound).items()}
    assert set(resume_conflicts(old, new)) == set(bound)
    assert resume_conflicts(old, from_mapping(values(free))) == {}


@pytest.mark.parametrize(("device", "count", "chunk"), [("cpu", 1, 200), ("cpu", 2, 0), ("gpu", 1, 0), ("tpu", 8, 0)])
def test_targets_are_scored_in_chunks_on_a_single_cpu_alone(device, count, chunk):
    config = from_mapping(values({"loss.chunk": 200}))
    computed = as_computed(config, device, count)
    assert computed.loss.chunk == chunk and set(differences(config, computed)) <= {"loss.chunk"}


def test_metric_names():
    assert metric_names((1, 10)) == ["recall@1", "recall@10", "mrr@1", "mrr@10", "ndcg@1", "ndcg@10"]


@pytest.mark.parametrize("name", FILES)
def test_every_config_file_converts(name):
    module = importlib.import_module(f"configs.{name}")
    config = from_mapping(module.get_config())
    assert module.__doc__
    assert differences(from_mapping(base.get_config()), config)  # a file that changes nothing is not needed


@pytest.fixture
def parse(monkeypatch):
    """What `train.py --config configs/quickstart.py ...` makes of its arguments."""

    def parse(*arguments):
        argv = ["train.py", f"--config={ROOT / 'configs/quickstart.py'}", *arguments]
        monkeypatch.setattr(sys, "argv", argv)  # where ml_collections looks for overrides
        values = flags.FlagValues()
        holder = config_flags.DEFINE_config_file("config", flag_values=values)
        values(argv)
        return holder.value

    return parse


def test_overrides_on_the_command_line(parse):
    config = from_mapping(parse("--config.model.dim=128", "--config.eval.ks=(1,10)", "--config.optim.clip_norm=5"))
    assert (config.model.dim, config.eval.ks, config.optim.clip_norm) == (128, (1, 10), 5.0)


def test_typo_on_the_command_line_is_rejected_with_a_hint(parse):
    with pytest.raises(AttributeError, match=r"(?s)dimm.*Did you mean.*dim"):
        parse("--config.model.dimm=128")
    with pytest.raises(flags.IllegalFlagValueError, match=r"model.dim"):
        parse("--config.model.dim=wide")


def test_no_key_is_hidden_by_a_method():
    """A key named as a method of ConfigDict, such as `items`, cannot be set on the command line."""

    def keys(section: ConfigDict) -> set[str]:
        return set(section).union(*(keys(value) for value in section.values() if isinstance(value, ConfigDict)))

    assert [key for key in keys(base.get_config()) if hasattr(ConfigDict, key)] == []


@pytest.mark.parametrize(
    ("items", "device", "changes", "negatives", "lazy"),
    [
        (20_000, "cpu", {}, 0, False),
        (20_001, "cpu", {}, 4096, True),
        (20_001, "gpu", {}, 0, False),
        (10**7, "tpu", {}, 4096, True),
        (10**7, "tpu", {"auto.negatives": 7}, 7, True),
        (10**7, "cpu", {"loss.block": 512}, 0, False),
        (10**7, "cpu", {"loss.label_smoothing": 0.1}, 0, False),
        (10**7, "cpu", {"model.name": "t2diff_causal", "diffusion.estimate": "catalogue"}, 0, False),
        (10**7, "cpu", {"model.name": "sasrec", "diffusion.estimate": "catalogue"}, 4096, True),
        (100, "cpu", {"loss.batch_negatives": 8}, 4096, True),
        (10**7, "cpu", {"loss.negatives": 0}, 0, False),
        (100, "cpu", {"loss.negatives": 9}, 9, False),
    ],
)
def test_the_softmax_that_is_not_said_follows_from_catalogue_and_device(items, device, changes, negatives, lazy):
    config = from_mapping(
        values({"auto.full_cpu": 20_000, "auto.full_gpu": 75_000, "auto.full_tpu": 75_000, **changes})
    )
    got = settled(config, items, device)
    assert (got.loss.negatives, got.optim.lazy_rows) == (negatives, lazy)
    assert settled(got, items, device) == got and set(differences(config, got)) <= {"loss.negatives", "optim.lazy_rows"}
