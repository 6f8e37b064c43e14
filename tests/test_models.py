"""Every model that has a name: built, drawn and run as a run does it, with as few parts as the data can have."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from model_cases import (
    ITEMS,
    PLAIN,
    SIZES,
    STATS,
    USER_FEATURES,
    drawn,
    make_batch,
    make_catalogue,
    named_leaves,
    small_config,
)

from t2diff_jax.config_rules import HIDING, MODELS
from t2diff_jax.models import build_retriever
from t2diff_jax.types import Retriever


@pytest.mark.parametrize("name", MODELS)
def test_a_model_without_extras_has_a_finite_loss_and_scores(name):
    """Ids alone, no sketch: what `init` drew is all that loss, users and items need."""
    retriever, catalogue, batch = (
        build_retriever(small_config(model__name=name), PLAIN),
        make_catalogue(PLAIN),
        make_batch(sizes=PLAIN),
    )
    assert isinstance(retriever, Retriever)

    @jax.jit
    def run(key):
        variables = retriever.init(key, catalogue, batch)
        loss, (_, stats) = retriever.loss(variables, catalogue, batch, key)
        users, mask = retriever.encode_user({**variables, "stats": stats}, catalogue, batch, key)
        return loss, users, mask, retriever.encode_items(variables, catalogue)

    loss, users, mask, items = jax.device_get(run(jax.random.key(0)))
    assert np.isfinite(loss) and loss > 0 and mask.dtype == bool and mask.any(axis=1).all()
    scores = np.einsum("bmu,ru->bmr", users, items)[..., 1 : ITEMS + 1]
    assert np.isfinite(scores).all() and (scores.std(axis=-1) > 0)[mask][0]


@pytest.mark.parametrize("name", HIDING)
def test_hidden_behaviours_concern_training_alone(name):
    """Its loss is another and teaches the vector that stands for them; a request is served as without."""
    plain = build_retriever(small_config(model__name=name, diffusion__target="item"), PLAIN)
    hiding = build_retriever(
        small_config(model__name=name, diffusion__target="item", model__behaviour_dropout=0.5), PLAIN
    )
    catalogue, batch, key = make_catalogue(PLAIN), make_batch(sizes=PLAIN), jax.random.key(0)
    variables = hiding.init(key, catalogue, batch)
    params = drawn(hiding.init, catalogue, batch)

    def parts(retriever, params):
        def loss(params):
            return retriever.loss({**variables, "params": params}, catalogue, batch, key)[0]

        users = retriever.encode_user({**variables, "params": params}, catalogue, batch, key)[0]
        return *jax.value_and_grad(loss)(params), users

    without = {name: leaf for name, leaf in params.items() if name != "behaviour_dropout"}
    loss, gradient, users = jax.jit(lambda: parts(hiding, params))()
    other, _, expected = jax.jit(lambda: parts(plain, without))()
    np.testing.assert_allclose(users, expected, atol=1e-4)
    assert abs(loss - other) > 1e-3 and all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradient))
    assert np.all(np.abs(gradient["behaviour_dropout"]["blank"]) > 1e-6)


MIDWAY = STATS | {"met": jnp.zeros(SIZES.users)}  # what models keep beside parameters, each its own


@pytest.mark.parametrize("name", MODELS)
def test_user_features_reach_the_user(name):
    retriever = build_retriever(small_config(model__name=name), SIZES)
    catalogue, batch = make_catalogue(), make_batch()
    variables = {"params": drawn(retriever.init, catalogue, batch), "stats": MIDWAY}
    features = (np.asarray(batch["user_features"]) + 1) % np.array(USER_FEATURES)
    other = {**batch, "user_features": features.astype(np.int32)}
    encode = jax.jit(lambda batch: retriever.encode_user(variables, catalogue, batch, jax.random.key(0))[0])
    before, after = encode(batch), encode(other)
    assert np.all(np.abs(before - after).max(axis=(1, 2)) > 1e-4)


@pytest.mark.parametrize("name", MODELS)
def test_dropout_acts_on_the_loss(name):
    """Parameters, noise and batch are the same: what differs is what was dropped."""
    catalogue, batch = make_catalogue(PLAIN), make_batch(sizes=PLAIN)
    losses = []
    for rate in (0.0, 0.5):
        retriever = build_retriever(small_config(model__name=name, model__dropout=rate), PLAIN)
        variables = {"params": drawn(retriever.init, catalogue, batch), "stats": MIDWAY}
        losses.append(jax.jit(lambda v, r=retriever: r.loss(v, catalogue, batch, jax.random.key(0))[0])(variables))
    assert abs(losses[0] - losses[1]) > 1e-3


TWO_LAYERS = ("t2diff", "t2diff_causal", "sasrec", "bert4rec", "gru4rec", "caser", "mamba4rec", "hstu", "stosa")
TWO_LAYERS += ("contrast_vae", "diffurec")


@pytest.mark.parametrize("name", TWO_LAYERS)
def test_every_layer_learns(name):
    """As configurations have it: two layers, rotary positions, of which there is no table but HSTU's."""
    retriever = build_retriever(small_config(model__name=name, model__layers=2, model__positions="rotary"), PLAIN)
    catalogue, batch = make_catalogue(PLAIN), make_batch(sizes=PLAIN)
    params = drawn(retriever.init, catalogue, batch)

    def loss(params):
        return retriever.loss({"params": params, "stats": STATS}, catalogue, batch, jax.random.key(0))[0]

    gradient = named_leaves(jax.jit(jax.grad(loss))(params))
    for leaf, g in gradient.items():
        # A constant added to all keys is invisible to the softmax: the key's bias is learned by nobody.
        if "key" not in leaf or not leaf.endswith("bias"):
            assert np.isfinite(g).all() and np.any(np.abs(g) > 1e-7), leaf
    assert any("positions" in leaf for leaf in gradient) == (name == "hstu")


