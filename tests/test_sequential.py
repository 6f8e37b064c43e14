"""Models without a slot: causality, padding, the loss by hand, gradients; each one's forward pass against numpy."""

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
    put,
    small_config,
)

from t2diff_jax.models import build_retriever
from t2diff_jax.models.bert4rec import masked_places
from t2diff_jax.models.mamba4rec import selective_scan
from t2diff_jax.models.stosa import STOSANet
from t2diff_jax.negatives import with_negatives

NAMES = ("sasrec", "gru4rec", "caser", "mamba4rec", "hstu", "stosa", "two_tower")
CATALOGUE, BATCH = make_catalogue(), make_batch()
VALID = np.asarray(BATCH["history"]) > 0
SIZE = dict(model__caser__last=6, model__caser__horizontal=3, model__caser__vertical=2, model__mamba__state=3)


def make(name, sizes=SIZES, **changes):
    changes = SIZE | dict(model__name=name, model__sketch_dim=4) | changes
    return build_retriever(small_config(**changes), sizes)


@pytest.fixture(scope="module", params=NAMES)
def name(request):
    return request.param


@pytest.fixture(scope="module")
def model(name):
    """A retriever, its variables, and compiled (variables, batch) -> states, users, ((loss, metrics), gradient)."""
    retriever = make(name)
    variables = {"params": drawn(retriever.init, CATALOGUE, BATCH), "stats": {}}

    @jax.jit
    def states(variables, batch):
        net, params = retriever.net, {"params": variables["params"]}
        x = net.apply(params, batch["history"], CATALOGUE, method="embed")
        return net.apply(params, x, batch, deterministic=True, method="user")

    @jax.jit
    def encode(variables, batch):
        return retriever.encode_user(variables, CATALOGUE, batch, jax.random.key(0))

    @jax.jit
    def loss_and_gradient(params, batch):
        def loss(params):
            return retriever.loss({"params": params, "stats": {}}, CATALOGUE, batch, jax.random.key(0))

        return jax.value_and_grad(loss, has_aux=True)(params)

    return types.SimpleNamespace(
        retriever=retriever, variables=variables, states=states, encode=encode, loss_and_gradient=loss_and_gradient
    )


def test_the_user_is_the_last_state(model):
    users, mask = model.encode(model.variables, BATCH)
    width = 17 if model.retriever.kind is STOSANet else 8
    assert users.shape == (5, 1, width + 4) and users.dtype == jnp.float32 and mask.all()
    np.testing.assert_allclose(users, model.states(model.variables, BATCH)[:, -1], rtol=1e-5, atol=1e-5)


def test_no_state_sees_a_later_behaviour(model):
    before = np.asarray(model.states(model.variables, BATCH))
    for j in range(VALID.shape[1]):
        history = BATCH["history"].at[:, j].set(np.where(VALID[:, j], 1 + BATCH["history"][:, j] % ITEMS, 0))
        after = np.asarray(model.states(model.variables, {**BATCH, "history": history}))
        np.testing.assert_array_equal(before[:, :j], after[:, :j])
        assert np.all(np.any(before[VALID[:, j], j:] != after[VALID[:, j], j:], axis=-1))


def test_padding_and_target_change_no_user(model):
    garbage = put(model.variables, ("params", "items", "item_table"), lambda x: _filled(x, 1e6))
    garbage = put(garbage, ("params", "items", "category_table"), lambda x: _set(x, [0], -1e6))
    garbage = put(garbage, ("params", "sketch", "signature_table"), lambda x: _filled(x, 1e6))
    batch = {**BATCH, "target": BATCH["target"] * 0 + 3, "weight": BATCH["weight"] * 0, "user": BATCH["user"] + 1}
    np.testing.assert_array_equal(model.encode(garbage, batch)[0], model.encode(model.variables, BATCH)[0])


def _set(x, rows, value):
    x = np.array(x)
    x[rows] = value
    return x


def _filled(x, value):
    """Garbage in the padding row and in the rows above the last item."""
    return _set(x, [0, *range(ITEMS + 1, len(x))], value)


