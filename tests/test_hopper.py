"""The search by the kernel for Hopper GPUs: the kernel interpreted and lowered here, the search with a stand-in."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AbstractDevice, AbstractMesh

from t2diff_jax import hopper, search
from t2diff_jax.retrieval import KERNEL_GROUP, Users, block_table
from t2diff_jax.search import top_k

interpreted = pytest.mark.skipif(
    tuple(map(int, jax.__version__.split(".")[:2])) < (0, 11), reason="jax before 0.11 cannot interpret the kernel"
)


def reference(users, items, group=KERNEL_GROUP):
    products = np.asarray(items, np.float32) @ np.asarray(users, np.float32).T
    return products.reshape(-1, group, len(users)).max(axis=1)


def stand_in(users, items):
    products = jnp.einsum("nu,bu->nb", items, users, preferred_element_type=jnp.float32)
    return products.reshape(-1, KERNEL_GROUP, len(users)).max(axis=1)


def draw(seed, *shape):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.bfloat16)


@interpreted
@pytest.mark.parametrize(
    ("users", "rows", "width", "processors"),
    [(1, 128, 64, 1), (300, 7 * 128, 64, 1), (256, 5 * 128, 128, 2), (130, 6 * 128, 256, 1)],
)
def test_the_kernel_interpreted(users, rows, width, processors):
    """Users that do not fill a block, blocks with fewer tiles than stages, several blocks of users and of items."""
    from jax.experimental.pallas import mosaic_gpu as plgpu

    u, e = draw(0, users, width), draw(1, rows, width)
    found = hopper.group_maxima(u, e, processors=processors, interpret=plgpu.InterpretGPUParams())
    np.testing.assert_allclose(found, reference(u, e), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("width", [64, 128, 192, 256])
def test_the_kernel_lowers_for_the_gpu(width):
    device = AbstractDevice(device_kind="NVIDIA H100 80GB HBM3", num_cores=132, platform="cuda")
    shapes = (jax.ShapeDtypeStruct((n, width), jnp.bfloat16) for n in (1000, 128 * 999))
    with jax.sharding.use_abstract_mesh(AbstractMesh((1,), ("x",), abstract_device=device)):
        call = jax.jit(functools.partial(hopper.group_maxima, processors=132))
        text = call.trace(*shapes).lower(lowering_platforms=("cuda",)).as_text()
    assert "mosaic_gpu" in text


@pytest.mark.parametrize(("width", "rows"), [(32, 128), (96, 128), (320, 128), (64, 100)])
def test_sizes_that_do_not_fit(width, rows):
    with pytest.raises(ValueError, match="whole tiles of 128"):
        hopper.group_maxima(draw(0, 8, width), draw(1, rows, width), processors=1)


def test_no_such_device_here():
    assert search.kernel_processors(jax.devices()[0]) == 0


@pytest.fixture
def kernel(monkeypatch):
    """The search takes the kernel's way; a plain product stands in for the kernel itself."""
    calls = []

    def counted(users, items, processors):
        calls.append(users.shape)
        return stand_in(users, items)

    monkeypatch.setattr(search, "kernel_processors", lambda device: 1)
    monkeypatch.setattr(hopper, "group_maxima", counted)
    return calls


def case(n_items, users, vectors, *, seed=0, seen=0):
    """Users and a table whose row 0 and rows past the last item would win every ranking."""
    generator = np.random.default_rng(seed)
    table = 1e3 * np.ones((-(-(n_items + 1) // 8) * 8, 64), np.float32)
    table[1 : n_items + 1] = generator.normal(size=(n_items, 64))
    mask = generator.random((users, vectors)) < 0.6
    mask[:, 0] = True
    query = generator.normal(size=(users, vectors, 64)).astype(np.float32)
    best = np.argsort(-(query[:, 0] @ table[1 : n_items + 1].T), axis=1)[:, :seen] + 1  # the worst to leave out
    return Users(jnp.array(query), jnp.array(mask), jnp.array(best, jnp.int32) if seen else None), jnp.array(table)


@pytest.mark.parametrize(
    ("n_items", "users", "vectors", "merge", "seen", "k"),
    [
        (5000, 40, 1, "max", 0, 20),
        (5000, 40, 3, "max", 0, 20),
        (5000, 40, 1, "softmax_mean", 30, 20),
        (9000, 2100, 1, "max", 12, 10),  # three slices
        (130, 5, 1, "max", 3, 128),  # more than may be recommended
        (64 * 200, 9, 1, "max", 0, 100),
    ],
)
def test_the_search_finds_what_the_exact_one_finds(kernel, n_items, users, vectors, merge, seen, k):
    some, table = case(n_items, users, vectors, seen=seen)
    find = jax.jit(top_k, static_argnames=("k", "merge"))
    cut = jax.jit(block_table, static_argnames=("n_items", "block", "search"))
    exact_scores, exact = map(np.asarray, find(some, cut(table, n_items, 512), k, merge=merge))
    assert not kernel
    scores, ids = map(np.asarray, find(some, cut(table, n_items, 512, search="bfloat16"), k, merge=merge))
    assert kernel
    np.testing.assert_array_equal((ids > 0).sum(axis=1), (exact > 0).sum(axis=1))
    assert np.mean([np.isin(a[a > 0], b).mean() for a, b in zip(exact, ids, strict=True)]) > 0.999
    same = (ids == exact) & (ids > 0)
    assert same.sum() > 0.99 * (exact > 0).sum()
    np.testing.assert_allclose(scores[same], exact_scores[same], rtol=1e-5, atol=1e-5)
    finite = np.where(np.isfinite(scores), scores, -1e9)
    assert (np.diff(finite, axis=1) <= 0).all()
    if seen:
        assert not any(np.isin(a, b).any() for a, b in zip(np.asarray(some.excluded), ids, strict=True))


def test_of_equal_scores_the_smaller_id_comes_first(kernel):
    table = jnp.zeros((256, 64)).at[1:200, 0].set(jnp.arange(199) % 3)
    users = Users(jnp.ones((2, 1, 64)), jnp.ones((2, 1), bool), None)
    _, ids = top_k(users, block_table(table, 199, 512, search="bfloat16"), 80, merge="max")
    expected = np.lexsort((np.arange(1, 200), -np.asarray(table[1:200, 0])))[:80] + 1
    np.testing.assert_array_equal(ids, np.stack([expected] * 2))


def test_a_mean_over_several_vectors_goes_the_other_way(kernel):
    """The greatest of several products says nothing of where the mean of their exponentials is greatest."""
    users, table = case(500, 4, 2)
    top_k(users, block_table(table, 500, 512, search="bfloat16"), 5, merge="logsumexp")
    assert not kernel


def test_who_leaves_out_many_goes_the_other_way(kernel):
    """A group more would be scored again for each id that is left out."""
    users, table = case(500, 4, 1, seen=3)
    cut = block_table(table, 500, 512, search="bfloat16")
    wide = users._replace(excluded=jnp.pad(users.excluded, ((0, 0), (0, search._LEFT_OUT - 2))))
    _, ids = top_k(wide, cut, 5, merge="max")
    assert not kernel
    np.testing.assert_array_equal(ids, top_k(users, cut, 5, merge="max")[1])
    assert kernel
