"""T2Diff at every position: trained at each as inference runs there; what reaches what; noise, sizes, learning."""

import dataclasses
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
from counts import block, conv, count, dense, level, norm, parameters
from model_cases import (
    CATEGORIES,
    CONTENT,
    ITEMS,
    PLAIN,
    ROWS,
    SIZES,
    STATS,
    USER_FEATURES,
    WINDOW,
    built,
    drawn,
    gradients_of_parts,
    make_batch,
    make_catalogue,
    named_leaves,
    normal,
    put,
    scores_after,
    small_config,
    user_vectors,
)

from configs import base
from t2diff_jax.models import build_retriever, t2diff_causal
from t2diff_jax.models.generators import Context
from t2diff_jax.models.objective import step_items
from t2diff_jax.nn.attention import SlotAttention, TargetAttention
from t2diff_jax.types import Generative, Retriever, Sizes

CATALOGUE, BATCH, KEY = make_catalogue(), make_batch(), jax.random.key(0)
VALID = np.asarray(BATCH["history"]) > 0
ROWS_WITH_BEHAVIOURS = VALID.any(axis=1)
EMPTY = {"model__slot": "empty"}
CATALOGUE_MEAN = {
    "diffusion__estimate": "catalogue", "diffusion__sampler_steps": 2, "loss__exclude_seen": True,
    "eval__exclude_seen": True,
}  # fmt: skip
ROTARY = {"model__positions": "rotary"}
SKETCH = {"model__sketch_dim": 4}
SEVERAL_CALLS = {"diffusion__sampler": "ddpm", "diffusion__sampler_steps": 5}
# Noise of the reverse process for every r in 1..T + 2, T = 5.
NOISE = normal(2, 8, *VALID.shape, 8)
GENERATORS = ("diffusion", "regressor", "vae", "gan", "diffurec")
POSITIONS = ("params", "encoder", "positions")


def model(**changes):
    return built(model__name="t2diff_causal", **changes)


def encoder(**changes):
    return user_vectors(model(**changes)[0])


def part_gradients(**changes):
    return gradients_of_parts(model(**changes)[0])


@functools.cache
def every_position(**changes):
    """Compiled (variables, batch, noise) -> user vectors at every position as a training step makes them, [B, L, D]."""
    retriever, _ = model(**changes)

    def run(variables, batch, noise):
        def apply(method, *args, **options):
            return retriever.net.apply({"params": variables["params"]}, *args, method=method, **options)

        x, slots = apply("embed", batch["history"], CATALOGUE), None
        states = apply("encode", x, batch["history"], deterministic=True)
        if retriever.model.slot != "empty":
            context = retriever.context(variables, x, states, batch["history"] > 0, None)
            settle = retriever.settle(variables, CATALOGUE, context, batch["history"])
            slots = retriever.generate(variables, context, lambda r: noise[r], settle)
        return apply("user", x, states, slots, batch, last=False, deterministic=True)

    return jax.jit(run)


@functools.cache
def last_position(**changes):
    """Compiled (variables, batch, noise) -> `encode_user` [B, D] with this noise in place of the requests' own."""
    retriever, _ = model(**changes)

    def run(variables, batch, noise):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(
                t2diff_causal, "noise_per_user", lambda keys, intent, shape: lambda r: noise[r][:, -shape[1] :]
            )
            return retriever.encode_user(variables, CATALOGUE, batch, KEY)[0][:, 0]

    return jax.jit(run)


def test_interface():
    retriever, variables = model()
    assert isinstance(retriever, Retriever) and hash(retriever) == hash(dataclasses.replace(retriever))
    fresh = jax.eval_shape(retriever.init, KEY, CATALOGUE, BATCH)
    assert jax.tree.map(lambda a: (a.shape, a.dtype), fresh) == jax.tree.map(lambda a: (a.shape, a.dtype), variables)
    items = np.asarray(retriever.encode_items(variables, CATALOGUE))
    assert items.shape == (ROWS, 8) and items.dtype == np.float32
    np.testing.assert_array_equal(np.any(items != 0, axis=1), (np.arange(ROWS) > 0) & (np.arange(ROWS) <= ITEMS))


# Every position as if it were the last


def cut_after(p, batch, variables, noise):
    """The requests whose last behaviour is at position p, and what they need to be encoded alike.

    The behaviours move to the right end of the window, with them their noise, and their position embeddings, which
    count from that end. Ages are seconds before the request, which is the time of the next behaviour.
    """
    shift = WINDOW - 1 - p

    def moved(a):
        return np.pad(np.asarray(a), ((0, 0), (shift, 0)))[:, :WINDOW]

    age = np.asarray(batch["age"])
    request = age[:, p + 1, None] if shift else 0
    cut = {**batch, "history": moved(batch["history"]), "age": moved(np.maximum(age - request, 0))}
    cut["session_length"] = np.minimum((cut["history"] > 0).sum(axis=1), 3).astype(np.int32)
    if "positions" in variables["params"]["encoder"]:
        variables = put(variables, POSITIONS, lambda x: jnp.roll(x, shift, axis=0))
    return variables, cut, np.roll(noise, shift, axis=2)


@pytest.mark.parametrize(
    "changes",
    [
        EMPTY,
        {**EMPTY, "model__session_gap": 3600},
        SEVERAL_CALLS,
        ROTARY,
        {**EMPTY, **ROTARY},
        {**ROTARY, **SKETCH},
        {"diffusion__target": "item"},
        {"model__slot": "regressor"},
        CATALOGUE_MEAN,
        {**CATALOGUE_MEAN, "model__slot": "regressor", "diffusion__sampler_steps": 1, "loss__exclude_seen": False},
        {"model__slot": "vae"},
        {"model__slot": "gan"},
    ],
    ids=[
        "empty",
        "gap",
        "ddpm",
        "rotary",
        "rotary empty",
        "sketch",
        "item",
        "regressor",
        "catalogue",
        "regressor of the catalogue",
        "vae",
        "gan",
    ],
)
def test_training_at_a_position_is_inference_at_that_position(changes):
    """The user vector that position p is trained with is `encode_user` of the window that ends there.

    With rotary positions as it is; learned ones count from the window's end and have to move with it.
    """
    _, variables = model(**changes)
    trained = np.asarray(every_position(**changes)(variables, BATCH, NOISE))
    for p in range(WINDOW - 1, -1, -1):
        expected = last_position(**changes)(*cut_after(p, BATCH, variables, NOISE))
        seen = VALID[:, p]
        np.testing.assert_allclose(trained[seen, p], expected[seen], atol=3e-5, rtol=1e-4)
        # It depends on where the window ends: the vectors of different positions differ.
        assert p == 0 or np.all(np.any(np.abs(trained[seen, p] - trained[seen, p - 1]) > 2e-3, axis=-1))