def test_loss_against_numpy(model):
    """Every valid behaviour predicts the next one, the last one the target; weight 0 and padding count nothing."""
    (loss, (metrics, stats)), _ = model.loss_and_gradient(model.variables["params"], BATCH)
    table = np.asarray(model.retriever.encode_items(model.variables, CATALOGUE))
    scores = np.asarray(model.states(model.variables, BATCH))[:, :, 0] @ table.T
    following = np.concatenate([BATCH["history"][:, 1:], BATCH["target"][:, None]], axis=1)
    terms = [
        reference.cross_entropy(scores[b, j, 1 : ITEMS + 1], following[b, j] - 1)
        for b, j in np.argwhere(VALID)
        if BATCH["weight"][b] > 0
    ]
    assert len(terms) == 6 + 4 + 1
    np.testing.assert_allclose(loss, np.mean(terms), rtol=1e-5)
    assert metrics["loss_tower"] == loss and stats == {}


def test_users_are_scaled():
    plain, scaled = (make("sasrec", PLAIN, model__vectors=2, model__user_scale=scale) for scale in (1.0, 3.0))
    catalogue, batch = make_catalogue(PLAIN), make_batch(sizes=PLAIN)
    variables = {"params": drawn(plain.init, catalogue, batch), "stats": {}}
    users, larger = (jax.jit(r.encode_user)(variables, catalogue, batch, jax.random.key(0))[0] for r in (plain, scaled))
    np.testing.assert_allclose(larger[..., :8], 3 * users[..., :8], rtol=1e-5)  # the rest is the sketch


def test_several_vectors():
    """Each is the state plus a linear map of it, with a sketch of its own; together they are a mixture."""
    retriever, one = make("sasrec", model__vectors=2, loss__merge="logsumexp"), make("sasrec")
    several = {"params": drawn(retriever.init, CATALOGUE, BATCH), "stats": {}}
    heads = several["params"]["heads"]
    users, mask = jax.jit(lambda v: retriever.encode_user(v, CATALOGUE, BATCH, jax.random.key(0)))(several)
    assert users.shape == (5, 2, 8 + 4) and mask.shape == (5, 2) and mask.all()
    alone = {"params": {name: value for name, value in several["params"].items() if name != "heads"}, "stats": {}}
    state = np.asarray(jax.jit(lambda v: one.encode_user(v, CATALOGUE, BATCH, jax.random.key(0)))(alone)[0])[:, :, :8]
    added = (state @ np.asarray(heads["kernel"]) + np.asarray(heads["bias"])).reshape(5, 2, 8)
    users = np.asarray(users)
    np.testing.assert_allclose(users[:, :, :8], state + added, rtol=1e-4, atol=1e-5)
    assert np.all(np.any(users[VALID[:, -1], 0, 8:] != users[VALID[:, -1], 1, 8:], axis=-1))

    def loss(params):
        return retriever.loss({"params": params, "stats": {}}, CATALOGUE, BATCH, jax.random.key(0))[0]

    def every_user(params):
        x = retriever.net.apply({"params": params}, BATCH["history"], CATALOGUE, method="embed")
        return retriever.net.apply({"params": params}, x, BATCH, deterministic=True, method="user")

    value, gradient = jax.jit(jax.value_and_grad(loss))(several["params"])
    vectors, table = jax.jit(every_user)(several["params"]), retriever.encode_items(several, CATALOGUE)
    scores = np.asarray(vectors) @ np.asarray(table).T
    merged = np.logaddexp(scores[:, :, 0], scores[:, :, 1])[..., 1 : ITEMS + 1]
    following = np.concatenate([BATCH["history"][:, 1:], BATCH["target"][:, None]], axis=1)
    counted = [(b, j) for b, j in np.argwhere(VALID) if BATCH["weight"][b] > 0]
    terms = [reference.cross_entropy(merged[b, j], following[b, j] - 1) for b, j in counted]
    np.testing.assert_allclose(value, np.mean(terms), rtol=1e-5)
    assert np.any(gradient["heads"]["kernel"]) and all(np.isfinite(g).all() for g in jax.tree.leaves(gradient))


