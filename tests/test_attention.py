"""Attention: naive numpy, masks, causality, empty windows, time lags."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
from model_cases import drawn, float64, normal

from t2diff_jax.nn.attention import (
    SelfAttention,
    SlotAttention,
    TargetAttention,
    TransformerBlock,
    TransformerEncoder,
    _scores,
    _summed_scores,
    lag_bucket,
    masked_softmax,
    rotate,
    softmax_beside,
)

B, L, D = 3, 5, 4
FLOAT = jnp.dtype("float32")
X = jnp.asarray(normal(0, B, L, D))
KEYS = jnp.asarray(np.arange(L) >= np.array([[0], [2], [L]]))  # a full, a padded and an empty window
PAIRS = jnp.asarray(np.broadcast_to(np.asarray(KEYS)[:, None], (B, L, L)))
GARBAGE = jnp.asarray(np.where(np.asarray(KEYS)[..., None], X, 1e6 * normal(9, B, L, D)))
ENCODER = TransformerEncoder(layers=2, heads=2, hidden=6, dropout=0.0, rotary=False, dtype=FLOAT)


@pytest.fixture(scope="module")
def encode():
    params = drawn(ENCODER.init, X, PAIRS, deterministic=True)
    return jax.jit(lambda x, mask: ENCODER.apply({"params": params}, x, mask, deterministic=True)), float64(params)


def test_masked_softmax_by_hand():
    logits = jnp.log(jnp.array([[1.0, 2.0, 5.0], [1.0, 2.0, 5.0]]))
    mask = jnp.array([[True, True, False], [False, False, False]])
    np.testing.assert_allclose(masked_softmax(logits, mask), [[1 / 3, 2 / 3, 0], [0, 0, 0]], rtol=1e-6)


def test_masked_softmax_properties():
    logits = 5 * normal(0, 4, 3, L)
    mask = normal(1, 4, 3, L) > 0
    softmax = jax.jit(masked_softmax)
    got = softmax(logits, mask)
    rows = zip(logits.reshape(-1, L), mask.reshape(-1, L), strict=True)
    expected = [reference.softmax(row, m) for row, m in rows]
    np.testing.assert_allclose(got, np.reshape(expected, got.shape), atol=1e-6)
    np.testing.assert_array_equal(got, softmax(np.where(mask, logits, np.nan), mask))
    np.testing.assert_allclose(got, softmax(logits + 100, mask), atol=1e-5)
    assert masked_softmax(jnp.zeros((2, 0)), jnp.zeros((2, 0), bool)).shape == (2, 0)
    assert softmax(logits.astype(jnp.bfloat16), mask).dtype == jnp.float32


@pytest.mark.parametrize("scale", [1.0, 1e30])
def test_masked_softmax_gradients_are_finite(scale):
    mask = jnp.array([[True, False, True], [False, False, False]])

    def total(logits):
        return (masked_softmax(logits, mask) * jnp.arange(3.0)[None]).sum()

    gradient = jax.jit(jax.grad(total))(scale * jnp.array([[1.0, -2.0, 3.0]] * 2))
    assert np.isfinite(gradient).all() and not np.any(gradient[1]) and gradient[0, 1] == 0


def test_softmax_beside_by_hand():
    """Shares 1 : 2 : 5, of which the masked one is none: own 5/6 beside 1/6; alone, where all others are masked, 1."""
    logits = jnp.log(jnp.array([[1.0, 2.0], [1.0, 2.0]]))
    mask = jnp.array([[True, False], [False, False]])
    weights, own = softmax_beside(logits, mask, jnp.log(jnp.array([5.0, 5.0])))
    np.testing.assert_allclose(weights, [[1 / 6, 0], [0, 0]], rtol=1e-6)
    np.testing.assert_allclose(own, [5 / 6, 1], rtol=1e-6)


@pytest.mark.parametrize("scale", [1.0, 1e4])
def test_softmax_beside_is_the_softmax_of_both_side_by_side(scale):
    """With its gradient, also where scores are far apart and where nothing but the own one is left."""
    logits, own, tilt = scale * normal(0, 3, 4, 5), scale * normal(1, 3, 4), normal(2, 3, 4, 6)
    mask = jnp.asarray((normal(3, 3, 1, 5) > 0) & (np.arange(3) > 0)[:, None, None])

    def beside(logits, own):
        weights, last = softmax_beside(logits, mask, own)
        return (jnp.concatenate([weights, last[..., None]], axis=-1) * tilt).sum()

    def joined(logits, own):
        allowed = jnp.concatenate([jnp.broadcast_to(mask, logits.shape), jnp.ones((3, 4, 1), bool)], axis=-1)
        return (masked_softmax(jnp.concatenate([logits, own[..., None]], axis=-1), allowed) * tilt).sum()

    found, expected = (jax.value_and_grad(f, argnums=(0, 1))(logits, own) for f in (beside, joined))
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
        assert np.isfinite(a).all()


def test_self_attention_against_numpy():
    net = SelfAttention(heads=2, rotary=False, dtype=FLOAT)
    variables = {"params": drawn(net.init, X, PAIRS)}
    apply = jax.jit(net.apply)
    got, params = apply(variables, X, PAIRS), float64(variables["params"])
    for row in range(B):
        expected = reference.self_attention(params, np.asarray(X[row], np.float64), np.asarray(PAIRS[row]))
        np.testing.assert_allclose(got[row], expected, atol=1e-5)
    # Nothing to attend to: the output bias alone.
    np.testing.assert_allclose(got[2], np.broadcast_to(params["out"]["bias"], (L, D)), atol=1e-6)
    garbage = apply(variables, GARBAGE, PAIRS)
    np.testing.assert_array_equal(got[np.asarray(KEYS)], garbage[np.asarray(KEYS)])


def test_projections_start_different():
    params = jax.jit(SelfAttention(heads=2, rotary=False, dtype=FLOAT).init)(jax.random.key(1), X, PAIRS)["params"]
    query, key, value = (params[n]["kernel"] for n in ("query", "key", "value"))
    assert np.all(query != key) and np.all(query != value) and np.all(key != value)


def test_encoder_against_numpy(encode):
    apply, params = encode
    got = apply(X, PAIRS)
    for row in range(B):
        expected = reference.encoder(params, np.asarray(X[row], np.float64), np.asarray(PAIRS[row]))
        np.testing.assert_allclose(got[row], expected, atol=1e-4)


def test_encoder_ignores_padding(encode):
    apply, _ = encode
    np.testing.assert_array_equal(apply(X, PAIRS)[np.asarray(KEYS)], apply(GARBAGE, PAIRS)[np.asarray(KEYS)])


def test_encoder_is_causal_under_a_causal_mask(encode):
    apply, _ = encode
    mask = np.broadcast_to(np.tri(L, dtype=bool), (B, L, L))
    before = np.asarray(apply(X, mask))
    for j in range(L):
        at_j = (np.arange(L) == j)[:, None]
        after = np.asarray(apply(np.where(at_j, normal(50 + j, B, L, D), X), mask))
        np.testing.assert_array_equal(before[:, :j], after[:, :j])
        assert np.all(np.abs(before[:, j:] - after[:, j:]).max(axis=-1) > 1e-4)


@pytest.mark.parametrize("rotary", [False, True])
@pytest.mark.parametrize("last", [1, 3, L])
def test_the_last_states_by_themselves(rotary, last):
    net = dataclasses.replace(ENCODER, rotary=rotary)
    params, mask = drawn(net.init, X, PAIRS, deterministic=True), PAIRS & jnp.tri(L, dtype=bool)[None]

    def states(last):
        return jax.jit(lambda x: net.apply({"params": params}, x, mask, deterministic=True, last=last))(X)

    every, some = states(0), states(last)
    assert some.shape == (B, last, D)
    np.testing.assert_allclose(some, every[:, -last:], atol=1e-5)


def test_encoder_positions_tell_orders_apart(encode):
    apply, _ = encode
    everything = np.ones((B, L, L), bool)
    forward, backward = (np.asarray(apply(x, everything)) for x in (X, X[:, ::-1]))
    assert np.abs(forward - backward[:, ::-1]).max() > 0.01


def test_encoder_gradients_are_finite():
    params = drawn(ENCODER.init, X, PAIRS, deterministic=True)

    def total(x):
        return (ENCODER.apply({"params": params}, x, PAIRS, deterministic=True) ** 2).sum()

    gradient = jax.jit(jax.grad(total))(X)
    assert np.isfinite(gradient).all()


def test_dropout_acts_in_training_only():
    block = TransformerBlock(heads=2, hidden=6, dropout=0.5, rotary=False, dtype=FLOAT)
    variables = {"params": drawn(block.init, X, PAIRS, deterministic=True)}
    apply = jax.jit(lambda key: block.apply(variables, X, PAIRS, deterministic=False, rngs={"dropout": key}))
    first, again, other = (np.asarray(apply(jax.random.key(seed))) for seed in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert np.any(first != other)


# Time lags


@pytest.mark.parametrize(
    ("seconds", "bucket"),
    [(-(2**31), 0), (-5, 0), (-1, 0), (0, 0), (1, 1), (2, 1), (3, 2), (6, 2), (7, 3), (2**31 - 2, 30), (2**31 - 1, 31)],
)
def test_lag_bucket_by_hand(seconds, bucket):
    got = lag_bucket(jnp.array([seconds], jnp.int32))
    assert got.tolist() == [bucket] and got.dtype == jnp.int32


def test_lag_bucket_is_the_floor_of_the_logarithm():
    """Below, at and above every power of two, and at random numbers of every size."""
    edges = [2**k + d for k in range(31) for d in (-2, -1, 0) if 2**k + d >= 0]
    random = 2 ** np.random.default_rng(0).uniform(0, 31, 1000)
    seconds = np.concatenate([edges, [2**31 - 2, 2**31 - 1], random.astype(np.int64)])
    expected = [int(s + 1).bit_length() - 1 for s in seconds]
    np.testing.assert_array_equal(np.floor(np.log2(seconds + 1.0)), expected)
    np.testing.assert_array_equal(jax.jit(lag_bucket)(seconds.astype(np.int32)), expected)


# A slot per position

P = 4
SLOTS = jnp.asarray(normal(11, B, P, D))
ALLOWED = np.random.default_rng(12).random((B, P, L)) < 0.6
ALLOWED[1, 2] = ALLOWED[2] = False
SLOT_ATTENTION = SlotAttention(heads=2, hidden=6, dropout=0.0, rotary=False, dtype=FLOAT)


@pytest.fixture(scope="module")
def attend():
    params = drawn(SLOT_ATTENTION.init, SLOTS, X, jnp.asarray(ALLOWED), deterministic=True)
    return jax.jit(functools.partial(SLOT_ATTENTION.apply, {"params": params}, deterministic=True)), float64(params)


def test_slot_attention_against_numpy(attend):
    apply, params = attend
    got = apply(SLOTS, X, jnp.asarray(ALLOWED))
    for row, place in np.ndindex(B, P):
        expected = reference.slot_attention(params, float64(SLOTS[row, place]), float64(X[row]), ALLOWED[row, place])
        np.testing.assert_allclose(got[row, place], expected, atol=1e-5)


def test_a_slot_attends_to_what_its_mask_allows(attend):
    apply, _ = attend
    before = np.asarray(apply(SLOTS, X, jnp.asarray(ALLOWED)))
    for j in range(L):
        at_j = (np.arange(L) == j)[None, :, None]
        after = np.asarray(apply(SLOTS, jnp.where(at_j, 1e6 * normal(20 + j, B, L, D), X), jnp.asarray(ALLOWED)))
        np.testing.assert_array_equal(np.any(before != after, axis=-1), ALLOWED[:, :, j])


def test_slots_do_not_see_each_other(attend):
    apply, _ = attend
    before = np.asarray(apply(SLOTS, X, jnp.asarray(ALLOWED)))
    for p in range(P):
        after = np.asarray(apply(SLOTS.at[:, p].set(-SLOTS[:, p]), X, jnp.asarray(ALLOWED)))
        changed = np.any(before != after, axis=-1)
        assert changed[:, p].all() and changed.sum() == B
        # Nor does their number matter.
        alone = apply(SLOTS[:, p : p + 1], X, jnp.asarray(ALLOWED)[:, p : p + 1])
        np.testing.assert_allclose(alone[:, 0], before[:, p], atol=1e-5)


def test_a_slot_with_nothing_allowed_attends_to_itself(attend):
    """Its weight on itself is then 1: the block is two projections of its own norm and the feed-forward."""
    apply, p = attend
    got = apply(SLOTS, X, jnp.asarray(ALLOWED))
    slots = float64(SLOTS[2])
    value = np.einsum("ld,dhe->lhe", reference.layer_norm(p["norm_attention"], slots), p["value"]["kernel"])
    mixed = np.einsum("lhe,hed->ld", value + p["value"]["bias"], p["mix"]["kernel"]) + p["mix"]["bias"]
    h = slots + mixed
    h = h + reference.dense(
        p["out"], reference.gelu(reference.dense(p["hidden"], reference.layer_norm(p["norm_hidden"], h)))
    )
    np.testing.assert_allclose(got[2], h, atol=1e-5)


def test_slot_attention_gradients_are_finite():
    params = drawn(SLOT_ATTENTION.init, SLOTS, X, jnp.asarray(ALLOWED), deterministic=True)

    def total(slots, x):
        return (SLOT_ATTENTION.apply({"params": params}, slots, x, jnp.asarray(ALLOWED), deterministic=True) ** 2).sum()

    gradients = jax.jit(jax.grad(total, argnums=(0, 1)))(SLOTS, X)
    assert all(np.isfinite(g).all() for g in gradients)
    np.testing.assert_array_equal(np.any(np.asarray(gradients[1]), axis=-1), ALLOWED.any(axis=1))


# Target attention: P queries, each with its own mask and lags

H = jnp.asarray(normal(3, B, P, D))
SEEN = jnp.asarray(np.asarray(KEYS)[:, None] & (np.random.default_rng(5).random((B, P, L)) < 0.7))
LAG = jnp.asarray(np.random.default_rng(4).integers(0, 7, (B, P, L)), jnp.int32)


@pytest.mark.parametrize("buckets", [0, 7])
def test_target_attention_against_the_concatenation(buckets):
    net = TargetAttention(hidden=3, lag_buckets=buckets, dtype=FLOAT)
    lag = LAG if buckets else None
    variables = {"params": drawn(net.init, X, H, SEEN, lag)}
    apply = jax.jit(net.apply)
    got, params = np.asarray(apply(variables, X, H, SEEN, lag)), float64(variables["params"])
    for row, p in np.ndindex(B, P):
        expected = reference.target_attention(
            params, float64(X[row]), float64(H[row, p]), np.asarray(SEEN[row, p]), LAG[row, p] if buckets else None
        )
        np.testing.assert_allclose(got[row, p], expected, atol=1e-5)
    np.testing.assert_array_equal(got[2], 0)
    garbage_lag = jnp.where(SEEN, LAG, 6) if buckets else None
    np.testing.assert_array_equal(got, apply(variables, GARBAGE, H, SEEN, garbage_lag))
    # The order of the history does not matter: it enters only through the lags.
    turned = apply(variables, X[:, ::-1], H, SEEN[..., ::-1], lag[..., ::-1] if buckets else None)
    np.testing.assert_allclose(got, turned, atol=1e-5)
    # P queries are P calls with one.
    for p in range(P):
        one = slice(p, p + 1)
        single = apply(variables, X, H[:, one], SEEN[:, one], lag[:, one] if buckets else None)
        np.testing.assert_allclose(got[:, one], single, atol=1e-5)

    def total(x, h):
        return (net.apply(variables, x, h, SEEN, lag) ** 2).sum()

    for gradient in jax.jit(jax.grad(total, argnums=(0, 1)))(X, H):
        assert np.isfinite(gradient).all() and np.any(gradient)


def test_target_attention_of_one_behaviour_is_that_behaviour():
    net = TargetAttention(hidden=3, lag_buckets=0, dtype=FLOAT)
    place = np.random.default_rng(6).integers(0, L, (B, P))
    only = jnp.arange(L)[None, None] == jnp.asarray(place)[..., None]
    variables = {"params": drawn(net.init, X, H, only, None)}
    np.testing.assert_allclose(net.apply(variables, X, H, only, None), X[jnp.arange(B)[:, None], place])


def test_target_attention_without_history_columns():
    net = TargetAttention(hidden=3, lag_buckets=0, dtype=FLOAT)
    variables = {"params": drawn(net.init, X[:, :0], H, SEEN[..., :0], None)}
    np.testing.assert_array_equal(net.apply(variables, X[:, :0], H, SEEN[..., :0], None), np.zeros((B, P, D)))


def test_compute_dtype():
    low = jnp.dtype("bfloat16")
    for net, *inputs in (
        (TargetAttention(hidden=3, lag_buckets=7, dtype=low), X, H, SEEN, LAG),
        (SelfAttention(heads=2, rotary=False, dtype=low), X, PAIRS),
        (
            SlotAttention(heads=2, hidden=6, dropout=0.5, rotary=False, dtype=low),
            SLOTS.astype(low),
            X.astype(low),
            SEEN,
        ),
    ):
        options = {"deterministic": True} if isinstance(net, SlotAttention) else {}
        init = functools.partial(net.init_with_output, **options)
        out, variables = jax.eval_shape(init, jax.random.key(1), *inputs)
        assert {a.dtype for a in jax.tree.leaves(variables)} == {jnp.dtype("float32")} and out.dtype == low


def test_rotation_by_hand():
    """Two places, one head of width 2: the newest stays, the one before it turns by one radian backwards."""
    x = jnp.asarray([[[[1.0, 0.0]], [[1.0, 0.0]]]])
    expected = [[[[np.cos(1), -np.sin(1)]], [[1.0, 0.0]]]]
    np.testing.assert_allclose(rotate(x), expected, atol=1e-6)


def test_rotated_products_depend_on_the_distance_alone():
    q, k = (jnp.asarray(np.random.default_rng(i).normal(size=(1, 1, 2, 6)), FLOAT) for i in (1, 2))
    q, k = (jnp.broadcast_to(a, (1, 5, 2, 6)) for a in (q, k))
    products = np.asarray(jnp.einsum("bphe,blhe->bhpl", rotate(q), rotate(k)))[0]
    for distance in range(-4, 5):
        diagonal = np.diagonal(products, distance, axis1=1, axis2=2)
        np.testing.assert_allclose(diagonal, diagonal[:, :1] * np.ones_like(diagonal), atol=1e-5)
    assert np.ptp(products) > 1e-2
    # A longer window leaves the places of the newest behaviours where they are.
    np.testing.assert_allclose(rotate(q)[:, -2:], rotate(q[:, -2:]), atol=1e-6)


def test_rotary_attention_tells_orders_apart_and_has_no_table():
    net = SelfAttention(heads=1, rotary=True, dtype=FLOAT)
    everything = jnp.ones((1, *PAIRS.shape[-2:]), bool)
    params = net.init(jax.random.key(0), X, everything)
    order = np.arange(X.shape[1])[::-1]
    assert not np.allclose(net.apply(params, X[:, order], everything), net.apply(params, X, everything)[:, order])
    plain = SelfAttention(heads=1, rotary=False, dtype=FLOAT)
    np.testing.assert_allclose(
        plain.apply(params, X[:, order], everything), plain.apply(params, X, everything)[:, order], atol=1e-5
    )
    encoder = TransformerEncoder(layers=1, heads=1, hidden=4, dropout=0.0, rotary=True, dtype=FLOAT)
    shapes = jax.eval_shape(functools.partial(encoder.init, deterministic=True), jax.random.key(0), X, everything)
    assert "positions" not in shapes["params"]


def test_scores_are_the_same_for_cuda():
    """There they are a sum; nothing but the device chooses."""
    unit, score = jnp.asarray(normal(0, 3, 2, 4, 5)), jnp.asarray(normal(1, 3))
    lowered = jax.jit(_scores).trace(unit, score).lower(lowering_platforms=("cuda",)).as_text()
    assert "dot_general" not in lowered and "dot_general" in jax.jit(_scores).lower(unit, score).as_text()
    expected = np.einsum("ebpj,e->bpj", unit, score)
    np.testing.assert_allclose(_scores(unit, score), expected, atol=1e-5)
    np.testing.assert_allclose(_summed_scores(unit, score), expected, atol=1e-5)
