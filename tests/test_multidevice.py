"""One device or eight, laid out in any way: the same vectors, ranks, losses and parameters.

Parameters are compared under plain gradient descent: Adam divides by the gradient's size, so that it makes a step of
full length from what is only rounding.
"""

import dataclasses

import jax
import numpy as np
import optax
import pytest
import tiny

from t2diff_jax.data.batches import evaluation_batches
from t2diff_jax.program_cost import collectives_of
from t2diff_jax.sharding import put_batch

pytestmark = pytest.mark.skipif(jax.device_count() != 8, reason="needs 8 devices")
UNSEEN = {"loss__exclude_seen": True, "eval__exclude_seen": True}
MODELS = {
    "t2diff": {"model__name": "t2diff"},
    "t2diff, shared negatives": {"model__name": "t2diff", "loss__negatives": 24},
    "t2diff, touched rows and negatives": {"model__name": "t2diff", "loss__negatives": 24, "optim__lazy_rows": True},
    "t2diff, negatives of both kinds": {"model__name": "t2diff", "loss__negatives": 8, "loss__batch_negatives": 16},
    "t2diff_causal": {"model__name": "t2diff_causal", "model__sketch_dim": 6, "model__positions": "rotary", **UNSEEN},
    "t2diff_causal, names items": {"model__name": "t2diff_causal", "diffusion__estimate": "catalogue", **UNSEEN},
    "sasrec": {"model__name": "sasrec", "model__sketch_dim": 6, "loss__chunk": 20},
    "sasrec, blocks of items": {"model__name": "sasrec", "loss__block": 16, "loss__merge": "logsumexp", **UNSEEN},
    "sasrec, shared negatives": {"model__name": "sasrec", "loss__negatives": 24, **UNSEEN},
}
CASES = [(name, mesh) for name in ("t2diff", "t2diff_causal") for mesh in ((8, 1), (2, 4))]
CASES += [("sasrec", mesh) for mesh in ((8, 1), (4, 2), (1, 8))]
CASES += [(name, (2, 4)) for name in MODELS if "negatives" in name or "items" in name]
CASES += [("t2diff_causal", (1, 2)), ("t2diff, negatives of both kinds", (2, 2))]
STEPS = 20


def experiment(name, mesh):
    return dataclasses.replace(tiny.build(mesh, **MODELS[name]), tx=optax.sgd(0.05, momentum=0.9))


def train(parts, state):
    """States and losses of a few steps from `state`."""
    step, losses = parts.compile_step(), []
    for i in range(STEPS):
        state, metrics = step(state, parts.catalogue, parts.batch_at(i))
        losses.append(metrics)
    return state, losses


def outputs(parts, state):
    """User vectors of one batch, and the ranks of all test targets under two noise keys."""
    variables, targets = state.evaluation_variables(), parts.split.test
    evaluator = parts.evaluator()
    rows = next(evaluation_batches(parts.log, targets, evaluator.windows, 16, np.arange(16), with_seen=False))
    key = jax.random.key(3)
    users = jax.jit(parts.retriever.encode_user)(variables, parts.catalogue, put_batch(parts.mesh, rows, 16), key)
    return {"users": users, "scores": evaluator.score_targets(variables, targets, 2)}


@pytest.fixture(scope="module")
def one_device():
    """name -> (first state, outputs of it, last state, losses), on a single device; computed once."""
    known = {}

    def run(name):
        if name not in known:
            parts = experiment(name, (1, 1))
            start = parts.initial_state()
            first = (tiny.host(start), jax.device_get(start), jax.device_get(outputs(parts, start)))
            known[name] = (*first, *jax.device_get(train(parts, start)))
        return known[name]

    return run


@pytest.mark.parametrize(("name", "mesh"), CASES)
def test_eight_devices_do_what_one_does(one_device, name, mesh):
    leaves, start, expected, last, losses = one_device(name)
    parts = experiment(name, mesh)
    state = jax.tree.map(lambda leaf, form: jax.device_put(leaf, form.sharding), start, parts.abstract_state)
    assert_rows_are_spread(parts, state)
    tiny.assert_close(outputs(parts, state), expected)
    new, new_losses = train(parts, state)
    assert_rows_are_spread(parts, new)
    tiny.assert_close(new_losses, losses, rtol=1e-5)  # the norm of a gradient can be great
    tiny.assert_close(new, last)
    moved = [np.abs(value - leaves[key]).max() for key, value in tiny.host(last).items() if "params" in key]
    assert max(moved) > 0.01  # or nothing was shown