def test_sampled_negatives_estimate_the_full_loss(name, model):
    retriever = make(name, loss__negatives=3000)
    args = BATCH, None, retriever.loss_config, CATALOGUE.n_items
    batch, _ = with_negatives(*args, seed=0, step=jnp.int32(0))
    loss, _ = jax.jit(lambda v: retriever.loss(v, CATALOGUE, batch, jax.random.key(0)))(model.variables)
    (full, _), _ = model.loss_and_gradient(model.variables["params"], BATCH)
    np.testing.assert_allclose(loss, full, rtol=0.03)


def test_gradient_reaches_every_parameter(model):
    _, gradient = model.loss_and_gradient(model.variables["params"], BATCH)
    for name, g in named_leaves(gradient).items():
        assert np.isfinite(g).all(), name
        # A constant added to all keys is invisible to the softmax: the key's bias is learned by nobody.
        assert np.any(np.abs(g) > 1e-6) != name.endswith("key.bias"), name


def test_an_empty_batch_is_finite(model):
    (loss, _), gradient = model.loss_and_gradient(model.variables["params"], {**BATCH, "weight": BATCH["weight"] * 0})
    assert loss == 0 and not any(np.any(g) for g in jax.tree.leaves(gradient))
    empty = {**BATCH, "history": BATCH["history"] * 0, "weight": BATCH["weight"] * 0 + 1}
    (loss, _), gradient = model.loss_and_gradient(model.variables["params"], empty)
    assert loss == 0 and all(np.isfinite(g).all() for g in jax.tree.leaves(gradient))
    assert np.isfinite(model.encode(model.variables, empty)[0]).all()


# --- masked items ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def bert():
    """BERT4Rec, its parameters, and the states [B, L, D] of (following [B, L, D], masked [B, L])."""
    retriever = make("bert4rec", model__bert4rec__masked=0.4)
    params = {"params": drawn(retriever.init, CATALOGUE, BATCH)}

    def states(net, x, masked):
        return net.encode_masked(x, masked, BATCH, deterministic=True)

    compiled = jax.jit(lambda x, masked: nn.apply(states, retriever.net)(params, x, masked))
    return types.SimpleNamespace(retriever=retriever, params=params, states=compiled)


@pytest.mark.parametrize(("name", "alike"), [("bert4rec", True), ("sasrec", False)])
def test_what_the_window_shows_anywhere_is_no_candidate_of_a_masked_item(name, alike):
    """To hear that all of it was had before changes nothing for a model that looks both ways, as for a request."""
    retriever = make(name, loss__exclude_seen=True, eval__exclude_seen=True)
    variables = {"params": drawn(retriever.init, CATALOGUE, BATCH), "stats": {}}
    loss = jax.jit(lambda batch: retriever.loss(variables, CATALOGUE, batch, jax.random.key(0))[0])
    plain, told = loss(BATCH), loss({**BATCH, "before": BATCH["history"]})
    assert np.isclose(plain, told, rtol=1e-6) == alike


def test_a_masked_item_is_seen_by_none_and_others_by_all(bert):
    x, masked = normal(1, 5, 6, 8), np.zeros((5, 6), bool)
    masked[:, [2, 5]] = True
    before = np.asarray(bert.states(x, masked))
    for j in range(6):
        other = x.copy()
        other[:, j] += normal(9, 8)
        after = np.asarray(bert.states(other, masked))
        changed = np.any(before != after, axis=-1)
        if j in (2, 5):
            assert not changed.any()
        else:
            there = np.concatenate([VALID[:, 1:], VALID[:, -1:]], axis=1)[:, j]
            assert changed[there][:, [2, 5]].all() and not np.delete(changed, j, axis=1)[~there].any()


def test_the_first_of_few_behaviours_is_seen(bert):
    """It stands where the window of history still has filling."""

    def user(*items):
        history = jnp.zeros_like(BATCH["history"]).at[:, -len(items) :].set(jnp.array(items))
        batch = {**BATCH, "history": history}
        encode = jax.jit(lambda v: bert.retriever.encode_user(v, CATALOGUE, batch, jax.random.key(0))[0])
        return np.asarray(encode(bert.params))[0, 0, :8]

    assert np.abs(user(3) - user(5)).max() > 1e-3 and np.abs(user(3, 4) - user(5, 4)).max() > 1e-3