def test_the_loss_is_the_cross_entropy_of_these_vectors(monkeypatch):
    """Every valid behaviour predicts the next one, the last one the target; weight 0 and padding count nothing."""
    monkeypatch.setattr(t2diff_causal, "training_noise", lambda key, shape: lambda r: jnp.asarray(NOISE)[r])
    retriever, variables = model(diffusion__scale_decay=0.9)
    loss = jax.jit(lambda variables: retriever.loss(variables, CATALOGUE, BATCH, KEY))
    total, (metrics, stats) = loss(variables)
    # The slots of a step are made with the scale that its own drift has moved.
    users = np.asarray(every_position()({**variables, "stats": stats}, BATCH, NOISE))
    scores = users @ np.asarray(retriever.encode_items(variables, CATALOGUE)).T
    following = np.concatenate([BATCH["history"][:, 1:], BATCH["target"][:, None]], axis=1)
    terms = [
        reference.cross_entropy(scores[b, j, 1 : ITEMS + 1], following[b, j] - 1)
        for b, j in np.argwhere(VALID)
        if BATCH["weight"][b] > 0
    ]
    assert len(terms) == 6 + 4 + 1
    np.testing.assert_allclose(metrics["loss_tower"], np.mean(terms), rtol=1e-5)
    np.testing.assert_allclose(total, metrics["loss_tower"] + metrics["loss_diffusion"], rtol=1e-6)
    assert set(metrics) == {"loss_tower", "loss_diffusion", "drift_scale", "slot_cosine"}
    assert -1 <= metrics["slot_cosine"] <= 1 and stats["drift_square"] != STATS["drift_square"]


@pytest.mark.parametrize("changes", [EMPTY, {}, {**EMPTY, **SKETCH}], ids=["empty", "diffusion", "sketch"])
def test_no_position_sees_a_later_behaviour(changes):
    _, variables = model(**changes)
    before = np.asarray(every_position(**changes)(variables, BATCH, NOISE))
    for j in range(WINDOW):
        history = BATCH["history"].at[:, j].set(np.where(VALID[:, j], 1 + BATCH["history"][:, j] % ITEMS, 0))
        after = np.asarray(every_position(**changes)(variables, {**BATCH, "history": history}, NOISE))
        np.testing.assert_array_equal(before[:, :j], after[:, :j])
        assert np.all(np.any(before[VALID[:, j], j:] != after[VALID[:, j], j:], axis=-1))


def test_no_position_sees_a_later_noise():
    """Nor does a slot: the reverse process at a position is that of the window that ends there."""
    _, variables = model()
    before = np.asarray(every_position()(variables, BATCH, NOISE))
    for j in range(WINDOW):
        noise = NOISE * np.where(np.arange(WINDOW) == j, -1, 1)[:, None].astype(np.float32)
        after = np.asarray(every_position()(variables, BATCH, noise))
        np.testing.assert_array_equal(before[:, :j], after[:, :j])
        np.testing.assert_array_equal(np.any(before[:, j] != after[:, j], axis=-1), VALID[:, j])


# What reaches what


@pytest.mark.parametrize("estimate", ["vector", "catalogue"])
@pytest.mark.parametrize("training", ["sampled", "denoised"])
def test_stop_gradients_are_exact(training, estimate):
    """The diffusion loss trains the denoiser and nothing else; the tower loss everything but the denoiser."""
    changes = {
        "diffusion__slot_training": training, "diffusion__weight": 10.0, "diffusion__estimate": estimate,
    }  # fmt: skip
    _, variables = model(**changes)
    losses, (tower, diffusion, total), _ = part_gradients(**changes)(variables["params"], STATS, BATCH)
    tower, diffusion, total = named_leaves(tower), named_leaves(diffusion), named_leaves(total)
    assert np.isfinite(losses).all() and losses[1] > 0
    np.testing.assert_allclose(losses[2], losses[0] + 10 * losses[1], rtol=1e-6)
    parts = {name.split(".")[0] for name in total}
    assert parts == {
        "items", "item_norm", "users", "encoder", "session", "target_attention", "slot_in", "user_hidden", "user_out",
        "user_norm", "drift_encoder", "denoiser",
    }  # fmt: skip
    for name in total:
        assert np.isfinite(total[name]).all(), name
        mine, other = (diffusion, tower) if name.startswith(("drift_encoder.", "denoiser.")) else (tower, diffusion)
        assert not np.any(other[name]), name
        # A constant added to all keys is invisible to the softmax: the key's bias is learned by nobody.
        assert np.any(np.abs(mine[name]) > 1e-6) != name.endswith("key.bias"), name
        if mine is tower:
            # The table, the encoder and mixed attention learn from the tower loss alone, whatever lambda is.
            np.testing.assert_array_equal(total[name], tower[name])


def test_as_one_network_each_loss_reaches_all_but_the_truth():
    changes = {"diffusion__stop_gradient": False}
    _, variables = model(**changes)
    losses, (tower, diffusion, _), _ = part_gradients(**changes)(variables["params"], STATS, BATCH)
    apart, _, _ = part_gradients()(variables["params"], STATS, BATCH)
    np.testing.assert_allclose(losses, apart, rtol=1e-6)
    tower, diffusion = named_leaves(tower), named_leaves(diffusion)
    for name in tower:
        assert np.isfinite(tower[name]).all() and np.isfinite(diffusion[name]).all(), name
        assert np.any(np.abs(tower[name]) > 1e-6) != name.endswith("key.bias"), name
        if name.split(".")[0] in ("items", "item_norm", "encoder", "drift_encoder", "denoiser"):
            assert np.any(np.abs(diffusion[name]) > 1e-7) != name.endswith("key.bias"), name
    # An item that comes last alone is nothing but truth.
    history = jnp.where(BATCH["history"] == ITEMS, 1, BATCH["history"])
    batch = {**BATCH, "history": history, "target": jnp.full_like(BATCH["target"], ITEMS)}
    _, (_, diffusion, _), _ = part_gradients(**changes)(variables["params"], STATS, batch)
    rows = diffusion["items"]["item_table"]
    assert not np.any(rows[ITEMS]) and np.any(rows[1])


