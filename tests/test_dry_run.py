"""Compiling for devices without running on them."""

import importlib.util
import re

import jax
import numpy as np
import pytest
import tiny

from configs import pod
from t2diff_jax import dry_run as dry
from t2diff_jax.config_values import ConfigError, from_mapping
from t2diff_jax.data.batches import batch_forms
from t2diff_jax.gpu_kinds import KINDS, is_described, target
from t2diff_jax.program_cost import Memory

HAS_LIBTPU = importlib.util.find_spec("libtpu") is not None
HAS_CUDA = any(importlib.util.find_spec(f"jax_cuda{version}_plugin") for version in (12, 13))


def declared(experiment, **changes):
    """The configuration that declares what the log of an experiment has."""
    log = experiment.log
    told = dict(n_items=log.n_items, categories=len(log.category_names), user_features=tuple(log.user_feature_sizes))
    told |= {"categories_per_item": log.categories.shape[1]}
    return tiny.tiny(**{f"dry_run__{name}": value for name, value in told.items()}, **changes)


def test_batches_have_the_forms_that_are_told():
    parts = tiny.build((1, 1))
    batch = parts.host_batch_at(0)
    forms = batch_forms(parts.evaluator().windows, 16, parts.log.user_features.shape[1])
    assert {name: (value.shape, value.dtype) for name, value in batch.items()} == forms
    assert forms["age"] and "seen" not in forms
    assert batch_forms(parts.evaluator().windows, 16, 0, seen=64)["seen"] == ((16, 64), np.int32)


@pytest.mark.parametrize(("wanted", "width"), [(0, None), (3, 3), (4096, None)])
def test_a_training_batch_is_as_wide_as_the_log_needs(wanted, width):
    """What came before the windows, at most `loss.seen_before`; told in advance, and without the log as declared."""
    changes = dict(loss__exclude_seen=True, eval__exclude_seen=True, loss__seen_before=wanted, dry_run__seen=40)
    parts = tiny.build((1, 1), model__name="sasrec", **changes)
    width = width or min(wanted, parts.order.longest_before)
    batch, forms = parts.batch_at(0), parts.training_forms()
    assert {name: value.shape for name, value in batch.items()} == {name: form.shape for name, form in forms.items()}
    assert batch["before"].shape == (16, width) if wanted else "before" not in batch
    declared = dry.declared_experiment(parts.config, parts.mesh).training_forms()
    assert declared["before"].shape == (16, min(wanted, 40)) if wanted else "before" not in declared
    assert "before" not in tiny.build((1, 1), model__name="sasrec", loss__seen_before=wanted).training_forms()


def test_the_declared_programs_are_those_of_the_run(monkeypatch):
    """Same shapes and shardings of state, catalogue and batch as the experiment on a log of the declared sizes."""
    parts = tiny.build((1, 1), model__name="t2diff_causal", loss__negatives=8, optim__lazy_rows=True)
    config = declared(parts, model__name="t2diff_causal", loss__negatives=8, optim__lazy_rows=True)
    seen = []
    monkeypatch.setattr(dry, "_compiled", lambda name, function, arguments, *how, **more: seen.append(arguments))
    list(dry.compile_programs(config, parts.mesh, only_lower=False))
    state, catalogue, batch = seen[0]

    def forms(tree):
        return jax.tree.map(lambda a: (a.shape, a.dtype), tree)

    assert forms(state) == forms(parts.abstract_state)
    assert forms(catalogue) == forms(parts.catalogue) and catalogue.n_items == parts.catalogue.n_items
    assert forms(batch) == forms(parts.batch_at(0))


def test_the_report(tmp_path):
    """Nothing is read or written; every program is told of."""
    done = tiny.command("train.py", tmp_path / "none", "--dry_run", "--config.mesh.model=2", devices=4)
    assert done.returncode == 0, done.stderr
    assert "1,000 items, on local: 4 devices (cpu), data 2 x model 2" in done.stdout
    names = "item table", "ranks", "recommendations", "generated items", "denoised items"
    for name in ("training step", *(f"evaluation, {name}" for name in names)):
        assert re.search(rf"^{name}: [\d.,]+ GFLOP", done.stdout, re.MULTILINE)
    assert re.search(r"all-reduce +\d+ times, [\d.]+ \w+ a device", done.stdout)
    assert done.stdout.count("of the train state, while training validates") == 2
    assert "most memory per device" in done.stdout and not (tmp_path / "none").exists()


def test_programs_can_be_lowered_for_cuda_without_a_gpu():
    lines = "\n".join(dry.dry_run(tiny.tiny(), "cuda"))
    assert "all programs can be lowered" in lines and lines.count("GFLOP") == 6


def test_what_lies_beside_an_evaluation():
    """Adam's two moments and, where one is kept, the average's parameters: shares of tables, the rest whole."""
    parts = tiny.build((1, 2), model__name="sasrec", optim__kernels="adam", optim__ema=0.9)
    state = parts.abstract_state
    beside = dry.bytes_on_each(state) - dry.bytes_on_each(state.evaluation_variables())
    rows = sum(a.nbytes for a in jax.tree.leaves(parts.initial_state().params))
    table = state.params["items"]["item_table"]
    whole = 3 * (rows - table.size * 2) + 200
    assert 3 * (rows - table.size * 2) <= beside <= whole, (beside, whole)


