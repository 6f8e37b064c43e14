"""DAT: augmented vectors, users never met, the losses by hand, gradients."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
from model_cases import (
    ITEMS,
    SIZES,
    drawn,
    make_batch,
    make_catalogue,
    named_leaves,
    normal,
    put,
    small_config,
)

from t2diff_jax.models import build_retriever
from t2diff_jax.models.dat import alignment, first_of_each

CATALOGUE, BATCH = make_catalogue(), make_batch()
VALID = np.asarray(BATCH["history"]) > 0
KEY = jax.random.key(3)


def make(**changes):
    fixed = {"model__name": "dat", "model__sketch_dim": 4, "data__protocol": "leave_one_out"}
    return build_retriever(small_config(**fixed | changes), SIZES)


@pytest.fixture(scope="module")
def dat():
    """The retriever, its variables (users 7 and 9 of the batch have been met), compiled functions of variables."""
    retriever = make(model__dat__unknown_users=0.0, model__dat__mimic=0.3, model__dat__alignment=0.7)
    met = jnp.zeros(SIZES.users).at[jnp.array([7, 9])].set(1.0)
    variables = {"params": drawn(retriever.init, CATALOGUE, BATCH), "stats": {"met": met}}

    @jax.jit
    def learn(variables):
        def loss(params):
            return retriever.loss({**variables, "params": params}, CATALOGUE, BATCH, KEY)

        return jax.value_and_grad(loss, has_aux=True)(variables["params"])

    @jax.jit
    def encode(variables):
        users, mask = retriever.encode_user(variables, CATALOGUE, BATCH, KEY)
        return users, mask, retriever.encode_items(variables, CATALOGUE)

    return types.SimpleNamespace(retriever=retriever, variables=variables, learn=learn, encode=encode)


def changed(variables, row):
    def other(table):
        return jnp.asarray(table).at[row].add(1.0)

    return {**variables, "params": put(variables["params"], ("augmented_users",), other)}


def test_a_user_never_met_is_the_unknown_one(dat):
    """Rows 7 to 11 are the batch's users; the last row of the table is what users 8, 10 and 11 share."""
    users, mask, _ = map(np.asarray, dat.encode(dat.variables))
    assert users.shape == (5, 1, 8 + 4) and mask.all()
    for row, moved in ((7, [0]), (9, [2]), (8, []), (SIZES.users, [1, 3, 4]), (0, [])):
        after = np.asarray(dat.encode(changed(dat.variables, row))[0])
        assert np.flatnonzero(np.any(after != users, axis=(1, 2))).tolist() == moved


def test_training_meets_users_of_weight_alone(dat):
    (_, (_, stats)), _ = dat.learn(dat.variables)
    assert np.flatnonzero(stats["met"]).tolist() == [7, 8, 9, 10]


def test_scores_are_cosines_over_the_temperature(dat):
    users, _, items = map(np.asarray, dat.encode(dat.variables))
    np.testing.assert_allclose(np.linalg.norm(users[:, 0, :8], axis=-1), 1 / 0.05, rtol=1e-4)
    np.testing.assert_allclose(np.linalg.norm(items[1 : ITEMS + 1, :8], axis=-1), 1, rtol=1e-4)


def test_losses_against_numpy(dat):
    """Cross-entropy + .3 mimic + .7 alignment, each from the vectors of towers and ids."""
    (loss, (metrics, _)), _ = dat.learn(dat.variables)
    retriever, params = dat.retriever, {"params": dat.variables["params"]}
    table = np.asarray(dat.encode(dat.variables)[2])
    batch = {**BATCH, "user_row": BATCH["user"]}
    x = retriever.net.apply(params, batch["history"], CATALOGUE, method="embed")
    users = np.asarray(retriever.net.apply(params, x, batch, deterministic=True, method="user"))[:, :, 0]
    following = np.concatenate([BATCH["history"][:, 1:], BATCH["target"][:, None]], axis=1)
    a_u, a_v = (np.asarray(params["params"][name]) for name in ("augmented_users", "augmented_item_table"))
    terms, mimic, towers, chosen, met = [], [], [], [], set()
    for b, j in np.argwhere(VALID & (np.asarray(BATCH["weight"]) > 0)[:, None]):
        target = following[b, j]
        terms.append(reference.cross_entropy((users[b, j] @ table.T)[1 : ITEMS + 1], target - 1))
        p_u, p_v = users[b, j, :8] * 0.05, table[target, :8]
        mimic.append(np.sum((a_u[BATCH["user"][b]] - p_v) ** 2) + np.sum((a_v[target] - p_u) ** 2))
        if target not in met:  # an item counts once, however often it was taken
            towers.append(p_v)
            chosen.append(np.asarray(CATALOGUE.categories)[target])
        met.add(int(target))
    np.testing.assert_allclose(metrics["loss_tower"], np.mean(terms), rtol=1e-4)
    np.testing.assert_allclose(metrics["loss_mimic"], np.mean(mimic), rtol=1e-4)
    aligned = slow_alignment(np.array(towers, np.float64), np.array(chosen))
    np.testing.assert_allclose(loss, np.mean(terms) + 0.3 * np.mean(mimic) + 0.7 * aligned, rtol=1e-4)