def test_the_user_of_masked_items_is_the_state_of_a_mask_after_the_window(bert):
    users, mask = jax.jit(lambda v: bert.retriever.encode_user(v, CATALOGUE, BATCH, jax.random.key(0)))(bert.params)
    assert users.shape == (5, 1, 8 + 4) and mask.all()
    x = bert.retriever.net.apply(bert.params, BATCH["history"], CATALOGUE, method="embed")
    normed = reference.layer_norm(float64(bert.params["params"]["item_norm"]), np.asarray(x, np.float64)).astype(
        np.float32
    )
    following = np.concatenate([normed[:, 1:], np.full((5, 1, 8), 7, np.float32)], axis=1)
    masked = np.arange(6)[None].repeat(5, 0) == 5
    state = np.asarray(bert.states(following, masked))[:, -1]
    added = np.asarray(users)[:, 0, :8] - state  # user features, the same for everyone's state
    net = bert.retriever.net.bind(bert.params)
    np.testing.assert_allclose(added, net.user_out(net.users(BATCH["user_features"])), rtol=1e-3, atol=1e-4)


def test_loss_of_masked_items_against_numpy(bert):
    key = jax.random.key(5)

    def loss(params):
        return bert.retriever.loss({"params": params, "stats": {}}, CATALOGUE, BATCH, key)[0]

    value, gradient = jax.jit(jax.value_and_grad(loss))(bert.params["params"])
    following = np.concatenate([BATCH["history"][:, 1:], BATCH["target"][:, None]], axis=1)
    counted = VALID & (np.asarray(BATCH["weight"]) > 0)[:, None]
    masked = np.asarray(masked_places(key, jnp.array(counted), 0.4))
    net = bert.retriever.net
    x, then = (
        net.apply(bert.params, jnp.array(ids), CATALOGUE, method="embed") for ids in (BATCH["history"], following)
    )
    users = np.asarray(net.apply(bert.params, x, then, jnp.array(masked), BATCH, method="users_of_masked"))
    scores = users[:, :, 0] @ np.asarray(bert.retriever.encode_items({**bert.params, "stats": {}}, CATALOGUE)).T
    terms = [reference.cross_entropy(scores[b, j, 1 : ITEMS + 1], following[b, j] - 1) for b, j in np.argwhere(masked)]
    np.testing.assert_allclose(value, np.mean(terms), rtol=1e-4)
    for name, g in named_leaves(gradient).items():
        assert np.isfinite(g).all() and np.any(np.abs(g) > 1e-6) != name.endswith("key.bias"), name


def test_masked_places():
    counted = jnp.array(np.random.default_rng(0).random((200, 50)) < 0.7)
    drawn_places = np.asarray(masked_places(jax.random.key(0), counted, 0.3))
    assert not drawn_places[~np.asarray(counted)].any()
    np.testing.assert_array_equal(drawn_places[:, -1], counted[:, -1])
    assert abs(drawn_places[:, :-1].sum() / np.asarray(counted)[:, :-1].sum() - 0.3) < 0.02
    assert not np.asarray(masked_places(jax.random.key(0), counted, 0.0))[:, :-1].any()


# --- each encoder against numpy, place by place ----------------------------------------------------------------------


def run_encoder(name, sizes=PLAIN):
    """The encoder alone on random inputs: parameters in float64, inputs [B, L, D], valid [B, L], states."""
    retriever, batch = make(name, sizes), make_batch(sizes=sizes)
    x = normal(3, *batch["history"].shape, 8)
    variables = {"params": drawn(retriever.init, make_catalogue(sizes), batch)}

    def encode(net, x):
        return net.encode(x, batch, deterministic=True)

    states = jax.jit(lambda v, x: nn.apply(encode, retriever.net)(v, x))(variables, x)
    return float64(variables["params"]["encoder"]), x.astype(np.float64), batch, np.asarray(states)


def check(states, expected, batch):
    valid = np.asarray(batch["history"]) > 0
    np.testing.assert_allclose(states[valid], expected[valid], rtol=2e-4, atol=2e-5)


def test_gru4rec_by_hand():
    p, x, batch, states = run_encoder("gru4rec")
    expected = np.zeros_like(x)
    for b, valid in enumerate(np.asarray(batch["history"]) > 0):
        h = np.zeros(8)
        for j in np.flatnonzero(valid):
            given, own = reference.dense(p["input_0"], x[b, j]), reference.dense(p["layer_0"]["state"], h)
            r, z = np.split(reference.sigmoid(given + own)[:16], 2)
            h = z * h + (1 - z) * np.tanh(given[16:] + r * own[16:])
            expected[b, j] = reference.dense(p["out"], h)
    check(states, expected, batch)


