"""Models of several interests: who sees what, which interest speaks, the loss by hand, each one against numpy."""

import dataclasses
import types

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
from model_cases import (
    ITEMS,
    PLAIN,
    SIZES,
    drawn,
    float64,
    make_batch,
    make_catalogue,
    named_leaves,
    normal,
    small_config,
)

from t2diff_jax import rng
from t2diff_jax.models import build_retriever
from t2diff_jax.models.interests import label_aware

NAMES = ("mind", "comirec_sa", "comirec_dr", "drim", "mtmi")
CATALOGUE, BATCH = make_catalogue(), make_batch()
VALID = np.asarray(BATCH["history"]) > 0
K = 3  # of interests of 8 behaviours: log2


def make(name, sizes=SIZES, **changes):
    changes = (
        dict(model__name=name, model__sketch_dim=4, model__interests__number=K, model__interests__last=8) | changes
    )
    return build_retriever(small_config(**changes), sizes)


@pytest.fixture(scope="module", params=NAMES)
def model(request):
    """A retriever, its variables, and compiled (variables, batch) -> (users, active), ((loss, metrics), gradient)."""
    retriever = make(request.param, model__interests__diversity_weight=0.5, model__interests__margin=-0.5)
    variables = {"params": drawn(retriever.init, CATALOGUE, BATCH), "stats": {}}

    @jax.jit
    def everywhere(variables, batch):
        net, params = retriever.net, {"params": variables["params"]}
        x = net.apply(params, batch["history"], CATALOGUE, method="embed")
        users = net.apply(params, x, batch, deterministic=True, method="user")
        return users, net.apply(params, batch, method="active")

    @jax.jit
    def encode(variables, batch):
        return retriever.encode_user(variables, CATALOGUE, batch, jax.random.key(0))

    @jax.jit
    def loss_and_gradient(params, batch):
        def loss(params):
            return retriever.loss({"params": params, "stats": {}}, CATALOGUE, batch, jax.random.key(0))

        return jax.value_and_grad(loss, has_aux=True)(params)

    return types.SimpleNamespace(
        name=request.param,
        retriever=retriever,
        variables=variables,
        everywhere=everywhere,
        encode=encode,
        loss_and_gradient=loss_and_gradient,
    )