@pytest.mark.parametrize("slot", ["diffusion", "regressor", "vae"])
def test_as_one_network_the_gradient_is_the_derivative(slot):
    """Along a direction of the generator's own parameters, against a central difference."""
    changes = {"model__slot": slot, "diffusion__stop_gradient": False}
    _, variables = model(**changes)
    params, run, step = variables["params"], part_gradients(**changes), 0.02
    own = ("drift_encoder", "denoiser")
    leaves = {part: jax.tree.leaves(params[part]) for part in own}
    direction = {
        part: jax.tree.unflatten(
            jax.tree.structure(params[part]), [normal(i, *a.shape) for i, a in enumerate(leaves[part])]
        )
        for part in own
    }

    def moved(by):
        return {
            **params,
            **{part: jax.tree.map(lambda a, d: a + by * d, params[part], direction[part]) for part in own},
        }

    _, (tower, _, _), _ = run(params, STATS, BATCH)
    slope = sum(
        np.vdot(g, d)
        for part in own
        for g, d in zip(jax.tree.leaves(tower[part]), jax.tree.leaves(direction[part]), strict=True)
    )
    ahead, behind = (run(moved(by), STATS, BATCH)[0][0] for by in (step, -step))
    np.testing.assert_allclose(slope, (ahead - behind) / (2 * step), rtol=0.05, atol=2e-3)
    assert abs(slope) > 1e-2


@pytest.mark.parametrize("target", ["drift", "item"])
def test_the_mean_of_the_catalogue_is_generated(target):
    """One call: the mean of the unseen items, weighted by the softmax of what the network says, placed."""
    changes = {**CATALOGUE_MEAN, "diffusion__sampler_steps": 1, "diffusion__target": target}
    retriever, variables = model(**changes)
    named, _ = model(**{**changes, "diffusion__estimate": "vector"})
    queries = np.asarray(named.generate_items(variables, CATALOGUE, BATCH, KEY))[:, 0]
    found = np.asarray(retriever.generate_items(variables, CATALOGUE, BATCH, KEY))[:, 0]
    table = np.asarray(retriever.item_embeddings(variables, CATALOGUE))
    for query, history, item in zip(queries, np.asarray(BATCH["history"]), found, strict=True):
        kept = [i for i in range(1, ITEMS + 1) if i not in history]
        weights = np.exp(table[kept] @ query)
        np.testing.assert_allclose(item, weights / weights.sum() @ table[kept], rtol=1e-4, atol=1e-5)


def test_without_the_slot_everything_but_a_denoiser_learns():
    changes = {**EMPTY, "model__item_tower": "dense"}
    _, variables = model(**changes)
    losses, (tower, _, _), stats = part_gradients(**changes)(variables["params"], STATS, BATCH)
    assert losses[1] == 0 and not {"drift_encoder", "denoiser", "slot_in"} & set(variables["params"])
    assert stats == STATS
    # Nor does the softmax over the catalogue see a constant added to all item vectors.
    invisible = ("key.bias", "item_tower.norm.bias")
    for name, g in named_leaves(tower).items():
        assert np.isfinite(g).all() and np.any(np.abs(g) > 1e-6) != name.endswith(invisible), name


def test_a_batch_of_filling_is_finite_and_teaches_nothing():
    _, variables = model(diffusion__weight=10.0)
    run = part_gradients(diffusion__slot_training="sampled", diffusion__weight=10.0)
    losses, gradients, stats = run(variables["params"], STATS, {**BATCH, "weight": BATCH["weight"] * 0})
    assert not np.any(losses) and not any(map(np.any, jax.tree.leaves(gradients)))
    assert stats == STATS