def assert_rows_are_spread(parts, state):
    """No device holds more than its share of an item or signature table or of what follows it."""
    rows, devices = parts.catalogue.n_rows, parts.mesh.shape["model"]
    tables = [
        leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(state)
        if "item_table" in str(path) or "signature_table" in str(path)
    ]
    assert len(tables) == 2 * (1 + (parts.config.model.sketch_dim > 0))  # each table and its momentum
    for table in (*tables, parts.catalogue.counts, parts.catalogue.categories):
        assert {shard.data.shape[0] for shard in table.addressable_shards} == {rows // devices}
        assert len({str(shard.index) for shard in table.addressable_shards}) == devices


@pytest.mark.parametrize("mesh", [(2, 4)])
def test_the_first_state_does_not_depend_on_the_devices(one_device, mesh):
    parts = experiment("t2diff", mesh)
    state = parts.initial_state()
    assert_rows_are_spread(parts, state)
    tiny.assert_close(state, one_device("t2diff")[1], atol=1e-6)


def test_recommendations_do_not_depend_on_the_devices(one_device):
    _, start, *_ = one_device("sasrec")
    found = []
    for mesh in [(1, 1), (2, 4)]:
        parts = experiment("sasrec", mesh)
        state = jax.tree.map(lambda leaf, form: jax.device_put(leaf, form.sharding), start, parts.abstract_state)
        found.append(parts.evaluator().recommend(state.evaluation_variables(), parts.split.test, 10))
    np.testing.assert_allclose(found[1][0], found[0][0], atol=1e-5)
    np.testing.assert_array_equal(found[1][1], found[0][1])


def largest_moved(compiled):
    """Bytes of the largest array that a compiled program sends between devices."""
    return max((sent.largest for sent in collectives_of(compiled)), default=0)


@pytest.mark.parametrize(
    "changes",
    [
        {"loss__negatives": 8, "loss__batch_negatives": 16, "optim__lazy_rows": True},
        {"loss__negatives": 24, "model__sketch_dim": 6},
        {"loss__block": 64, "diffusion__samples": 2, "loss__merge": "logsumexp"},
    ],
)
def test_no_step_collects_a_table(changes):
    """Whatever is learned or evaluated, between devices that each hold an eighth of the rows only small arrays move."""
    log = dict(seed=0, n_users=48, n_items=4000, categories=3, mean_length=20)
    parts = tiny.build((1, 8), model__name="t2diff_causal", data__synthetic=log, **UNSEEN, **changes)
    table = parts.catalogue.n_rows * 6 * 4  # of an item vector's 8 dimensions 2 are the category's
    step = parts.compile_step().lower(parts.abstract_state, parts.catalogue, parts.batch_at(0)).compile()
    assert 0 < largest_moved(step) < table
    evaluator, variables = parts.evaluator(), parts.initial_state().evaluation_variables()
    blocks = evaluator._build_table(variables, parts.catalogue)
    assert {shard.data.shape[1] for shard in blocks.blocks.addressable_shards} == {1}
    programs = evaluator.programs(variables, next(iter(evaluator._batches(parts.split.test))))
    assert set(programs) == {"item table", "ranks", "recommendations", "generated items", "denoised items"}
    for program, arguments in programs.values():
        assert largest_moved(program.lower(*arguments).compile()) < table


def test_an_evaluation_collects_no_batch():
    """Under several noise keys and intents at once the U-Net's inputs stay where their rows are."""
    parts = tiny.build((8, 1), model__name="t2diff", diffusion__samples=2)
    evaluator, variables = parts.evaluator(), parts.initial_state().evaluation_variables()
    batch = next(iter(evaluator._batches(parts.split.test)))
    whole = batch["history"].size * 8 * 4
    for name, (program, arguments) in evaluator.programs(variables, batch).items():
        assert largest_moved(program.lower(*arguments).compile()) < whole / 2, name


@pytest.mark.parametrize(
    ("changes", "names"),
    [
        ({"model__name": "sasrec", "model__vectors": 2, "eval__merge": "softmax_mean"}, ("ranks", "recommendations")),
        ({"model__name": "t2diff_causal"}, ("ranks", "recommendations", "generated items")),
    ],
)
def test_devices_do_not_wait_for_each_other_at_every_block(changes, names):
    """What an evaluation sends between devices is the same for many blocks of items as for few."""

    def sent(block):
        log = dict(seed=0, n_users=48, n_items=2000, categories=3, mean_length=20)
        parts = tiny.build((2, 4), data__synthetic=log, eval__block=block, **UNSEEN, **changes)
        evaluator, variables = parts.evaluator(), parts.initial_state().evaluation_variables()
        programs = evaluator.programs(variables, next(iter(evaluator._batches(parts.split.test))))
        compiled = (function.lower(*args).compile() for function, args in (programs[name] for name in names))
        return [collectives_of(program) for program in compiled]

    assert sent(400) == sent(100)