def test_an_augmented_vector_is_read_at_the_size_of_a_normed_one(dat):
    """One of length 1, as what it imitates: its root mean square among a tower's inputs is 1, as that of e(i)."""
    params = put(dat.variables["params"], ("augmented_users",), lambda table: jnp.full_like(table, 8**-0.5))
    x = jnp.zeros((*BATCH["history"].shape, 8))
    inputs = dat.retriever.net.apply(
        {"params": params}, 0, x, {**BATCH, "user_row": BATCH["user"]}, method="user_inputs"
    )
    np.testing.assert_allclose(inputs[..., :8], 1, rtol=1e-5)


def slow_alignment(vectors, categories):
    members = {
        c: [v for v, own in zip(vectors, categories, strict=True) if c in own] for c in range(1, SIZES.categories)
    }
    covariance = {c: np.cov(np.array(vs).T) for c, vs in members.items() if len(vs) >= 2}
    major = max(covariance, key=lambda c: len(members[c]))
    return sum(((covariance[major] - other) ** 2).sum() for other in covariance.values())


def test_alignment_by_hand():
    """Variances 2 (three items at -r, 0, r) and 0; an item of two categories counts in both; one alone has none."""
    vectors = jnp.array([[-np.sqrt(2)], [0.0], [np.sqrt(2)], [0.0], [5.0], [9.0]])
    categories = jnp.array([[1, 0], [1, 2], [1, 0], [2, 0], [3, 0], [1, 0]])
    weights = jnp.array([1.0, 1.0, 1.0, 1.0, 1.0, 0.0])
    np.testing.assert_allclose(alignment(vectors, categories, weights, 4), 4.0, rtol=1e-5)
    assert alignment(vectors, categories, weights * 0, 4) == 0
    gradient = jax.grad(lambda v: alignment(v, categories, weights, 4))(vectors)
    assert np.isfinite(gradient).all() and gradient[5] == 0 and gradient[4] == 0


def test_first_of_each():
    got = first_of_each(jnp.array([[3, 0, 5], [5, 3, 7]]))
    np.testing.assert_array_equal(got, [[True, False, True], [False, False, True]])


def test_alignment_against_numpy():
    vectors, categories = normal(0, 4, 9, 5), np.random.default_rng(1).integers(0, SIZES.categories, (4, 9, 2))
    expected = slow_alignment(vectors.reshape(-1, 5).astype(np.float64), categories.reshape(-1, 2))
    got = alignment(jnp.asarray(vectors), jnp.asarray(categories), jnp.ones((4, 9)), SIZES.categories)
    np.testing.assert_allclose(got, expected, rtol=1e-4)


def test_towers_do_not_learn_to_be_imitated():
    """Of the mimic losses alone only the augmented vectors learn, and each of them from its own positives."""
    whole, without = (
        make(model__dat__unknown_users=0.0, model__dat__alignment=0.0, model__dat__mimic=w) for w in (1, 0)
    )
    variables = {"params": drawn(whole.init, CATALOGUE, BATCH), "stats": {"met": jnp.zeros(SIZES.users)}}

    @jax.jit
    def difference(params):
        def loss(params):
            args = {**variables, "params": params}, CATALOGUE, BATCH, KEY
            return whole.loss(*args)[0] - without.loss(*args)[0]

        return jax.grad(loss)(params)

    gradient = named_leaves(difference(variables["params"]))
    moved = {name for name, g in gradient.items() if np.abs(g).max() > 1e-4}
    assert moved == {"augmented_users", "augmented_item_table"}
    assert np.flatnonzero(np.any(gradient["augmented_users"] != 0, axis=1)).tolist() == [7, 8, 9]


def test_hidden_ids_teach_the_unknown_row():
    retriever = make(model__dat__unknown_users=0.999)
    variables = {"params": drawn(retriever.init, CATALOGUE, BATCH), "stats": {"met": jnp.zeros(SIZES.users)}}
    gradient = jax.jit(jax.grad(lambda p: retriever.loss({**variables, "params": p}, CATALOGUE, BATCH, KEY)[0]))
    g = np.asarray(gradient(variables["params"])["augmented_users"])
    assert np.flatnonzero(np.any(g != 0, axis=1)).tolist() == [SIZES.users]


def test_without_behaviours_a_user_is_the_same_at_every_place():
    retriever = make(model__dat__behaviours=False, model__sketch_dim=0)
    params = {"params": drawn(retriever.init, CATALOGUE, BATCH)}
    batch = {**BATCH, "user_row": BATCH["user"]}
    x = retriever.net.apply(params, batch["history"], CATALOGUE, method="embed")
    users = np.asarray(retriever.net.apply(params, x, batch, deterministic=True, method="user"))
    np.testing.assert_allclose(users, np.broadcast_to(users[:, :1], users.shape), rtol=1e-5)


def test_gradient_reaches_every_parameter(dat):
    _, gradient = dat.learn(dat.variables)
    for name, g in named_leaves(gradient).items():
        assert np.isfinite(g).all() and np.any(np.abs(g) > 1e-6), name


def test_an_empty_batch_is_finite(dat):
    empty = {**BATCH, "history": BATCH["history"] * 0, "weight": BATCH["weight"] * 0}

    def loss(params):
        return dat.retriever.loss({**dat.variables, "params": params}, CATALOGUE, empty, KEY)

    (value, _), gradient = jax.jit(jax.value_and_grad(loss, has_aux=True))(dat.variables["params"])
    assert value == 0 and all(np.isfinite(g).all() for g in jax.tree.leaves(gradient))
