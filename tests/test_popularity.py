"""The popularity baseline, and who stands behind which interface."""

import jax
import numpy as np
from model_cases import ITEMS, PLAIN, SIZES, make_batch, make_catalogue, small_config

from t2diff_jax.models import build_retriever
from t2diff_jax.models.popularity import Popularity
from t2diff_jax.types import Encoder, Retriever


def test_everybody_gets_the_counts():
    catalogue, batch = make_catalogue(PLAIN), make_batch(sizes=PLAIN)
    users, mask = Popularity().encode_user({}, catalogue, batch, jax.random.key(0))
    assert users.shape == (5, 1, 1) and mask.shape == (5, 1) and mask.all()
    scores = users[:, 0] @ Popularity().encode_items({}, catalogue).T
    np.testing.assert_array_equal(scores[:, 1 : ITEMS + 1], np.ones((5, ITEMS)))
    np.testing.assert_array_equal(scores[0], catalogue.counts)


def test_interfaces():
    assert isinstance(Popularity(), Encoder) and not isinstance(Popularity(), Retriever)
    for name in ("t2diff", "sasrec"):
        assert isinstance(build_retriever(small_config(model__name=name), SIZES), Retriever)