def test_caser_by_hand():
    p, x, batch, states = run_encoder("caser")
    x, expected = np.where((np.asarray(batch["history"]) > 0)[..., None], x, 0), np.zeros_like(x)
    for b in range(len(x)):
        for j in range(x.shape[1]):
            matrix = np.concatenate([np.zeros((6, 8)), x[b, : j + 1]])[-6:]
            found = []
            for height in range(1, 7):
                filters = p[f"horizontal_{height}"]
                answers = [
                    np.einsum("hd,hdf->f", matrix[i : i + height], filters["kernel"]) + filters["bias"]
                    for i in range(7 - height)
                ]
                found.append(np.maximum(answers, 0).max(axis=0))
            found.append((p["vertical"].T @ matrix).reshape(-1))
            expected[b, j] = reference.dense(
                p["out"], np.maximum(reference.dense(p["hidden"], np.concatenate(found)), 0)
            )
    check(states, expected, batch)


def test_mamba4rec_by_hand():
    p, x, batch, states = run_encoder("mamba4rec")
    mix, expected = p["mix_0"], np.zeros_like(x)
    for b, valid in enumerate(np.asarray(batch["history"]) > 0):
        inner = np.zeros((6, 16))
        h = np.zeros((16, 3))
        for j in range(6):
            u, gate = np.split(reference.dense(mix["into"], x[b, j]), 2)
            inner[j] = u * valid[j]
            seen = np.concatenate([np.zeros((3, 16)), inner[: j + 1]])[-4:]
            u = reference.swish((seen * mix["conv"]["kernel"][:, 0]).sum(axis=0) + mix["conv"]["bias"])
            low, write, read = np.split(reference.dense(mix["choose"], u), [1, 4])
            delta = np.log1p(np.exp(reference.dense(mix["delta"], low)))
            if valid[j]:
                h = np.exp(-delta[:, None] * np.exp(mix["log_a"])) * h + (delta * u)[:, None] * write
            y = h @ read + mix["skip"] * u
            mixed = reference.layer_norm(
                p["norm_mix_0"], x[b, j] + reference.dense(mix["back"], y * reference.swish(gate))
            )
            hidden = np.asarray(jax.nn.gelu(reference.dense(p["hidden_0"], mixed)))
            expected[b, j] = reference.layer_norm(p["norm_out_0"], mixed + reference.dense(p["out_0"], hidden))
    check(states, expected, batch)