def test_which_copies_of_a_step_are_counted(monkeypatch):
    """Those of every table's share, and of what follows its rows; an evaluation's are not looked for."""
    parts = tiny.build((1, 2), model__name="sasrec", model__sketch_dim=6, optim__kernels="adam")
    rows = parts.catalogue.n_rows // 2
    assert dry.table_shapes(parts.abstract_state) == {(rows, 6), (rows, parts.config.model.dim - 2)}
    looked_for = []
    monkeypatch.setattr(dry, "copies_of", lambda compiled, shapes: looked_for.append(shapes) or len(shapes))
    config = declared(parts, model__name="sasrec", model__sketch_dim=6, optim__kernels="adam")
    programs = list(dry.compile_programs(config, parts.mesh, only_lower=False))
    assert looked_for[0] == dry.table_shapes(parts.abstract_state)
    assert [program.copies for program in programs] == [len(looked_for[0]), *[0] * (len(programs) - 1)]


def test_a_program_too_big_for_its_device_is_told():
    small, big = Memory(5, 5, 5, 5, 0), Memory(2**35, 0, 0, 0, 0)
    programs = [dry.Program("a", 0, 0.0, memory, [], "") for memory in (small, big)]
    assert dry.verdict(programs[:1], 2**34).endswith("10 B of 16.0 GiB: fits")
    assert dry.verdict(programs, 2**34).endswith("32.0 GiB of 16.0 GiB: DOES NOT FIT")
    evaluated = dry.Program("ranks", 0, 0.0, small, [], "", beside=2**34)
    assert dry.verdict([evaluated], 2**34).endswith("16.0 GiB of 16.0 GiB: DOES NOT FIT")
    assert "16.0 GiB of the train state" in "\n".join(dry.described(evaluated, 4))
    copied = dry.Program("training step", 0, 0.0, small, [], "", copies=2)
    assert "copied whole, 2 times" in "\n".join(dry.described(copied, 4))
    refused = dry.Program("step", 0, 0.0, None, None, "RESOURCE_EXHAUSTED: 17G of 16G")
    assert dry.verdict([*programs, refused], None) == "DOES NOT FIT: step"
    assert "17G of 16G" in "".join(dry.described(refused, 4))


def test_what_is_no_topology():
    with pytest.raises(ConfigError, match=r"--topology=v5e:nine: .*give local, cuda, GPUs as h100:8 or"):
        dry.find_devices("v5e:nine")
    with pytest.raises(ConfigError, match=r"--slices=2: only TPUs have slices, and --topology=local has none"):
        list(dry.dry_run(tiny.tiny(), "local", slices=2))
    with pytest.raises(ConfigError, match=r"do not divide by 2 devices; set config\.model\.row_multiple"):
        list(dry.dry_run(tiny.tiny(model__row_multiple=1, dry_run__n_items=2, mesh__model=2, mesh__data=4), "local"))


@pytest.mark.skipif(not HAS_LIBTPU, reason="needs libtpu")
@pytest.mark.parametrize(("shape", "slices"), [("v5e:4x4", 1), ("v5e:2x4", 2)])
def test_a_pod_is_compiled_for_without_one(shape, slices):
    """The real configuration with a smaller batch and network: nothing sends, or needs for itself, a whole table.

    So also between slices, which share out the batch.
    """
    config = pod.get_config()
    config.train.batch_size = 64
    config.eval.batch_size = 64
    config.loss.negatives = config.loss.batch_negatives = 256
    config.model.layers, config.diffusion.filters = 1, (16, 16)  # else it compiles for minutes
    config = from_mapping(config)
    table = config.dry_run.n_items * (config.model.dim - config.model.category_dim) * 4
    mesh = dry.make_mesh(config.mesh, dry.find_devices(shape, slices))
    programs = list(dry.compile_programs(config, mesh, only_lower=False))
    assert [program.refusal for program in programs] == [""] * 6
    assert programs[0].copies == 0
    for program in programs:
        assert max((c.largest for c in program.collectives), default=0) < table / 100
        assert program.memory.total < table / 2 + 2**30


def test_gpus_have_names():
    """A kind, then GPUs, or hosts x GPUs."""
    assert all(map(is_described, ("h100:8", "h200:4x8", "a100:1")))
    assert not any(map(is_described, ("cuda", "h100", "h100:", "h100:2x2x2", "v5e:4x4", "h300:8")))
    told = target(KINDS["h200"])
    assert 'device_description_str: "NVIDIA H200"' in told and "shared_memory_per_block_optin: 232448" in told
    assert "ACCELERATED_FEATURES" in told and "ACCELERATED_FEATURES" not in target(KINDS["a100"])


@pytest.mark.skipif(HAS_CUDA, reason="jax's plugin for CUDA is here")
def test_gpus_want_their_compiler():
    with pytest.raises(ConfigError, match=r"--topology=h100:8: .*pip install -e '\.\[cuda\]'"):
        dry.find_devices("h100:8")


@pytest.mark.skipif(not HAS_CUDA, reason="needs jax's plugin for CUDA")
def test_gpus_are_compiled_for_without_one(tmp_path):
    """In a process of its own: the plugin has to be told that there is no driver before it is loaded."""
    how = ("--dry_run", "--topology", "h200:2x2", "--config.mesh.model=2", "--config.train.batch_size=16")
    done = tiny.command("train.py", tmp_path / "none", *how)
    assert done.returncode == 0, done.stderr
    assert "on h200:2x2: 4 devices (NVIDIA H200), data 2 x model 2" in done.stdout
    assert done.stdout.count("memory per device  ") == 6 and "of 140.0 GiB: fits" in done.stdout
    assert re.search(r"all-reduce +\d+ times", done.stdout)
