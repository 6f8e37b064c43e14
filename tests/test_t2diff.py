"""T2Diff as a whole: what reaches what, exact stop-gradients, noise, sizes, the drift scale, learning."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from counts import block, conv, count, dense, level, norm, parameters
from model_cases import (
    ITEMS,
    PLAIN,
    SIZES,
    STATS,
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
from t2diff_jax.models import build_retriever
from t2diff_jax.models.drift import drift_scale
from t2diff_jax.nn.towers import MixedAttention
from t2diff_jax.types import Sizes

CATALOGUE, BATCH, KEY = make_catalogue(), make_batch(), jax.random.key(0)
VALID = np.asarray(BATCH["history"]) > 0


def encoder(**changes):
    return user_vectors(built(**changes)[0])


def part_gradients(**changes):
    return gradients_of_parts(built(**changes)[0])


# What reaches what


@pytest.mark.parametrize("training", ["sampled", "denoised"])
def test_stop_gradients_are_exact(training):
    """The diffusion loss trains the denoiser and nothing else; the tower loss everything but the denoiser."""
    changes = {"diffusion__slot_training": training, "diffusion__weight": 10.0}
    _, variables = built(**changes)
    losses, (tower, diffusion, total), _ = part_gradients(**changes)(variables["params"], STATS, BATCH)
    tower, diffusion, total = named_leaves(tower), named_leaves(diffusion), named_leaves(total)
    assert np.isfinite(losses).all() and losses[1] > 0
    np.testing.assert_allclose(losses[2], losses[0] + 10 * losses[1], rtol=1e-6)
    for name in total:
        assert np.isfinite(total[name]).all(), name
        mine, other = (diffusion, tower) if name.startswith("denoiser.") else (tower, diffusion)
        assert not np.any(other[name]), name
        # A constant added to all keys is invisible to the softmax: the key's bias is learned by nobody.
        assert np.any(np.abs(mine[name]) > 1e-6) != name.endswith("key.bias"), name
        if mine is tower:
            # The table learns from the tower loss alone, whatever lambda is.
            np.testing.assert_array_equal(total[name], tower[name])


def test_lambda_does_not_reach_the_table():
    _, variables = built()
    table = variables["params"]["items"]["item_table"]

    def gradient(weight):
        retriever, _ = built(diffusion__slot_training="denoised", diffusion__weight=weight)

        def loss(table):
            changed = put(variables, ("params", "items", "item_table"), lambda _: table)
            return retriever.loss(changed, CATALOGUE, BATCH, KEY)[0]

        return jax.jit(jax.grad(loss))(table)

    without = gradient(0.0)
    np.testing.assert_array_equal(without, gradient(10.0))
    assert np.any(without)


def test_without_the_slot_everything_but_a_denoiser_learns():
    changes = {"model__slot": "empty", "model__user_tower": "concat", "model__item_tower": "dense"}
    _, variables = built(**changes)
    losses, (tower, _, _), stats = part_gradients(**changes)(variables["params"], STATS, BATCH)
    assert losses[1] == 0 and "denoiser" not in variables["params"] and stats["drift_square"] == STATS["drift_square"]
    # Nor does the softmax over the catalogue see a constant added to all item vectors.
    invisible = ("key.bias", "item_tower.norm.bias")
    for name, g in named_leaves(tower).items():
        assert np.isfinite(g).all() and np.any(np.abs(g) > 1e-6) != name.endswith(invisible), name


def test_a_batch_of_filling_is_finite_and_teaches_nothing():
    _, variables = built(diffusion__weight=10.0)
    run = part_gradients(diffusion__slot_training="sampled", diffusion__weight=10.0)
    losses, gradients, stats = run(variables["params"], STATS, {**BATCH, "weight": BATCH["weight"] * 0})
    assert not np.any(losses) and not any(map(np.any, jax.tree.leaves(gradients)))
    assert stats == STATS


def test_rows_of_weight_zero_change_nothing():
    run = part_gradients(diffusion__slot_training="sampled", diffusion__weight=10.0)
    _, variables = built()
    batch = {**BATCH, "history": BATCH["history"].at[-1].set(5), "target": BATCH["target"].at[-1].set(3)}
    for a, b in zip(jax.tree.leaves(run(variables["params"], STATS, BATCH)),
                    jax.tree.leaves(run(variables["params"], STATS, batch)), strict=True):  # fmt: skip
        np.testing.assert_allclose(a, b, atol=2e-5, rtol=1e-4)


def test_the_target_reaches_no_user_vector():
    _, variables = built()
    batch = {**BATCH, "target": (BATCH["target"] + 4) % ITEMS, "weight": 1 - BATCH["weight"]}
    np.testing.assert_array_equal(encoder()(variables, BATCH, KEY), encoder()(variables, batch, KEY))


def test_padding_reaches_no_user_vector():
    """Garbage in every padding row of the tables, in the filling rows and in the ages of padded positions."""
    _, variables = built()
    filling = np.array([0, *range(ITEMS + 1, SIZES.rows)])
    garbage = put(variables, ("params", "items", "item_table"), lambda x: x.at[filling].set(1e6))
    garbage = put(garbage, ("params", "items", "category_table"), lambda x: x.at[0].set(-1e6))
    batch = {**BATCH, "age": jnp.where(VALID, BATCH["age"], 2**31 - 1)}
    np.testing.assert_array_equal(encoder()(variables, BATCH, KEY), encoder()(garbage, batch, KEY))


def test_padded_vectors_reach_neither_the_slot_nor_the_user():
    """The same one level lower: garbage in place of the vectors at padded positions."""
    retriever, variables = built()
    x = normal(1, *VALID.shape, 8)

    @jax.jit
    def run(x):
        noise = normal(2, 8, *x.shape)
        slot = retriever.generate(variables, x, jnp.asarray(VALID), lambda r: jnp.asarray(noise)[r])
        user = retriever.net.apply({"params": variables["params"]}, x, slot, BATCH, deterministic=True, method="user")
        return slot, user

    rows = VALID.any(axis=1)  # an empty window has no last behaviour to start from
    for scale in (1.0, 1e6):
        garbage = np.where(VALID[..., None], x, scale * normal(3, *x.shape))
        for a, b in zip(run(x), run(garbage), strict=True):
            np.testing.assert_array_equal(a[rows], b[rows])


def test_every_behaviour_reaches_its_own_user_vector_only():
    _, variables = built()
    before = np.asarray(encoder()(variables, BATCH, KEY))
    for row, column in [(0, 0), (0, 3), (0, 5), (1, 2), (2, 5)]:
        history = BATCH["history"].at[row, column].set(1 + BATCH["history"][row, column] % ITEMS)
        changed = np.any(before != np.asarray(encoder()(variables, {**BATCH, "history": history}, KEY)), axis=(1, 2))
        assert changed.tolist() == [i == row for i in range(len(before))]


# Sessions


def session_masks(**changes):
    """The session and history masks that mixed attention is given, without running it."""
    config = small_config(**changes)
    retriever = build_retriever(config, PLAIN)
    seen = {}

    def intercept(run, args, kwargs, context):
        if isinstance(context.module, MixedAttention) and context.method_name == "__call__":
            seen["session"], seen["history"] = np.asarray(args[1]), np.asarray(args[3])
            assert args[0].shape[:2] == args[1].shape and args[2].shape[:2] == args[3].shape
            return args[0][:, 0]
        return run(*args, **kwargs)

    def user(batch):
        x = jnp.zeros((*batch["history"].shape, 8))
        with nn.intercept_methods(intercept):
            return retriever.net.apply({"params": {}}, x, None, batch, deterministic=True, method="user")

    return user, seen


def test_without_a_gap_the_history_is_all_but_the_last_k():
    user, seen = session_masks()
    user(make_batch(sizes=PLAIN, lengths=(6, 4, 2, 0)))
    assert seen["session"].astype(int).tolist() == [[1, 1, 1], [1, 1, 1], [0, 1, 1], [0, 0, 0]]
    assert seen["history"].astype(int).tolist() == [[1, 1, 1], [0, 0, 1], [0, 0, 0], [0, 0, 0]]


def test_a_gap_moves_the_rest_of_the_session_into_the_history():
    user, seen = session_masks(model__session_gap=60)
    batch = make_batch(sizes=PLAIN, lengths=(6, 6, 4, 2, 0))
    user({**batch, "session_length": jnp.array([3, 1, 2, 2, 0])})
    sessions = [[1, 1, 1], [0, 0, 1], [0, 1, 1], [0, 1, 1], [0, 0, 0]]
    assert seen["session"].astype(int).tolist() == sessions
    together = np.pad(seen["session"], ((0, 0), (WINDOW - 3, 0))).astype(int) + seen["history"]
    np.testing.assert_array_equal(together, np.asarray(batch["history"]) > 0)
    assert seen["history"].astype(int).tolist()[1] == [1, 1, 1, 1, 1, 0]


def test_a_window_that_is_all_session():
    """No history column at all: h_l = 0."""
    sizes = dataclasses.replace(SIZES, window=3)
    config = small_config(model__user_tower="concat", model__item_tower="dense", data__window=3, model__slot="empty")
    retriever = build_retriever(config, sizes)
    batch = make_batch(sizes=sizes, lengths=(3, 2, 0))

    variables = {"params": drawn(retriever.init, CATALOGUE, batch), "stats": STATS}

    @jax.jit
    def run(batch):
        return retriever.encode_user(variables, CATALOGUE, batch, KEY)[0]

    users = np.asarray(run(batch))[:, 0]
    assert not np.any(users[:, :8]) and np.all(users[:2, 8:16] != 0) and np.isfinite(users).all()


# Evaluation noise


def test_noise_belongs_to_the_request():
    """Not to its row, and not to the other rows; other users, positions and keys have other noise."""
    _, variables = built()
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
    np.testing.assert_array_equal(changed, VALID.any(axis=1))


def test_a_longer_window_leaves_the_user_vectors():
    """The same behaviours further right in a longer window: the noise of each position is the same."""
    _, variables = built()
    longer = dict(BATCH)
    for name in ("history", "age"):
        longer[name] = jnp.pad(BATCH[name], ((0, 0), (3, 0)))
    users = encoder()(variables, BATCH, KEY)
    np.testing.assert_allclose(encoder()(variables, longer, KEY), users, atol=2e-5, rtol=1e-4)
    assert users.shape == (5, 1, 8) and np.isfinite(users).all()


def test_several_intents():
    """The first of M intents is the one of M = 1; all differ."""
    _, variables = built()
    several = np.asarray(encoder(diffusion__samples=3)(variables, BATCH, KEY))
    assert several.shape == (5, 3, 8)
    np.testing.assert_allclose(several[:, :1], encoder()(variables, BATCH, KEY), atol=2e-5, rtol=1e-4)
    for a, b in ((0, 1), (1, 2), (0, 2)):
        np.testing.assert_array_equal(np.any(several[:, a] != several[:, b], axis=-1), VALID.any(axis=1))


@pytest.mark.parametrize("sampler", ["ddim", "ddpm"])
def test_the_slot_is_the_last_behaviour_plus_the_last_drift(sampler):
    """A denoiser with zero weights and output bias 1 estimates a drift of 1 everywhere, in units of the scale."""
    retriever, variables = built(diffusion__sampler=sampler, diffusion__sampler_steps=5)
    zero = jax.tree.map(jnp.zeros_like, variables["params"]["denoiser"])
    zero["out"]["bias"] = jnp.ones(8)
    variables = put(variables, ("params", "denoiser"), lambda _: zero)
    x = normal(1, 5, WINDOW, 8)

    @jax.jit
    def slot(x):
        return retriever.generate(variables, x, jnp.asarray(VALID), lambda r: jnp.zeros(x.shape))

    rows = VALID.any(axis=1)
    np.testing.assert_allclose(slot(x)[rows], x[rows, -1] + np.sqrt(0.6 / 0.5), rtol=1e-5, atol=1e-5)


def test_known_drifts_are_those_between_two_behaviours(monkeypatch):
    """Row 1 has four behaviours: three drifts are known, the last one is what is to be generated."""
    retriever, variables = built()
    x, seen = jnp.asarray(normal(1, 5, WINDOW, 8)), []

    def fake(schedule, estimate, noise, calls, known):
        seen.append((calls, known))
        return noise(0)

    monkeypatch.setattr("t2diff_jax.models.drift.ddim", fake)
    retriever.generate(variables, x, jnp.asarray(VALID), lambda r: jnp.zeros(x.shape))
    (calls, known), scale = seen[0], np.sqrt(0.6 / 0.5)
    assert calls == 1
    lengths = VALID.sum(axis=1)
    assert known.mask[..., 0].sum(axis=1).tolist() == np.maximum(lengths - 1, 0).tolist()
    assert known.mask[1, :, 0].tolist() == [False, False, True, True, True, False]
    np.testing.assert_allclose(known.z0[:, :-1], (x[:, 1:] - x[:, :-1]) / scale, rtol=1e-5, atol=1e-6)
    free = build_retriever(small_config(diffusion__clamp_known=False), SIZES)
    free.generate(variables, x, jnp.asarray(VALID), lambda r: jnp.zeros(x.shape))
    assert seen[1][1] is None


# The drift scale


def test_the_diffusion_loss_does_not_depend_on_the_scale_of_the_items():
    """Twice the table and the statistics of twice the table: exactly the same normalised problem."""
    run = part_gradients(diffusion__slot_training="denoised", diffusion__weight=10.0)
    _, variables = built()
    doubled = put(variables["params"], ("items",), lambda items: jax.tree.map(lambda a: 2 * a, items))
    twice = {"drift_square": 4 * STATS["drift_square"], "drift_weight": STATS["drift_weight"]}
    losses, _, stats = run(variables["params"], STATS, BATCH)
    doubled_losses, _, doubled_stats = run(doubled, twice, BATCH)
    np.testing.assert_allclose(drift_scale(doubled_stats), 2 * drift_scale(stats), rtol=1e-6)
    np.testing.assert_allclose(doubled_losses[1], losses[1], rtol=1e-5)
    assert doubled_losses[0] != losses[0]


# Precision


def test_bfloat16_is_close_to_float32():
    _, variables = built()
    low = build_retriever(small_config(model__dtype="bfloat16"), SIZES)
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


# Sizes


def test_parameters_of_the_papers_configuration():
    config = base.get_config()
    config.model.update(dim=4, category_dim=2, content_dim=0, layers=1, heads=2, hidden=64, activation_hidden=4)
    config.model.update(user_tower="concat", item_tower="dense", attend_self=False, row_multiple=1)
    config.diffusion.filters = (4, 8, 16, 32)
    sizes = Sizes(rows=3706 + 1, window=50, categories=18 + 1, content=0, user_features=(), lags=False, users=20)
    params = parameters(config, sizes)
    assert count(params["items"]) == (3706 + 1) * 2 + (18 + 1) * 2
    assert count(params["item_tower"]) == dense(4, 8) + norm(8)
    # The session encoder has a position for each of ten behaviours and the generated item.
    session = (10 + 1) * 4 + block(4, 64) + norm(4)
    # Three of the four inputs of the activation unit's hidden layer have the item's width, so has the fourth, h_s.
    unit = dense(4 * 4, 4) + dense(4, 1, bias=False)
    assert count(params["mixed"]) == session + unit
    first = conv(4 + 4, 4) + dense(32, 4) + norm(4)  # over [z_r ; X]
    down = level(4, 8) + level(8, 16) + level(16, 32)
    up = dense(32, 16) + level(16 + 16, 16) + dense(16, 8) + level(8 + 8, 8) + dense(8, 4) + level(4 + 4, 4)
    assert count(params["denoiser"]) == dense(32, 32) + first + down + up + dense(4, 4)
    assert set(params) == {"items", "item_tower", "mixed", "denoiser"}


def test_parameters_of_the_base_configuration():
    sizes = Sizes(rows=1008, window=50, categories=12 + 1, content=0, user_features=(), lags=True, users=20)
    params = parameters(base.get_config(), sizes)
    assert count(params["items"]) == 1008 * 48 + 13 * 16
    session = (10 + 1) * 64 + 2 * block(64, 256) + norm(64)
    unit = dense(4 * 64, 64) + dense(64, 1, bias=False) + 32 * 64  # 32 buckets of the time lag
    assert count(params["mixed"]) == session + unit + dense(2 * 64, 256) + dense(256, 64)
    first = conv(64 + 64, 32) + dense(32, 32) + norm(32)
    down = level(32, 32) + level(32, 64) + level(64, 64)
    up = dense(64, 64) + level(64 + 64, 64) + dense(64, 32) + level(32 + 32, 32) + dense(32, 32) + level(32 + 32, 32)
    assert count(params["denoiser"]) == dense(32, 32) + first + down + up + dense(32, 64)
    assert set(params) == {"items", "mixed", "denoiser"}  # the item tower is the identity


# Learning


def test_two_users_are_learned_by_heart():
    """The ids that come in and the ids that are ranked are one space: both targets reach rank 1."""
    retriever = build_retriever(small_config(), PLAIN)
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
