"""Every model that has a name: built, drawn and run as a run does it, with as few parts as the data can have."""

import jax
import numpy as np
import pytest
from model_cases import ITEMS, PLAIN, drawn, make_batch, make_catalogue, quick_jit, small_config

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

    @quick_jit
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
    loss, gradient, users = quick_jit(lambda: parts(hiding, params))()
    other, _, expected = quick_jit(lambda: parts(plain, without))()
    np.testing.assert_allclose(users, expected, atol=1e-4)
    assert abs(loss - other) > 1e-3 and all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradient))
    assert np.all(np.abs(gradient["behaviour_dropout"]["blank"]) > 1e-6)