def test_rows_of_weight_zero_change_nothing():
    run = part_gradients(diffusion__slot_training="sampled", diffusion__weight=10.0)
    _, variables = model()
    batch = {**BATCH, "history": BATCH["history"].at[-1].set(5), "target": BATCH["target"].at[-1].set(3)}
    for a, b in zip(jax.tree.leaves(run(variables["params"], STATS, BATCH)),
                    jax.tree.leaves(run(variables["params"], STATS, batch)), strict=True):  # fmt: skip
        np.testing.assert_allclose(a, b, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("lengths", [(0, 0, 0, 0, 0), (1, 1, 1, 1, 1)], ids=["empty", "one behaviour"])
def test_the_shortest_windows(lengths):
    """Nothing to learn from an empty window; one behaviour is trained and encoded like any other."""
    batch = {**make_batch(lengths=lengths), "weight": jnp.ones(5), "target": jnp.arange(1, 6)}
    _, variables = model()
    run = part_gradients(diffusion__slot_training="sampled", diffusion__weight=10.0)
    losses, gradients, stats = run(variables["params"], STATS, batch)
    assert all(np.isfinite(a).all() for a in jax.tree.leaves((losses, gradients, stats)))
    assert np.all(losses > 0) == any(lengths) and np.any(losses) == any(lengths) and (stats == STATS) != any(lengths)
    assert any(map(np.any, jax.tree.leaves(gradients))) == any(lengths)
    users = np.asarray(encoder()(variables, batch, KEY))
    assert np.isfinite(users).all() and np.all(np.any(users != 0, axis=(1, 2)))


def test_the_target_reaches_no_user_vector():
    _, variables = model()
    batch = {**BATCH, "target": (BATCH["target"] + 4) % ITEMS, "weight": 1 - BATCH["weight"]}
    np.testing.assert_array_equal(encoder()(variables, BATCH, KEY), encoder()(variables, batch, KEY))


def test_padding_reaches_no_user_vector():
    """Garbage in every padding row of the tables, in the filling rows and in the ages of padded positions."""
    changes = {"model__session_gap": 3600, **SKETCH}
    _, variables = model(**changes)
    filling = np.array([0, *range(ITEMS + 1, SIZES.rows)])
    garbage = put(variables, ("params", "items", "item_table"), lambda x: x.at[filling].set(1e6))
    garbage = put(garbage, ("params", "items", "category_table"), lambda x: x.at[0].set(-1e6))
    garbage = put(garbage, ("params", "sketch", "signature_table"), lambda x: x.at[filling].set(1e6))
    batch = {**BATCH, "age": jnp.where(VALID, BATCH["age"], 2**31 - 1)}
    users = encoder(**changes)(variables, BATCH, KEY)
    np.testing.assert_array_equal(users, encoder(**changes)(garbage, batch, KEY))


def test_padded_vectors_reach_no_slot_and_no_user():
    """The same one level lower: garbage in place of the vectors at padded positions."""
    retriever, variables = model()

    @jax.jit
    def run(x):
        args, options = {"params": variables["params"]}, {"deterministic": True}
        states = retriever.net.apply(args, x, BATCH["history"], method="encode", **options)
        context = retriever.context(variables, x, states, jnp.asarray(VALID), None)
        slots = retriever.generate(variables, context, lambda r: jnp.asarray(NOISE)[r], lambda z: z)
        users = retriever.net.apply(args, x, states, slots, BATCH, method="user", last=False, **options)
        return states, slots, users

    x = normal(1, *VALID.shape, 8)
    for scale in (1.0, 1e6):
        garbage = np.where(VALID[..., None], x, scale * normal(3, *x.shape))
        for a, b in zip(run(x), run(garbage), strict=True):
            np.testing.assert_array_equal(a[VALID], b[VALID])


def test_every_behaviour_reaches_its_own_user_vector_only():
    _, variables = model()
    before = np.asarray(encoder()(variables, BATCH, KEY))
    for row, column in [(0, 0), (0, 3), (0, 5), (1, 2), (2, 5)]:
        history = BATCH["history"].at[row, column].set(1 + BATCH["history"][row, column] % ITEMS)
        changed = np.any(before != np.asarray(encoder()(variables, {**BATCH, "history": history}, KEY)), axis=(1, 2))
        assert changed.tolist() == [i == row for i in range(len(before))]


def test_the_slot_is_the_behaviour_plus_its_drift():
    """A denoiser with zero weights and output bias 1 estimates a drift of 1 everywhere, in units of the scale."""
    retriever, variables = model()
    zero = jax.tree.map(jnp.zeros_like, variables["params"]["denoiser"])
    zero["out"]["bias"] = jnp.ones(8)
    variables = put(variables, ("params", "denoiser"), lambda _: zero)
    x = jnp.asarray(normal(1, *VALID.shape, 8))
    scale = np.sqrt(0.6 / 0.5)
    context = Context(x / scale, jnp.asarray(VALID), x)
    slots = jax.jit(lambda: retriever.generate(variables, context, lambda r: 0 * x, lambda z: z))()
    np.testing.assert_allclose(slots, x + scale, rtol=1e-5, atol=1e-5)


def test_the_truth_of_a_generator_hides_nothing():
    """An oracle gives the truth away: the true next items, whatever the window shows (here: nothing)."""
    retriever, variables = model(model__slot="oracle", diffusion__target="item")
    params = {"params": variables["params"]}
    items = step_items(retriever.net, params, CATALOGUE, retriever.loss_config, BATCH)
    x = retriever.net.apply(params, BATCH["history"], CATALOGUE, method="embed")
    following = jnp.concatenate([BATCH["history"][:, 1:], BATCH["target"][:, None]], axis=1)
    expected = retriever.net.apply(params, following, CATALOGUE, method="embed")
    filled = retriever.diffuse(variables, CATALOGUE, items, 0 * x, 0 * x, BATCH, KEY)
    np.testing.assert_allclose(filled.slots[:, :, 0], expected, rtol=1e-6)


def test_dropout_acts_in_training_only():
    retriever, variables = model(**EMPTY, model__dropout=0.5)
    loss = jax.jit(lambda key: retriever.loss(variables, CATALOGUE, BATCH, key)[0])
    first, again, other = (loss(jax.random.key(seed)) for seed in (0, 0, 1))
    assert first == again != other
    users = user_vectors(retriever)(variables, BATCH, KEY)[:, 0]
    np.testing.assert_allclose(users, last_position(**EMPTY)(variables, BATCH, NOISE), atol=2e-5, rtol=1e-4)


def test_dropout_of_the_generator_acts_in_training_only():
    (retriever, variables), (plain, _) = model(model__dropout=0.5), model(model__dropout=0.0)
    x, mask = jnp.asarray(normal(1, *VALID.shape, 8)), jnp.asarray(VALID)

    def condition(key):
        return np.asarray(retriever.context(variables, x, 2 * x, mask, key).condition)[VALID]

    first, again, other, whole = (condition(key) for key in (KEY, KEY, jax.random.key(7), None))
    assert (whole != 0).all() and 0.3 < (first == 0).mean() < 0.7
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()
    kept = first != 0
    assert not np.allclose(first[kept], 2 * whole[kept])  # what enters is dropped too
    users = (user_vectors(r)(variables, BATCH, KEY) for r in (retriever, plain))
    np.testing.assert_array_equal(next(users), next(users))


def test_user_vectors_do_not_grow():
    """Before the scale and bias of their norm they have mean 0 and variance 1, whatever the network says."""
    _, variables = model()
    neutral = {"scale": jnp.ones(8), "bias": jnp.zeros(8)}
    variables = put(variables, ("params", "user_norm"), lambda _: neutral)
    larger = put(variables, ("params", "user_out", "kernel"), lambda x: 1e3 * x)
    for given in (variables, larger):
        users = np.asarray(encoder()(given, BATCH, KEY))
        np.testing.assert_allclose(users.mean(axis=-1), 0, atol=1e-5)
        np.testing.assert_allclose(users.var(axis=-1), 1, rtol=1e-3)
    scaled = np.asarray(encoder(model__user_scale=3.0)(larger, BATCH, KEY))
    np.testing.assert_allclose(scaled, 3 * users, rtol=1e-6)
    with_sketch = {**SKETCH, **EMPTY}
    _, variables = model(**with_sketch)
    variables = put(variables, ("params", "user_norm"), lambda _: neutral)
    users = np.asarray(encoder(**with_sketch)(variables, BATCH, KEY))
    np.testing.assert_allclose(users[..., :8].var(axis=-1), 1, rtol=1e-3)  # the sketch's own part is not normed


def test_dropout_of_what_the_tower_reads_and_adds():
    retriever, variables = model(model__dropout=0.5)
    x, given, made = jnp.asarray(normal(1, *VALID.shape, 8)), {}, {}

    def intercept(run, args, kwargs, context):
        result, name = run(*args, **kwargs), context.module.name
        if context.method_name == "__call__" and name in ("session", "target_attention", "user_out", "user_norm"):
            given.setdefault(name, []).append(np.asarray(args[0])[VALID])
            made.setdefault(name, []).append(np.asarray(result)[VALID])
        return result

    for deterministic in (False, True):
        options = dict(method="user", last=False, deterministic=deterministic, rngs={"dropout": KEY})
        with nn.intercept_methods(intercept):
            retriever.net.apply({"params": variables["params"]}, x, x, None, BATCH, **options)
    for (dropped, _), whole in (
        (given["target_attention"], given["target_attention"][1]),
        ([a - b for a, b in zip(given["user_norm"], made["session"], strict=True)], made["user_out"][0]),
    ):
        kept = np.abs(dropped) > 1e-5
        assert 0.3 < kept.mean() < 0.7
        np.testing.assert_allclose(dropped[kept], 2 * whole[kept], rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(given["user_norm"][1] - made["session"][1], made["user_out"][1], atol=1e-4)


def test_dropout_of_the_slot_acts_in_training_only():
    """A generated item starts from the last behaviour: it may not pass around the dropout of the tower."""
    retriever, variables = model(model__dropout=0.5)
    x, seen = jnp.asarray(normal(1, *VALID.shape, 8)), []

    def intercept(run, args, kwargs, context):
        if context.module.name == "slot_in" and context.method_name == "__call__":
            seen.append(np.asarray(args[0])[VALID])
        return run(*args, **kwargs)

    for deterministic in (False, True):
        options = dict(method="user", last=False, deterministic=deterministic, rngs={"dropout": KEY})
        with nn.intercept_methods(intercept):
            retriever.net.apply({"params": variables["params"]}, x, x, x, BATCH, **options)
    dropped, whole = seen
    assert (whole != 0).all() and 0.3 < (dropped == 0).mean() < 0.7
    np.testing.assert_allclose(dropped, np.where(dropped == 0, 0, 2 * whole), rtol=1e-6)


# Sessions and lags


def seen_by_attention(batch, *, last=False, **changes):
    """Masks and lags that the two attentions are given, without running them: (session, past, lag), [B, P, L] each."""
    sizes = dataclasses.replace(PLAIN, lags=True)
    retriever = build_retriever(small_config(model__name="t2diff_causal", **EMPTY, **changes), sizes)
    seen = {}

    def intercept(run, args, kwargs, context):
        module = context.module
        if context.method_name != "__call__":
            return run(*args, **kwargs)
        if isinstance(module, nn.LayerNorm):
            return args[0]
        if isinstance(module, SlotAttention):
            seen["session"] = np.asarray(args[2])
            return args[0]
        if isinstance(module, TargetAttention):
            seen["past"], seen["lag"] = (np.asarray(a) for a in args[2:])
            return args[1]
        if isinstance(module, nn.Dense):
            return jnp.zeros((*args[0].shape[:-1], module.features))
        return run(*args, **kwargs)

    x = jnp.zeros((*batch["history"].shape, 8))
    with nn.intercept_methods(intercept):
        users = retriever.net.apply({"params": {}}, x, x, None, batch, method="user", last=last, deterministic=True)
    assert users.shape == (len(x), 1 if last else x.shape[1], 8)
    return seen["session"].astype(int), seen["past"].astype(int), seen["lag"]


def timed(*times, request):
    """One window per row of behaviours at these times; None is padding."""
    valid = np.array([[t is not None for t in row] for row in times])
    ages = [[request - t if t is not None else 0 for t in row] for row in times]
    return {"history": jnp.asarray(valid * 1), "age": jnp.asarray(ages, jnp.int32)}


def test_without_a_gap_a_session_is_the_last_k():
    session, past, _ = seen_by_attention(timed([0, 1, 2, 3, 4], [None, None, 0, 500, 900], request=1000))
    assert past[0].tolist() == np.tri(5, dtype=int).tolist()
    assert session[0].tolist() == [[1, 0, 0, 0, 0], [1, 1, 0, 0, 0], [1, 1, 1, 0, 0], [0, 1, 1, 1, 0], [0, 0, 1, 1, 1]]
    padded = [[0, 0, 0, 0, 0], [0, 0, 0, 0, 0], [0, 0, 1, 0, 0], [0, 0, 1, 1, 0], [0, 0, 1, 1, 1]]
    assert session[1].tolist() == past[1].tolist() == padded


def test_a_gap_ends_a_session():
    """More than 60 seconds between two behaviours; the gap before the request ends none."""
    batch = timed([0, 60, 121, 122, 123, 124], [None, 0, 10, 500, 505, 700], [None] * 5 + [0], request=10_000)
    session, past, _ = seen_by_attention(batch, model__session_gap=60)
    np.testing.assert_array_equal(past, np.tri(6, dtype=int) * np.asarray(batch["history"])[:, None])
    assert session[0].tolist() == [
        [1, 0, 0, 0, 0, 0], [1, 1, 0, 0, 0, 0],
        [0, 0, 1, 0, 0, 0], [0, 0, 1, 1, 0, 0], [0, 0, 1, 1, 1, 0], [0, 0, 0, 1, 1, 1],
    ]  # fmt: skip
    assert session[1].tolist() == [
        [0, 0, 0, 0, 0, 0], [0, 1, 0, 0, 0, 0], [0, 1, 1, 0, 0, 0],
        [0, 0, 0, 1, 0, 0], [0, 0, 0, 1, 1, 0], [0, 0, 0, 0, 0, 1],
    ]  # fmt: skip
    assert session[2].sum() == session[2, 5, 5] == 1
    only, seen, _ = seen_by_attention(batch, model__session_gap=60, last=True)
    np.testing.assert_array_equal(only, session[:, -1:])
    np.testing.assert_array_equal(seen, past[:, -1:])


def test_lags_count_to_the_next_behaviour():
    """At position p the request is the behaviour after p, at the last one it is the batch's own."""
    batch = timed([0, 1, 8, 8, 108], [None, None, 0, 30, 31], request=131)
    _, past, lag = seen_by_attention(batch)
    # Seconds [1], [8, 7], [8, 7, 0], [108, 107, 100, 100], [131, 130, 123, 123, 23]: floor(log2(s + 1)).
    assert (lag * past)[0].tolist() == [
        [1, 0, 0, 0, 0], [3, 3, 0, 0, 0], [3, 3, 0, 0, 0], [6, 6, 6, 6, 0], [7, 7, 6, 6, 4]
    ]  # fmt: skip
    # [30], [31, 1], [131, 101, 100].
    assert (lag * past)[1].tolist() == [[0] * 5, [0] * 5, [0, 0, 4, 0, 0], [0, 0, 5, 1, 0], [0, 0, 7, 6, 6]]
    assert lag.min() >= 0
    np.testing.assert_array_equal(seen_by_attention(batch, last=True)[2], lag[:, -1:])
    # The longest lag there is, from an age that is as large as it can be.
    longest = seen_by_attention({**batch, "age": batch["age"].at[:, 2].set(2**31 - 1)})[2]
    assert longest[1, 4, 2] == 31


# Evaluation noise


def test_noise_belongs_to_the_request():
    """Not to its row, and not to the other rows; other users, positions and keys have other noise."""
    _, variables = model()
    users = np.asarray(encoder()(variables, BATCH, KEY))
    order = np.array([3, 0, 4, 2, 1])
    np.testing.assert_array_equal(encoder()(variables, {k: v[order] for k, v in BATCH.items()}, KEY), users[order])
    alone = {k: v.at[1:].set(v[:1]) for k, v in BATCH.items()}
    same = np.asarray(encoder()(variables, alone, KEY))
    np.testing.assert_array_equal(same, np.broadcast_to(users[:1], same.shape))
    for other in (
        encoder()(variables, {**alone, "user": jnp.arange(5)}, KEY),
        encoder()(variables, {**alone, "position": jnp.arange(5)}, KEY),
    ):
        assert len(np.unique(np.asarray(other)[:, 0, 0])) == 5
    changed = np.any(np.asarray(encoder()(variables, BATCH, jax.random.key(1))) != users, axis=(1, 2))
    # Without a behaviour there is nothing to generate from, and no noise.
    np.testing.assert_array_equal(changed, ROWS_WITH_BEHAVIOURS)


@pytest.mark.parametrize("slot", ["diffusion", "vae", "learned", "empty", "diffurec"])
def test_serving_reads_the_states_that_matter(slot, monkeypatch):
    """With all states of a window of 14 instead, of which serving reads 10 at most, users and items are the same."""
    changes = {**ROTARY, "model__slot": slot, "model__layers": 2, "data__window": 14}
    sizes = dataclasses.replace(SIZES, window=14)
    retriever = build_retriever(small_config(model__name="t2diff_causal", **changes), sizes)
    batch, read = make_batch(sizes=sizes, lengths=(14, 11, 4, 1, 0)), []
    variables = {"params": drawn(retriever.init, CATALOGUE, batch), "stats": STATS}
    some = t2diff_causal.T2DiffCausal._last_states

    def counted(*args):
        read.append(some(*args))
        return read[-1]

    def all_states(self, variables, x, history):
        return self._apply(variables, "encode", x, history, deterministic=True)

    served = []
    for states in (counted, all_states):
        monkeypatch.setattr(t2diff_causal.T2DiffCausal, "_last_states", states)
        served.append(jax.jit(lambda: (
            retriever.encode_user(variables, CATALOGUE, batch, KEY)[0],
            retriever.generate_items(variables, CATALOGUE, batch, KEY),
        ))())  # fmt: skip
    assert {states.shape[1] for states in read} == {10 if slot in ("diffusion", "vae") else 3}
    for a, b in zip(*map(jax.tree.leaves, served), strict=True):
        np.testing.assert_allclose(a, b, atol=2e-5, rtol=1e-4)


def test_a_longer_window_leaves_the_user_vectors():
    """The same behaviours further right in a longer window: noise and embedding of each position are the same."""
    _, variables = model()
    longer = dict(BATCH)
    for name in ("history", "age"):
        longer[name] = jnp.pad(BATCH[name], ((0, 0), (3, 0)))
    more = put(variables, POSITIONS, lambda x: jnp.pad(x, ((3, 0), (0, 0)), constant_values=7.0))
    users = encoder()(variables, BATCH, KEY)
    np.testing.assert_allclose(encoder()(more, longer, KEY), users, atol=2e-5, rtol=1e-4)
    assert users.shape == (5, 1, 8) and np.isfinite(users).all()


def test_several_intents():
    """The first of M intents is the one of M = 1; all differ."""
    _, variables = model()
    several = np.asarray(encoder(diffusion__samples=3)(variables, BATCH, KEY))
    assert several.shape == (5, 3, 8)
    np.testing.assert_allclose(several[:, :1], encoder()(variables, BATCH, KEY), atol=2e-5, rtol=1e-4)
    for a, b in ((0, 1), (1, 2), (0, 2)):
        np.testing.assert_array_equal(np.any(several[:, a] != several[:, b], axis=-1), ROWS_WITH_BEHAVIOURS)


@pytest.mark.parametrize("slot", ["diffusion", "regressor"])
def test_shared_noise_makes_the_same_intents_for_every_request(slot):
    """No key changes them; the intents of one request differ; training and inference make the same ones."""
    changes = {"model__slot": slot, "diffusion__noise": "intent", "diffusion__samples": 2}
    retriever, variables = model(**changes)
    users = np.asarray(encoder(**changes)(variables, BATCH, KEY))
    np.testing.assert_array_equal(users, encoder(**changes)(variables, BATCH, jax.random.key(1)))
    np.testing.assert_array_equal(np.any(users[:, 0] != users[:, 1], axis=-1), ROWS_WITH_BEHAVIOURS)
    generated = np.asarray(retriever.generate_items(variables, CATALOGUE, BATCH, KEY))

    def slots(key):
        net = functools.partial(retriever.net.apply, {"params": variables["params"]})
        x = net(BATCH["history"], CATALOGUE, method="embed")
        states = net(x, BATCH["history"], method="encode", deterministic=True)
        items = step_items(retriever.net, {"params": variables["params"]}, CATALOGUE, retriever.loss_config, BATCH)
        return retriever.diffuse(variables, CATALOGUE, items, x, states, BATCH, key)

    one, other = (jax.jit(slots)(key) for key in (KEY, jax.random.key(1)))
    np.testing.assert_array_equal(one.slots, other.slots)
    # The step has moved the drift's scale, and with it the items.
    again = retriever.generate_items({**variables, "stats": one.stats}, CATALOGUE, BATCH, KEY)
    np.testing.assert_allclose(one.slots[:, -1][VALID[:, -1]], again[VALID[:, -1]], atol=2e-5, rtol=1e-4)
    assert generated.shape == (5, 2, 8)


def test_a_regressor_has_no_noise():
    """The same network, told neither noise nor step: slot and loss are the same for every key."""
    changes = {"model__slot": "regressor"}
    retriever, variables = model(**changes)
    assert jax.tree.map(jnp.shape, variables["params"]) == jax.tree.map(jnp.shape, model()[1]["params"])
    users = encoder(**changes)(variables, BATCH, KEY)
    np.testing.assert_array_equal(users, encoder(**changes)(variables, BATCH, jax.random.key(1)))
    loss = jax.jit(lambda key: retriever.loss(variables, CATALOGUE, BATCH, key)[1][0]["loss_diffusion"])
    assert loss(KEY) == loss(jax.random.key(1)) > 0


# Other generators in the slot


@pytest.mark.parametrize("slot", GENERATORS[1:])
def test_other_generators_learn_apart_from_the_tower(slot):
    """Each parameter of the generator learns from its own loss and only from it, padding and filling teach nothing."""
    _, variables = model(model__slot=slot)
    losses, (tower, own, _), _ = part_gradients(model__slot=slot)(variables["params"], STATS, BATCH)
    tower, own = named_leaves(tower), named_leaves(own)
    parts = ("drift_encoder.", "denoiser.", "recogniser.", "critic.")
    unused = ("denoiser.drift.kernel",) if slot == "regressor" else ()  # its z is 0
    assert np.isfinite(losses).all() and losses[1] > 0
    for name in own:
        mine, other = (own, tower) if name.startswith(parts) else (tower, own)
        assert np.isfinite(mine[name]).all() and not np.any(other[name]), name
        assert np.any(np.abs(mine[name]) > 1e-6) != name.endswith(("key.bias", *unused)), name
    filling, gradients, _ = part_gradients(model__slot=slot)(
        variables["params"], STATS, {**BATCH, "weight": BATCH["weight"] * 0}
    )
    assert not np.any(filling) and not any(map(np.any, jax.tree.leaves(gradients)))


@pytest.mark.parametrize("slot", GENERATORS)
def test_a_slot_knows_nothing_of_what_comes_after_it(slot):
    """Another behaviour changes what is generated at its own position and after it, and nothing before."""
    changes = {"model__slot": slot, "diffusion__target": "item", "diffusion__mixing": 0.5}
    retriever, variables = model(**changes)
    x, mask, place = jnp.asarray(normal(1, *VALID.shape, 8)), jnp.asarray(VALID), WINDOW - 3
    noise = jnp.concatenate([jnp.asarray(NOISE), jnp.asarray(normal(5, 8, *VALID.shape, 8))])

    @jax.jit
    def slots(x):
        context = retriever.context(variables, x, x, mask, None)
        return retriever.generate(variables, context, lambda r: noise[r], lambda z: z)

    changed = np.any(slots(x) != slots(x.at[:, place].add(1.0)), axis=-1)
    assert not changed[:, :place].any()
    np.testing.assert_array_equal(changed[:, place], VALID[:, place])


def test_an_oracle_reads_the_target():
    changes = {"model__slot": "oracle"}
    retriever, variables = model(**changes)
    batch = {**BATCH, "target": 1 + BATCH["target"] % ITEMS}
    users, other = (np.asarray(encoder(**changes)(variables, b, KEY)) for b in (BATCH, batch))
    np.testing.assert_array_equal(np.any(users != other, axis=(1, 2)), ROWS_WITH_BEHAVIOURS)
    assert retriever.generate_items(variables, CATALOGUE, BATCH, KEY) is None
    losses, _, _ = part_gradients(**changes)(variables["params"], STATS, BATCH)
    assert losses[1] == 0 < losses[0]


def test_learned_slots_are_the_same_for_everyone_and_one_vector_each():
    changes = {"model__slot": "learned", "diffusion__samples": 3}
    retriever, variables = model(**changes)
    assert variables["params"]["learned"].shape == (3, 8)
    users = np.asarray(encoder(**changes)(variables, BATCH, KEY))
    np.testing.assert_array_equal(users, encoder(**changes)(variables, BATCH, jax.random.key(1)))
    assert users.shape == (5, 3, 8) and retriever.generate_items(variables, CATALOGUE, BATCH, KEY) is None
    moved = encoder(**changes)(put(variables, ("params", "learned"), lambda x: x.at[1].set(x[2])), BATCH, KEY)
    np.testing.assert_allclose(moved, users[:, [0, 2, 2]], atol=1e-5)
    assert np.all(np.any(users[:, 1] != users[:, 2], axis=-1)[ROWS_WITH_BEHAVIOURS])


def test_several_intents_learn_as_a_mixture():
    """At every position the mean of the softmaxes of the M vectors there; every learned slot gets a gradient."""
    retriever, variables = model(model__slot="learned", diffusion__samples=2)
    net = functools.partial(retriever.net.apply, {"params": variables["params"]})
    x = net(BATCH["history"], CATALOGUE, method="embed")
    states, args = net(x, BATCH["history"], method="encode", deterministic=True), dict(last=False, deterministic=True)
    slots = [jnp.broadcast_to(v, x.shape) for v in variables["params"]["learned"]]
    users = np.stack([net(x, states, slot, BATCH, method="user", **args) for slot in slots])
    scores = users @ np.asarray(retriever.encode_items(variables, CATALOGUE)).T
    following = np.concatenate([BATCH["history"][:, 1:], BATCH["target"][:, None]], axis=1)
    terms = []
    for b, j in np.argwhere(VALID):
        if BATCH["weight"][b] > 0:
            each = [reference.cross_entropy(row[1 : ITEMS + 1], following[b, j] - 1) for row in scores[:, b, j]]
            terms.append(-np.log(np.mean(np.exp(-np.array(each)))))

    def loss(params):
        return retriever.loss({**variables, "params": params}, CATALOGUE, BATCH, KEY)

    (value, (metrics, _)), gradients = jax.jit(jax.value_and_grad(loss, has_aux=True))(variables["params"])
    np.testing.assert_allclose(value, np.mean(terms), rtol=1e-5)
    assert set(metrics) == {"loss_tower"}
    gradient = gradients["learned"]
    assert np.all(np.any(gradient, axis=1)) and np.isfinite(gradient).all()


def test_intents_of_a_training_step_differ_by_their_noise(monkeypatch):
    """From the same noise several intents are worth one; from noise of their own they are not."""

    def tower(**changes):
        retriever, variables = model(**changes)
        return jax.jit(lambda: retriever.loss(variables, CATALOGUE, BATCH, KEY)[1][0]["loss_tower"])()

    assert tower() != tower(diffusion__samples=2)
    monkeypatch.setattr(t2diff_causal, "training_noise", lambda key, shape: lambda r: jnp.asarray(NOISE)[r])
    np.testing.assert_allclose(tower(diffusion__samples=2), tower(), rtol=1e-6)


@pytest.mark.parametrize("slot", GENERATORS)
def test_generated_items_are_those_of_the_slot(slot):
    """M of them a request, in the space of e(i); with them in the slot come the user vectors of `encode_user`."""
    changes = {"model__slot": slot} if slot == "regressor" else {"model__slot": slot, "diffusion__samples": 2}
    retriever, variables = model(**changes)
    assert isinstance(retriever, Generative)
    generated = retriever.generate_items(variables, CATALOGUE, BATCH, KEY)
    assert generated.shape == (5, 1 if slot == "regressor" else 2, 8) and np.isfinite(generated).all()
    net = functools.partial(retriever.net.apply, {"params": variables["params"]})
    x = net(BATCH["history"], CATALOGUE, method="embed")
    states = net(x, BATCH["history"], method="encode", deterministic=True)
    args = dict(method="user", last=True, deterministic=True)
    users = np.concatenate([net(x, states, generated[:, m, None], BATCH, **args) for m in range(generated.shape[1])], 1)
    np.testing.assert_allclose(users, encoder(**changes)(variables, BATCH, KEY), atol=3e-5, rtol=1e-4)
    assert model(**EMPTY)[0].generate_items(model(**EMPTY)[1], CATALOGUE, BATCH, KEY) is None


def test_denoising_reads_the_truth_through_its_noise():
    """At every r z_r holds something of the target; only diffusion has an r."""
    retriever, variables = model()
    seen = jax.jit(lambda batch, r: retriever.denoise_items(variables, CATALOGUE, batch, KEY, r))
    other = {**BATCH, "target": 1 + BATCH["target"] % ITEMS}
    for r in (1, 5):
        assert np.any(seen(BATCH, jnp.int32(r)) != seen(other, jnp.int32(r)))
    assert seen(BATCH, jnp.int32(1)).shape == (5, 8)
    for slot in ("regressor", "empty", "vae"):
        retriever, variables = model(model__slot=slot)
        assert retriever.denoise_items(variables, CATALOGUE, BATCH, KEY, jnp.int32(1)) is None


# Precision and sizes


def test_bfloat16_is_close_to_float32():
    _, variables = model()
    low, _ = model(model__dtype="bfloat16")
    fresh = jax.eval_shape(low.init, KEY, CATALOGUE, BATCH)
    assert {a.dtype for a in jax.tree.leaves(fresh)} == {jnp.dtype("float32")}

    @jax.jit
    def run(variables):
        loss, (metrics, _) = low.loss(variables, CATALOGUE, BATCH, KEY)
        return loss, metrics, low.encode_user(variables, CATALOGUE, BATCH, KEY)[0]

    loss, metrics, users = run(variables)
    expected, _, _ = part_gradients(diffusion__slot_training="sampled", diffusion__weight=10.0)(
        variables["params"], STATS, BATCH
    )
    assert loss.dtype == users.dtype == jnp.float32 and np.isfinite(users).all()
    np.testing.assert_allclose([metrics["loss_tower"], metrics["loss_diffusion"]], expected[:2], rtol=0.05)
    full = np.asarray(encoder()(variables, BATCH, KEY))
    assert np.abs(full - users).max() < 0.1 * np.abs(full).max()


def test_parameters_of_the_base_configuration():
    config = base.get_config()
    config.model.name = "t2diff_causal"
    sizes = Sizes(rows=1008, window=50, categories=12 + 1, content=0, user_features=(3, 4), lags=True, users=20)
    params = parameters(config, sizes)
    assert count(params["items"]) == 1008 * 48 + 13 * 16
    assert count(params["users"]) == (3 + 4) * 8
    assert count(params["item_norm"]) == norm(64)
    assert count(params["encoder"]) == 50 * 64 + 2 * block(64, 256) + norm(64)
    assert count(params["slot_in"]) == dense(64, 64)
    assert count(params["session"]) == block(64, 256)
    # Three of the four inputs of the activation unit's hidden layer have the item's width, so has the fourth, h_s.
    assert count(params["target_attention"]) == dense(4 * 64, 64) + dense(64, 1, bias=False) + 32 * 64  # 32 buckets
    assert count(params["user_hidden"]) == dense(64 + 64 + 2 * 8, 256)
    assert count(params["user_out"]) == dense(256, 64)
    assert count(params["user_norm"]) == norm(64)
    first = conv(64 + 64 + 64, 32) + norm(32)  # over [known drifts ; X ; states]
    down = level(32, 32, step=0) + level(32, 64, step=0) + level(64, 64, step=0)
    up = dense(64, 64) + level(64 + 64, 64, step=0) + dense(64, 32) + level(32 + 32, 32, step=0)
    up += dense(32, 32) + level(32 + 32, 32, step=0)
    assert count(params["drift_encoder"]) == first + down + up + dense(32, 64)
    inputs = dense(64, 128) + dense(64, 128) + dense(32, 128) + dense(128, 128)  # z_r, condition, step (two layers)
    assert count(params["denoiser"]) == inputs + 2 * (norm(128) + dense(128, 128)) + norm(128) + dense(128, 64)
    rest = {"items", "users", "encoder", "slot_in", "session", "target_attention", "user_hidden", "user_out"}
    assert set(params) == rest | {
        "item_norm",
        "user_norm",
        "drift_encoder",
        "denoiser",
    }  # the item tower is the identity
    assert CATEGORIES and CONTENT and USER_FEATURES  # the other tests have them all


# Learning


def test_two_users_are_learned_by_heart():
    """The ids that come in and the ids that are ranked are one space: both targets reach rank 1."""
    retriever = build_retriever(small_config(model__name="t2diff_causal"), PLAIN)
    batch = {
        "history": jnp.array([[1, 2, 3, 4, 5, 6], [0, 0, 0, 6, 5, 4]]),
        "session_length": jnp.array([3, 3]),
        "target": jnp.array([7, 12]),
        "weight": jnp.ones(2),
        "user": jnp.array([0, 1]),
        "position": jnp.array([6, 3]),
    }
    variables = {"params": drawn(retriever.init, make_catalogue(PLAIN), batch, scale=0.3), "stats": STATS}
    scores = scores_after(retriever, variables, batch, steps=300, rate=0.01)
    assert (scores.argmax(axis=1) + 1).tolist() == [7, 12]
    probability = np.exp(scores - scores.max(axis=1, keepdims=True))
    probability /= probability.sum(axis=1, keepdims=True)
    assert np.all(probability[[0, 1], [6, 11]] > 0.9)