SERVED_FROM_STATES = ("sasrec", "bert4rec", "gru4rec", "caser", "mamba4rec", "hstu", "stosa", "contrast_vae")


@pytest.mark.parametrize("name", SERVED_FROM_STATES)
def test_what_is_served_is_the_last_of_all_states(name):
    """With two layers, of which serving computes only what it reads; and the order of behaviours counts."""
    retriever = build_retriever(small_config(model__name=name, model__layers=2, model__positions="rotary"), PLAIN)
    catalogue, batch = make_catalogue(PLAIN), make_batch(sizes=PLAIN)
    params = {"params": drawn(retriever.init, catalogue, batch)}

    @jax.jit
    def run(batch):
        x = retriever.net.apply(params, batch["history"], catalogue, method="embed")
        states = retriever.net.apply(params, x, batch, deterministic=True, method="user")
        return states[:, -1], retriever.encode_user({**params, "stats": {}}, catalogue, batch, jax.random.key(0))[0]

    last, served = run(batch)
    np.testing.assert_allclose(served, last, rtol=1e-4, atol=1e-5)
    swapped = batch["history"][:, [0, 1, 3, 2, 4, 5]]
    _, other = run({**batch, "history": swapped})
    assert np.abs(other[0] - served[0]).max() > 1e-4


@pytest.mark.parametrize("name", ["sasrec", "stosa"])
def test_rotation_tells_places_apart(name):
    """One layer sees a set but for it: a causal mask tells a second layer something of the order."""
    retriever = build_retriever(small_config(model__name=name, model__positions="rotary"), PLAIN)
    catalogue, batch = make_catalogue(PLAIN), make_batch(sizes=PLAIN)
    variables = {"params": drawn(retriever.init, catalogue, batch), "stats": {}}
    encode = jax.jit(lambda batch: retriever.encode_user(variables, catalogue, batch, jax.random.key(0))[0])
    swapped = {**batch, "history": batch["history"][:, [0, 1, 3, 2, 4, 5]]}
    assert np.abs(encode(batch)[0] - encode(swapped)[0]).max() > 1e-4
