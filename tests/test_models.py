"""Every model that has a name: built, drawn and run as a run does it, with as few parts as the data can have."""

import jax
import numpy as np
import pytest
from model_cases import ITEMS, PLAIN, make_batch, make_catalogue, quick_jit, small_config

from t2diff_jax.config_rules import MODELS
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
