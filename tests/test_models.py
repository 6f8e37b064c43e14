"""Every model that has a name: built, drawn and run as a run does it, with as few parts as the data can have."""

import jax
import numpy as np
import pytest
from counts import block, count, norm, parameters
from model_cases import ITEMS, PLAIN, make_batch, make_catalogue, quick_jit, small_config

from configs import base
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


@pytest.mark.parametrize(
    ("name", "layers"), [("t2diff_causal", {"encoder": 2, "session": 0}), ("sasrec", {"encoder": 2}),
                         ("contrast_vae", {"encoder": 2, "decoder": 1})],
)  # fmt: skip
def test_parameters_with_a_convolution_and_gates(name, layers):
    """In every block of causal transformers; the session's attention of T2Diff has a gate and nothing to convolve."""
    config = base.get_config()
    config.model.update(name=name, positions="rotary", conv=8, gated=True)
    params = parameters(config, PLAIN)
    for part, number in layers.items():
        blocks = number * block(64, 256, taps=8, gated=True) + norm(64) if number else block(64, 256, gated=True)
        assert count(params[part]) == blocks