def test_the_user_is_what_the_last_place_has(model):
    users, mask = model.encode(model.variables, BATCH)
    everywhere, active = model.everywhere(model.variables, BATCH)
    assert users.shape == (5, K, 8 + 4) and users.dtype == jnp.float32 and mask.shape == (5, K)
    np.testing.assert_allclose(users, everywhere[:, -1], rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(mask, active[:, -1])
    assert mask[:, 0].all()


@pytest.mark.parametrize("name", ["mind", "comirec_sa", "comirec_dr"])
def test_a_user_is_served_from_the_latest_alone(name):
    """And is what the last place of the whole window has, with the sketch of all of it."""
    retriever = make(name, model__interests__last=4, model__interests__number=2)
    variables = {"params": drawn(retriever.init, CATALOGUE, BATCH)}
    net, params = retriever.net, {"params": variables["params"]}
    users, _ = jax.jit(lambda b: retriever.encode_user(variables, CATALOGUE, b, jax.random.key(0)))(BATCH)
    x = net.apply(params, BATCH["history"], CATALOGUE, method="embed")
    everywhere = jax.jit(lambda x: net.apply(params, x, BATCH, deterministic=True, method="user"))(x)
    np.testing.assert_allclose(users, everywhere[:, -1], rtol=1e-5, atol=1e-6)


def test_no_place_sees_a_later_behaviour(model):
    before, _ = map(np.asarray, model.everywhere(model.variables, BATCH))
    for j in range(VALID.shape[1]):
        history = BATCH["history"].at[:, j].set(np.where(VALID[:, j], 1 + BATCH["history"][:, j] % ITEMS, 0))
        after, _ = map(np.asarray, model.everywhere(model.variables, {**BATCH, "history": history}))
        np.testing.assert_array_equal(before[:, :j], after[:, :j])
        assert np.all(np.any(before[VALID[:, j], j:, 0] != after[VALID[:, j], j:, 0], axis=-1))


@pytest.mark.parametrize("name", ["mind", "comirec_sa", "comirec_dr"])
def test_interests_are_made_of_the_latest(name):
    """Of the last two behaviours: the last place of a full window sees those, and none before."""
    retriever = make(name, model__interests__last=2, model__interests__number=1, model__sketch_dim=0)
    variables = {"params": drawn(retriever.init, CATALOGUE, BATCH)}
    encode = jax.jit(lambda b: retriever.encode_user(variables, CATALOGUE, b, jax.random.key(0)))
    (before, active), full = encode(BATCH), VALID.all(axis=1)
    for j in range(6):
        history = BATCH["history"].at[:, j].set(1 + BATCH["history"][:, j] % ITEMS)
        changed = np.any(encode({**BATCH, "history": history})[0] != before, axis=(1, 2))
        assert np.all(changed[full] == (j >= 4))
    if name == "mind":
        np.testing.assert_array_equal(active.sum(axis=1), 1)


def test_target_and_company_change_no_user(model):
    batch = {**BATCH, "target": BATCH["target"] * 0 + 3, "weight": BATCH["weight"] * 0, "user": BATCH["user"] + 1}
    np.testing.assert_array_equal(model.encode(model.variables, batch)[0], model.encode(model.variables, BATCH)[0])
    turned = jax.tree.map(lambda x: x[::-1], BATCH)
    there, back = model.encode(model.variables, BATCH)[0], model.encode(model.variables, turned)[0][::-1]
    np.testing.assert_allclose(there, back, rtol=1e-5, atol=1e-6)


def test_loss_against_numpy(model):
    """The nearest active interest speaks for itself (mtmi: the greatest score of each item); repelled by its weight."""
    (loss, (metrics, stats)), _ = model.loss_and_gradient(model.variables["params"], BATCH)
    table = np.asarray(model.retriever.encode_items(model.variables, CATALOGUE))
    users, active = map(np.asarray, model.everywhere(model.variables, BATCH))
    following = np.concatenate([BATCH["history"][:, 1:], BATCH["target"][:, None]], axis=1)
    terms, apart = [], []
    for b, j in np.argwhere(VALID & (np.asarray(BATCH["weight"]) > 0)[:, None]):
        vectors = users[b, j][active[b, j]]
        scores = vectors @ table.T
        spoken = scores.max(axis=0) if model.name == "mtmi" else scores[np.argmax(scores[:, following[b, j]])]
        terms.append(reference.cross_entropy(spoken[1 : ITEMS + 1], following[b, j] - 1))
        pairs = _cosines(vectors[:, :8])[np.triu_indices(len(vectors), 1)]
        apart.append(np.mean(_repelled(model.name, pairs)) if len(pairs) else 0)
    np.testing.assert_allclose(metrics["loss_tower"], np.mean(terms), rtol=1e-5)
    np.testing.assert_allclose(metrics["loss_repel"], np.mean(apart), rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(loss, np.mean(terms) + 0.5 * np.mean(apart), rtol=1e-5)
    assert stats == {} and (np.mean(apart) > 0) == (model.name in ("drim", "mtmi"))


def _cosines(vectors):
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    return unit @ unit.T


def _repelled(name, cosines):
    return {"drim": cosines**2, "mtmi": np.maximum(cosines + 0.5, 0)}.get(name, 0 * cosines)


def test_gradient_reaches_every_parameter(model):
    _, gradient = model.loss_and_gradient(model.variables["params"], BATCH)
    for name, g in named_leaves(gradient).items():
        assert np.isfinite(g).all() and np.any(np.abs(g) > 1e-6), name


def test_an_empty_batch_is_finite(model):
    (loss, _), gradient = model.loss_and_gradient(model.variables["params"], {**BATCH, "weight": BATCH["weight"] * 0})
    assert loss == 0 and not any(np.any(g) for g in jax.tree.leaves(gradient))
    empty = {**BATCH, "history": BATCH["history"] * 0, "weight": BATCH["weight"] * 0 + 1}
    (loss, _), gradient = model.loss_and_gradient(model.variables["params"], empty)
    assert loss == 0 and all(np.isfinite(g).all() for g in jax.tree.leaves(gradient))
    assert np.isfinite(model.encode(model.variables, empty)[0]).all()


@pytest.mark.parametrize("diversity", ["cosine", "correlation", "distance"])
def test_the_three_strategies(diversity):
    """Each pushes the vectors of a user apart by its own measure."""
    vectors, active = normal(0, 2, 5, K, 8), jnp.ones((2, 5, K), bool)
    of = make("drim", model__interests__diversity=diversity, model__interests__margin=6.0).repel
    assert np.asarray(of(jnp.asarray(vectors), active)).min() > 0
    alike = np.asarray(of(jnp.asarray(0.1 * vectors + normal(1, 2, 5, 1, 8)), active))
    assert np.all(alike > np.asarray(of(jnp.asarray(vectors), active)))


# --- which interest speaks ---


def test_label_aware_by_hand():
    """Products 1 and 3: squared and in a softmax, 1 of 1 + e^8; only the active count; power 0 takes the nearest."""
    users, wanted = jnp.array([[[[1.0, 0.0], [3.0, 1.0], [9.0, 9.0]]]]), jnp.array([[[1.0, 0.0]]])
    active = jnp.array([[[True, True, False]]])
    share = 1 / (1 + np.exp(8))
    got = label_aware(users, active, wanted, 2.0)[0, 0]
    np.testing.assert_allclose(got, [share + 3 * (1 - share), 1 - share], rtol=1e-6)
    np.testing.assert_array_equal(label_aware(users, active, wanted, 0.0)[0, 0], [3, 1])
    np.testing.assert_array_equal(label_aware(users, active, -wanted, 0.0)[0, 0], [1, 0])
    opposed = label_aware(users, active, -wanted, 2.0)[0, 0]
    np.testing.assert_allclose(opposed, [1 * (1 - share) + 3 * share, share], rtol=1e-5)


def test_label_aware_gradients_are_finite_at_zero():
    users, active = jnp.zeros((1, 1, 3, 2)), jnp.ones((1, 1, 3), bool)
    for power in (0.0, 1.0, 2.0):
        gradient = jax.grad(lambda u, p=power: label_aware(u, active, jnp.ones((1, 1, 2)), p).sum())(users)
        assert np.isfinite(gradient).all()


def test_how_many_interests():
    """max(1, min(K, log2 n)) of the n behaviours up to a place."""
    retriever = make(
        "mind",
        dataclasses.replace(PLAIN, window=40),
        model__interests__number=4,
        model__interests__last=0,
        data__window=40,
    )
    history = jnp.array(np.arange(40)[None] >= [[0], [39]], jnp.int32)
    counts = np.asarray(retriever.net.active.__func__(retriever.net, {"history": history})).sum(axis=-1)
    n = np.arange(1, 41)
    np.testing.assert_array_equal(counts[0], np.maximum(1, np.minimum(4, np.floor(np.log2(n)))))
    np.testing.assert_array_equal(counts[1], 1)


# --- each against numpy, place by place ---


LAST = 4  # of the window of 6


def run(name, last=LAST, **changes):
    """Parameters in float64, normed inputs [B, L, D], the interests [B, L, K, D]."""
    retriever, batch = make(name, PLAIN, model__interests__last=last, **changes), make_batch(sizes=PLAIN)
    x = normal(3, *batch["history"].shape, 8)
    variables = {"params": drawn(retriever.init, make_catalogue(PLAIN), batch)}

    def encode(net, x):
        return net.interests(x, batch, deterministic=True)

    found = jax.jit(lambda v, x: nn.apply(encode, retriever.net)(v, x))(variables, x)
    return float64(variables["params"]["encoder"]), x.astype(np.float64), batch, np.asarray(found)


def shares(rows):
    return np.array([reference.softmax(row, np.full(len(row), True)) for row in rows])


def squashed(z):
    square = (z**2).sum(axis=-1, keepdims=True)
    return z * np.sqrt(square) / (1 + square)


def routed(votes, logits):
    """K interests of votes [n, K, D] from first logits [n, K], three iterations on vectors 1 / sqrt(D) as long."""
    scale = np.sqrt(votes.shape[-1])
    votes = votes / scale
    for _ in range(3):
        u = squashed(np.einsum("nk,nkd->kd", shares(logits), votes))
        logits = logits + np.einsum("kd,nkd->nk", u, votes)
    return u * scale


def test_comirec_by_attention_by_hand():
    p, x, batch, found = run("comirec_sa")
    for b, valid in enumerate(np.asarray(batch["history"]) > 0):
        for j in np.flatnonzero(valid):
            seen = [i for i in range(max(0, j - LAST + 1), j + 1) if valid[i]]
            h = x[b, seen] + p["positions"][[j - i for i in seen]]
            scores = reference.dense(p["score"], np.tanh(reference.dense(p["hidden"], h)))
            expected = shares(scores.T) @ x[b, seen]
            np.testing.assert_allclose(found[b, j], expected, rtol=1e-4, atol=1e-5)


def test_comirec_by_routing_by_hand():
    p, x, batch, found = run("comirec_dr")
    for b, valid in enumerate(np.asarray(batch["history"]) > 0):
        for j in np.flatnonzero(valid):
            seen = [i for i in range(max(0, j - LAST + 1), j + 1) if valid[i]]
            votes = np.einsum("nd,nkde->nke", x[b, seen], p["maps"][[j - i for i in seen]])
            np.testing.assert_allclose(found[b, j], routed(votes, np.zeros((len(seen), K))), rtol=1e-3, atol=1e-4)


def test_mind_by_hand():
    """The first logits are the same for the same distance, in whatever window and at whatever place."""
    p, x, batch, found = run("mind", last=8)
    start = np.asarray(jax.random.normal(rng.stream(0, "routing"), (K, 8))).T
    tower = p["tower"]
    for b, valid in enumerate(np.asarray(batch["history"]) > 0):
        votes = reference.dense(p["shared_map"], x[b])[:, None].repeat(K, axis=1)
        for n, j in enumerate(np.flatnonzero(valid), 1):
            seen = [i for i in range(j + 1) if valid[i]]
            kinds = max(1, min(K, int(np.log2(n))))
            u = routed(votes[seen][:, :kinds], start[[j - i for i in seen]][:, :kinds])
            expected = reference.dense(tower["out"], reference.gelu(reference.dense(tower["hidden"], u)))
            np.testing.assert_allclose(found[b, j, :kinds], expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("mind", 8 * 8 + 2 * (8 * 8 + 8)),
        ("comirec_sa", LAST * 8 + 8 * 8 + 8 * K),
        ("comirec_dr", LAST * K * 8 * 8),
    ],
)
def test_number_of_parameters(name, expected):
    last = 8 if name == "mind" else LAST
    assert sum(leaf.size for leaf in jax.tree.leaves(run(name, last)[0])) == expected