def test_a_scan_may_be_cut():
    """In chunks that do not divide the window, too: values and gradients are those of one place after another."""
    delta, u, b, c = (
        jnp.exp(normal(0, 2, 7, 3)),
        *(jnp.asarray(normal(i, 2, 7, n)) for i, n in ((1, 3), (2, 4), (3, 4))),
    )
    a = jnp.exp(normal(4, 3, 4))

    def slow(delta, u, b, c, a):
        h, y = jnp.zeros((2, 3, 4)), []
        for t in range(7):
            h = jnp.exp(-delta[:, t, :, None] * a[None]) * h + (delta * u)[:, t, :, None] * b[:, t, None]
            y.append(jnp.einsum("bes,bs->be", h, c[:, t]))
        return jnp.stack(y, axis=1)

    def gradients(scan, *rest):
        of = jax.grad(lambda *args: (scan(*args, *rest) ** 2).sum(), argnums=(0, 1, 2, 3, 4))
        return jax.jit(of)(delta, u, b, c, a)

    for chunk in (0, 1, 3, 7, 9):
        got = selective_scan(delta, u, b, c, a, chunk)
        np.testing.assert_allclose(got, slow(delta, u, b, c, a), rtol=1e-4, atol=1e-5)
    for got, wanted in zip(gradients(selective_scan, 3), gradients(slow), strict=True):
        np.testing.assert_allclose(got, wanted, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("sizes", [PLAIN, SIZES])
def test_hstu_by_hand(sizes):
    p, x, batch, states = run_encoder("hstu", sizes)
    x = x + p["positions"]
    h = reference.layer_norm(p["norm_0"], x)
    gate, v, q, k = (reference.swish(h @ p[f"{name}_0"]["kernel"]) for name in ("gate", "value", "query", "key"))
    expected = np.zeros_like(x)
    for b, valid in enumerate(np.asarray(batch["history"]) > 0):
        for j in np.flatnonzero(valid):
            seen = [i for i in range(j + 1) if valid[i]]
            mixed = np.zeros(8)
            for head in (slice(0, 4), slice(4, 8)):
                for i in seen:
                    bias = p["by_distance_0"][j - i]
                    if sizes.lags:
                        request = int(batch["age"][b, j + 1]) if j < len(valid) - 1 else 0
                        lag = int(batch["age"][b, i]) - request
                        bias = bias + p["by_lag_0"][int(np.log2(lag + 1))]
                    mixed[head] += reference.swish(q[b, j, head] @ k[b, i, head] + bias) * v[b, i, head] / len(seen)
            gated = reference.layer_norm(p["norm_mixed_0"], mixed) * gate[b, j]
            expected[b, j] = reference.layer_norm(p["norm"], x[b, j] + reference.dense(p["out_0"], gated))
    check(states, expected, batch)


@pytest.mark.parametrize("temperature", [0.0, 0.5])
def test_two_towers_by_hand(temperature):
    """One hidden layer over the means of history and session, one over e(i); cosines where there is a temperature."""
    retriever, batch = make("two_tower", PLAIN, model__two_tower__temperature=temperature), make_batch(sizes=PLAIN)
    variables = {"params": drawn(retriever.init, CATALOGUE, batch)}
    p, e = float64(variables["params"]), jnp.asarray(normal(3, *batch["history"].shape, 8))

    def towers(net):
        return net.user(e, batch, deterministic=True), net.scored(e, batch["history"])

    users, items = (np.asarray(a) for a in jax.jit(lambda v: nn.apply(towers, retriever.net)(v))(variables))

    def tower(p, x):
        v = reference.dense(p["out"], np.asarray(jax.nn.gelu(reference.dense(p["hidden"], x))))
        return v / np.linalg.norm(v, axis=-1, keepdims=True) if temperature else v

    x = reference.layer_norm(p["item_norm"], np.asarray(e, np.float64))
    np.testing.assert_allclose(items, tower(p["item_tower"], x), rtol=1e-3, atol=1e-4)
    for b, valid in enumerate(np.asarray(batch["history"]) > 0):
        for j in np.flatnonzero(valid):
            past = [i for i in range(j + 1) if valid[i]]
            means = np.concatenate([x[b, past].mean(axis=0), x[b, past[-3:]].mean(axis=0)])
            expected = tower(p["encoder"]["tower_0"], means) / (temperature or 1)
            np.testing.assert_allclose(users[b, j, 0, :8], expected, rtol=1e-3, atol=1e-4)


def test_stosa_by_hand():
    """States and scores, place by place, from what the definition says of Gaussians; rotation aside."""
    retriever = make("stosa", PLAIN, model__heads=2)
    batch = make_batch(sizes=PLAIN)
    variables = {"params": drawn(retriever.init, make_catalogue(PLAIN), batch)}
    mean, spread = normal(3, *batch["history"].shape, 8), normal(4, *batch["history"].shape, 8)
    causal = np.tri(6, dtype=bool)[None] & (np.asarray(batch["history"]) > 0)[:, None]

    def encode(net, mean, spread):
        return net.encoder(mean, spread, jnp.asarray(causal), deterministic=True)

    states = jax.jit(lambda v, *args: nn.apply(encode, retriever.net)(v, *args))(variables, mean, spread)
    p = float64(variables["params"]["encoder"])

    def split(part, x):
        return np.einsum("ld,dhe->lhe", x, p[part]["kernel"]) + p[part]["bias"]

    def mixed(part, x):
        return np.einsum("he,hed->d", x, p[part]["kernel"]) + p[part]["bias"]

    def positive(x):
        return np.where(x > 0, x, np.expm1(np.minimum(x, 0))) + 1

    def feed(kind, x):
        h = reference.dense(p[f"hidden_{kind}_0"], reference.layer_norm(p[f"norm_hidden_{kind}_0"], x))
        return x + reference.dense(p[f"out_{kind}_0"], positive(h) - 1)

    for b in range(5):
        m, s = (a[b].astype(np.float64) + p[f"positions_{n}"] for a, n in ((mean, "mean"), (spread, "spread")))
        m_in, s_in = (
            reference.layer_norm(p["norm_attention_mean_0"], m),
            reference.layer_norm(p["norm_attention_spread_0"], s),
        )
        qm, km, vm = (split(f"{part}_mean_0", m_in) for part in ("query", "key", "value"))
        qs, ks, vs = (positive(split(f"{part}_spread_0", s_in)) for part in ("query", "key", "value"))
        for j in np.flatnonzero(causal[b, -1]):
            seen = np.flatnonzero(causal[b, j])
            distance = ((qm[j] - km[seen]) ** 2).sum(-1) + ((np.sqrt(qs[j]) - np.sqrt(ks[seen])) ** 2).sum(-1)
            odds = np.exp(-distance / 2.0)  # over the root of the width of a head
            share = odds / odds.sum(axis=0)
            out_m = feed("mean", m[j] + mixed("mix_mean_0", np.einsum("lh,lhe->he", share, vm[seen])))
            out_s = feed("spread", s[j] + mixed("mix_spread_0", np.einsum("lh,lhe->he", share**2, vs[seen])))
            np.testing.assert_allclose(
                states[0][b, j], reference.layer_norm(p["norm_mean"], out_m), rtol=2e-3, atol=2e-4
            )
            np.testing.assert_allclose(
                states[1][b, j], reference.layer_norm(p["norm_spread"], out_s), rtol=2e-3, atol=2e-4
            )


def test_stosa_scores_are_distances():
    """A score and the squared length of the user's point make minus the squared 2-Wasserstein distance."""
    retriever, catalogue, batch = (
        make("stosa", PLAIN, model__sketch_dim=0),
        make_catalogue(PLAIN),
        make_batch(sizes=PLAIN),
    )
    params = {"params": drawn(retriever.init, catalogue, batch)}

    @jax.jit
    def encoded(params):
        users, _ = retriever.encode_user(params, catalogue, batch, jax.random.key(0))
        table = retriever.net.apply(params, catalogue, method="item_table")
        return users, retriever.encode_items(params, catalogue), table

    users, items, e = (np.asarray(a, np.float64) for a in encoded(params))
    deviation = np.sqrt(np.where(e[:, 8:] > 0, e[:, 8:], np.expm1(np.minimum(e[:, 8:], 0))) + 1)
    u = users[0, 0]
    m, s = u[:8] / 2, u[8:16] / 2 + 1
    distance = ((m - e[:, :8]) ** 2).sum(axis=1) + ((s - deviation) ** 2).sum(axis=1)
    scores = items @ u - ((u[:16] / 2) ** 2).sum()
    np.testing.assert_allclose(scores, -distance, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("gru4rec", 2 * 3 * (8 * 8 + 8) + (8 * 8 + 8)),
        ("caser", sum(h * 8 * 3 + 3 for h in range(1, 7)) + 6 * 2 + (6 * 3 + 2 * 8) * 8 + 8 + (8 * 8 + 8)),
        ("mamba4rec", 8 * 32 + (4 * 16 + 16) + 16 * 7 + (16 + 16) + 16 * 3 + 16 + 16 * 8 + 2 * (8 * 8 + 8) + 4 * 8),
        ("hstu", 6 * 8 + 3 * 2 * 8 + 4 * 8 * 8 + (8 * 8 + 8) + 6),
        ("stosa", 2 * (6 * 8 + 3 * 2 * 8 + 3 * (8 * 8 + 8) + (8 * 8 + 8) + 2 * (8 * 8 + 8))),
        ("two_tower", (16 * 8 + 8) + (8 * 8 + 8)),
    ],
)
def test_number_of_parameters(name, expected):
    variables = jax.eval_shape(
        make(name, PLAIN).init, jax.random.key(0), make_catalogue(PLAIN), make_batch(sizes=PLAIN)
    )
    assert sum(leaf.size for leaf in jax.tree.leaves(variables["params"]["encoder"])) == expected
