"""Mixed attention and the item tower."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
from model_cases import drawn, float64, normal

from t2diff_jax.nn.towers import ItemTower, MixedAttention

B, K, J, D, E, BUCKETS = 5, 3, 4, 4, 3, 6
SESSION, HISTORY, SLOT, FEATURES = normal(1, B, K, D), normal(2, B, J, D), normal(3, B, D), normal(4, B, E)
LAG = np.random.default_rng(5).integers(0, BUCKETS, (B, J)).astype(np.int32)
# Full; part of both; no history; one behaviour; nothing at all.
IN_SESSION = np.arange(K) >= K - np.array([[3], [2], [3], [1], [0]])
IN_HISTORY = np.arange(J) >= J - np.array([[4], [2], [0], [0], [0]])


def make(user_tower="concat", attend_self=True, dtype="float32"):
    return MixedAttention(1, 2, 6, 0.0, False, attend_self, 3, BUCKETS, user_tower, 7, jnp.dtype(dtype))


@functools.cache
def uncompiled(user_tower, attend_self, slot, dtype="float32"):
    """(forward, parameters)."""
    net = make(user_tower, attend_self, dtype)

    def args(session, history, slot_vector, lag):
        inputs = session, IN_SESSION, history, IN_HISTORY, slot_vector, lag, FEATURES
        return [a if i != 4 or slot else None for i, a in enumerate(map(jnp.asarray, inputs))]

    params = drawn(net.init, *args(SESSION, HISTORY, SLOT, LAG), deterministic=True)
    return lambda *inputs: net.apply({"params": params}, *args(*inputs), deterministic=True), params


@functools.cache
def case(*options):
    """The same compiled, with the module's arrays as defaults."""
    run, params = uncompiled(*options)
    compiled = jax.jit(run)

    def forward(session=SESSION, history=HISTORY, slot_vector=SLOT, lag=LAG):
        return compiled(session, history, slot_vector, lag)

    return forward, params


def expected(params, row, attend_self, slot):
    """(h_l, h_s) of one row from the numpy reference, on the valid tokens alone."""
    tokens = np.concatenate([SESSION[row], SLOT[row][None]]) if slot else SESSION[row]
    valid = np.append(IN_SESSION[row], True) if slot else IN_SESSION[row]
    pairs = np.broadcast_to(valid, (len(tokens), len(tokens)))
    if not attend_self:
        pairs = pairs & ~np.eye(len(tokens), dtype=bool)
    encoded = reference.encoder(params["session"], float64(tokens), pairs)
    h_s = encoded[valid].mean(0) if valid.any() else np.zeros(D)
    h_l = reference.target_attention(params["target_attention"], float64(HISTORY[row]), h_s, IN_HISTORY[row], LAG[row])
    return h_l, h_s


@pytest.mark.parametrize(
    ("user_tower", "attend_self", "slot"), [("concat", False, True), ("concat", True, False), ("ffn", True, True)]
)
def test_mixed_attention_against_numpy(user_tower, attend_self, slot):
    forward, params = case(user_tower, attend_self, slot)
    got, p = forward(), float64(params)
    assert got.dtype == jnp.float32 and got.shape == (B, 7 if user_tower == "ffn" else 2 * D + E)
    for row in range(B):
        joined = np.concatenate([*expected(p, row, attend_self, slot), FEATURES[row]])
        if user_tower == "ffn":
            joined = reference.dense(p["user_out"], reference.gelu(reference.dense(p["user_hidden"], joined)))
        np.testing.assert_allclose(got[row], joined, atol=1e-4)


@pytest.mark.parametrize("slot", [True, False])
def test_padding_changes_nothing(slot):
    forward, _ = case("concat", not slot, slot)
    session = np.where(IN_SESSION[..., None], SESSION, 1e6 * normal(8, B, K, D))
    history = np.where(IN_HISTORY[..., None], HISTORY, -1e6)
    np.testing.assert_array_equal(forward(), forward(session, history, SLOT, np.where(IN_HISTORY, LAG, 0)))


def test_empty_session_and_history_are_zero():
    forward, _ = case("concat", True, False)
    users = np.asarray(forward())
    assert not np.any(users[2:, :D]) and np.all(users[:2, :D] != 0)
    assert not np.any(users[4, : 2 * D]) and np.all(users[:4, D : 2 * D] != 0)
    np.testing.assert_array_equal(users[:, 2 * D :], FEATURES)


def test_the_slot_is_read_even_in_an_empty_window():
    forward, _ = case("concat", False, True)
    changed = np.asarray(forward(SESSION, HISTORY, -SLOT, LAG)) != np.asarray(forward())
    assert np.all(changed[:4, D : 2 * D].any(axis=1))
    forward, _ = case("ffn", True, True)
    assert np.all(np.any(np.asarray(forward(SESSION, HISTORY, -SLOT, LAG)) != np.asarray(forward()), axis=1))


def test_rows_do_not_mix():
    forward, _ = case("concat", False, True)
    changed = SESSION.copy()
    changed[1:] *= -1.0
    np.testing.assert_array_equal(forward(changed, HISTORY, SLOT, LAG)[0], forward()[0])


@pytest.mark.parametrize("slot", [True, False])
def test_gradients_are_finite(slot):
    forward, _ = uncompiled("concat", not slot, slot)
    gradients = jax.jit(jax.grad(lambda *x: (forward(*x, LAG) ** 2).sum(), argnums=(0, 1, 2)))(SESSION, HISTORY, SLOT)
    session, history, slot_vector = (np.asarray(g) for g in gradients)
    assert all(np.isfinite(g).all() for g in (session, history, slot_vector))
    assert not np.any(session[~IN_SESSION]) and not np.any(history[~IN_HISTORY]) and np.any(slot_vector) == slot


def test_bfloat16_is_close():
    forward, _ = case("ffn", True, True)
    low, params = case("ffn", True, True, "bfloat16")
    assert {a.dtype for a in jax.tree.leaves(params)} == {np.dtype("float32")}
    out = low()
    assert out.dtype == jnp.float32
    np.testing.assert_allclose(out, forward(), atol=0.3)


def test_item_tower():
    e = normal(6, 5, D)
    identity = ItemTower("identity", 9)
    assert not jax.tree.leaves(drawn(identity.init, e))
    np.testing.assert_array_equal(identity.apply({}, jnp.asarray(e)), e)
    dense = ItemTower("dense", 6)
    params = drawn(dense.init, e)
    p = float64(params)
    hidden = reference.dense(p["dense"], e)
    hidden = np.where(hidden > 0, hidden, np.exp(np.minimum(hidden, 0)) - 1)
    got = jax.jit(dense.apply)({"params": params}, e)
    np.testing.assert_allclose(got, reference.layer_norm(p["norm"], hidden), atol=1e-4)
    gradient = jax.jit(jax.grad(lambda e: (dense.apply({"params": params}, e) ** 2).sum()))(np.zeros_like(e))
    assert np.isfinite(gradient).all()
