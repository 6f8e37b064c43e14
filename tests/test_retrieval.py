"""Streaming ranks and top-k against the whole score matrix: ties, exclusions, several vectors, NaN, shards."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference_data as reference
from jax.sharding import AxisType, Mesh

from t2diff_jax.config import MeshConfig
from t2diff_jax.retrieval import Users, block_table, score_targets
from t2diff_jax.search import top_k, top_k_from_disk
from t2diff_jax.sharding import batch_sharding, make_mesh, row_sharding

MERGES = ("max", "softmax_mean", "logsumexp")


def case(seed=0, *, n_items=50, filling=6, users=9, vectors=1, width=6, whole=False, excluded=False):
    """(vectors [B, M, U], mask [B, M], table [R, U], targets [B], excluded ids [B, S] or None) as numpy arrays."""
    generator = np.random.default_rng(seed)

    def draw(*shape):
        return generator.integers(-2, 3, shape).astype(np.float32) if whole else generator.normal(size=shape)

    # Padding and filling rows would win every ranking if they were scored.
    table = 1e3 * np.ones((n_items + 1 + filling, width))
    table[1 : n_items + 1] = draw(n_items, width)
    mask = generator.random((users, vectors)) < 0.6
    mask[np.arange(users), generator.integers(0, vectors, users)] = True
    out = None
    if excluded:
        out = generator.integers(0, n_items + 1, (users, 12)).astype(np.int32)  # with 0 and with duplicates
        out[:, :2] = out[:, 2:4]
        out[0] = 0
    targets = generator.integers(1, n_items + 1, users).astype(np.int32)
    return draw(users, vectors, width).astype(np.float32), mask, table.astype(np.float32), targets, out


score_jit = jax.jit(score_targets, static_argnames="merge")
top_k_jit = jax.jit(top_k, static_argnames=("k", "merge"))
block_jit = jax.jit(block_table, static_argnames=("n_items", "block", "parts"))


def run_ranks(vectors, mask, table, targets, excluded, *, n_items, block, merge, parts=1):
    users = Users(jnp.array(vectors), jnp.array(mask), None if excluded is None else jnp.array(excluded))
    cut = block_jit(table, n_items, block, parts=parts)
    return np.asarray(score_jit(users, cut, targets, table[targets], merge=merge)[0])


def run_log_loss(vectors, mask, table, targets, excluded, *, n_items, block):
    """That of the mean of the softmaxes, which is also told of the maximum."""
    users = Users(jnp.array(vectors), jnp.array(mask), None if excluded is None else jnp.array(excluded))
    args = users, block_jit(table, n_items, block), targets, table[targets]
    loss, again = (np.asarray(score_jit(*args, merge=merge)[1]) for merge in ("softmax_mean", "max"))
    np.testing.assert_allclose(again, loss, rtol=1e-5, atol=1e-5)
    return loss


def run_top_k(vectors, mask, table, excluded, k, *, n_items, block, merge, parts=1):
    users = Users(jnp.array(vectors), jnp.array(mask), None if excluded is None else jnp.array(excluded))
    scores, ids = top_k_jit(users, block_jit(table, n_items, block, parts=parts), k, merge=merge)
    return np.asarray(scores), np.asarray(ids)


# --- the cut ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rows", "block", "shape"),
    [(16, 100, (1, 16)), (16, 16, (1, 16)), (17, 16, (2, 16)), (17, 100, (1, 32)), (70, 16, (5, 16)), (40, 3, (3, 16))],
)
def test_block_table(rows, block, shape):
    table = np.arange(2.0 * rows, dtype=np.float32).reshape(rows, 2)
    cut = block_table(jnp.array(table), rows - 1, block)
    assert cut.blocks.shape == (shape[0], 1, shape[1], 2) and (cut.part_rows, cut.n_items) == (rows, rows - 1)
    flat = np.asarray(cut.blocks).reshape(-1, 2)
    np.testing.assert_array_equal(flat[:rows], table)
    assert not flat[rows:].any()


@pytest.mark.parametrize(("rows", "parts", "block", "shape"), [(16, 2, 100, (1, 2, 16)), (160, 4, 64, (3, 4, 16))])
def test_blocks_across_parts(rows, parts, block, shape):
    """Every block has rows of every part, padded there; each row is found again."""
    table = np.arange(1, 2.0 * rows + 1, dtype=np.float32).reshape(rows, 2)
    cut = block_table(jnp.array(table), rows - 1, block, parts=parts)
    assert cut.blocks.shape == (*shape, 2) and int(cut.part_rows) == rows // parts
    for part, share in enumerate(table.reshape(parts, -1, 2)):
        found = np.asarray(cut.blocks)[:, part].reshape(-1, 2)
        np.testing.assert_array_equal(found[: len(share)], share)
        assert not found[len(share) :].any()
    np.testing.assert_array_equal(cut.rows(jnp.arange(rows).reshape(2, -1)), table.reshape(2, -1, 2))


# --- by hand ---------------------------------------------------------------------------------------------------------


def test_ranks_and_top_k_by_hand():
    table = np.array([[9], [3], [1], [3], [2], [9]], np.float32)  # items 1..4 score 3, 1, 3, 2
    vectors, mask = np.ones((4, 1, 1), np.float32), np.ones((4, 1), bool)
    options = dict(n_items=4, block=8, merge="max")
    found = run_ranks(vectors, mask, table, np.array([1, 2, 3, 4]), None, **options)
    assert found.tolist() == [1.5, 4, 1.5, 3]
    scores, ids = run_top_k(vectors[:1], mask[:1], table, None, 6, **options)
    assert ids.tolist() == [[1, 3, 4, 2, 0, 0]] and scores.tolist() == [[3, 3, 2, 1, -np.inf, -np.inf]]


def test_softmax_mean_by_hand():
    table = np.log(np.array([[1, 1], [1, 8], [2, 1], [1, 1]], np.float32))
    vectors, mask = np.eye(2, dtype=np.float32)[None], np.ones((1, 2), bool)
    # Softmaxes of items 1..3: (1, 2, 1) / 4 and (8, 1, 1) / 10; their means .525, .3, .175.
    scores, ids = run_top_k(vectors, mask, table, None, 3, n_items=3, block=8, merge="softmax_mean")
    np.testing.assert_allclose(np.exp(scores), [[0.525, 0.3, 0.175]], rtol=1e-5)
    assert ids.tolist() == [[1, 2, 3]]
    options = dict(n_items=3, block=8)
    loss = run_log_loss(vectors, mask, table, np.array([2]), None, **options)
    np.testing.assert_allclose(np.exp(-loss), [0.3], rtol=1e-5)
    # Without item 1 the softmaxes of items 2 and 3 are (2, 1) / 3 and (1, 1) / 2. An excluded target counts.
    for target, expected in ((2, 7 / 12), (1, (1 / 4 + 8 / 10) / 2)):
        loss = run_log_loss(vectors, mask, table, np.array([target]), np.array([[0, 1]]), **options)
        np.testing.assert_allclose(np.exp(-loss), [expected], rtol=1e-5)


def test_logsumexp_by_hand():
    """A vector weighs as much as its sum over what may be ranked."""
    table = np.log(np.array([[1, 1], [1, 8], [2, 1], [1, 1]], np.float32))
    vectors, mask = np.eye(2, dtype=np.float32)[None], np.ones((1, 2), bool)
    # e^scores of items 1..3: (1, 2, 1) and (8, 1, 1); their means 9, 3, 2 halves.
    scores, ids = run_top_k(vectors, mask, table, None, 3, n_items=3, block=8, merge="logsumexp")
    np.testing.assert_allclose(np.exp(scores), [[4.5, 1.5, 1]], rtol=1e-5)
    assert ids.tolist() == [[1, 2, 3]]

    def probability(mask, excluded, target):
        users = Users(jnp.array(vectors), jnp.array(mask), None if excluded is None else jnp.array([excluded]))
        args = users, block_jit(table, 3, 8), np.array([target]), table[[target]]
        return np.exp(-score_jit(*args, merge="logsumexp")[1])

    # Without item 1 items 2 and 3 have 3 and 2; with it, as a target that repeats, it has 9 of 14.
    np.testing.assert_allclose(probability(mask, None, 2), [3 / 14], rtol=1e-5)
    np.testing.assert_allclose(probability(mask, [0, 1], 2), [3 / 5], rtol=1e-5)
    np.testing.assert_allclose(probability(mask, [0, 1], 1), [9 / 14], rtol=1e-5)
    np.testing.assert_allclose(probability([[True, False]], None, 2), [2 / 4], rtol=1e-5)


# --- against the whole matrix ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("block", "merge", "vectors", "excluded"),
    [
        (8, "max", 1, True),
        (24, "max", 3, False),
        (1000, "max", 3, True),
        (8, "softmax_mean", 3, True),
        (24, "softmax_mean", 1, False),
        (1000, "softmax_mean", 3, False),
        (8, "logsumexp", 3, True),
        (1000, "logsumexp", 3, False),
    ],
)
def test_random_tables(block, merge, vectors, excluded):
    n_items = 50
    v, mask, table, targets, out = case(1, vectors=vectors, excluded=excluded)
    options = dict(n_items=n_items, block=block, merge=merge)
    matrix = reference.score_matrix(v, mask, table, n_items, merge, out)
    expected = reference.ranks(matrix, targets, out)
    np.testing.assert_array_equal(run_ranks(v, mask, table, targets, out, **options), expected)
    for k in (3, 60):
        scores, ids = run_top_k(v, mask, table, out, k, **options)
        expected_scores, expected_ids = reference.top_k(matrix, k, out)
        np.testing.assert_array_equal(ids, expected_ids)
        np.testing.assert_allclose(scores, expected_scores, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("block", "vectors", "excluded"), [(8, 1, True), (24, 3, False), (1000, 3, True)])
def test_log_loss_of_random_tables(block, vectors, excluded):
    v, mask, table, targets, out = case(1, vectors=vectors, excluded=excluded)
    expected = []
    for b, target in enumerate(targets):
        hidden = set() if out is None else set(out[b].tolist()) - {target}
        rankable = [i for i in range(1, 51) if i not in hidden]
        scores = v[b][mask[b]].astype(np.float64) @ table.astype(np.float64).T
        shares = np.exp(scores[:, target]) / np.exp(scores[:, rankable]).sum(axis=1)
        expected.append(-np.log(shares.mean()))
    found = run_log_loss(v, mask, table, targets, out, n_items=50, block=block)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_log_loss_of_bad_scores_is_nan():
    v, mask, table, targets, _ = case(3, vectors=2)
    mask[:] = True
    v[0, 0], mask[1] = np.nan, False
    table[7, 0] = np.nan
    assert np.isnan(run_log_loss(v, mask, table, targets, None, n_items=50, block=16)).all()
    table[7, 0] = 1
    found = run_log_loss(v, mask, table, targets, None, n_items=50, block=16)
    assert np.isnan(found).tolist() == [True, True, *[False] * (len(v) - 2)]


@pytest.mark.parametrize("parts", [1, 3, 19])
@pytest.mark.parametrize("merge", MERGES)
def test_parts_of_a_table_change_nothing(merge, parts):
    """Many ties, ids excluded, parts that blocks do not divide: the same ranks, and the smaller id first."""
    v, mask, table, targets, out = case(2, n_items=50, vectors=2, width=3, whole=True, excluded=True)
    assert len(table) == 57
    matrix = reference.score_matrix(v, mask, table, 50, merge, out)
    for block in (10, 57):
        options = dict(n_items=50, block=block, merge=merge, parts=parts)
        np.testing.assert_array_equal(
            run_ranks(v, mask, table, targets, out, **options), reference.ranks(matrix, targets, out)
        )
        if merge == "max":
            scores, ids = run_top_k(v, mask, table, out, 20, **options)
            expected_scores, expected_ids = reference.top_k(matrix, 20, out)
            np.testing.assert_array_equal(ids, expected_ids)
            np.testing.assert_array_equal(scores, expected_scores)


def test_where_everything_is_excluded_nothing_is_found():
    v, mask, table, targets, _ = case(3, vectors=2)
    out = np.broadcast_to(np.arange(51, dtype=np.int32), (len(v), 51))
    found = run_ranks(v, mask, table, targets, out, n_items=50, block=16, merge="softmax_mean")
    np.testing.assert_array_equal(found, 51)
    np.testing.assert_allclose(run_log_loss(v, mask, table, targets, out, n_items=50, block=16), 0, atol=1e-5)


@pytest.mark.parametrize(("block", "vectors"), [(8, 1), (1000, 1), (16, 2)])
def test_exact_ties_of_whole_numbers(block, vectors):
    v, mask, table, targets, out = case(2, n_items=200, users=20, vectors=vectors, width=3, whole=True, excluded=True)
    matrix = reference.score_matrix(v, mask, table, 200, "max")
    expected = reference.ranks(matrix, targets, out)
    assert (expected % 1 == 0.5).any() and len(np.unique(matrix[:, 1:])) < 40  # there are many ties
    options = dict(n_items=200, block=block, merge="max")
    np.testing.assert_array_equal(run_ranks(v, mask, table, targets, out, **options), expected)
    scores, ids = run_top_k(v, mask, table, out, 50, **options)
    expected_scores, expected_ids = reference.top_k(matrix, 50, out)  # the smaller id first
    np.testing.assert_array_equal(ids, expected_ids)
    np.testing.assert_array_equal(scores, expected_scores)


@pytest.mark.parametrize("length", [1e-4, 1.0, 1e3])
@pytest.mark.parametrize(("merge", "vectors"), [("max", 1), ("max", 3), ("softmax_mean", 3), ("logsumexp", 3)])
def test_a_collapsed_model_gets_the_middle_rank(merge, vectors, length):
    generator = np.random.default_rng(0)
    row = generator.normal(size=37).astype(np.float32) * np.float32(length)
    table = np.tile(row, (301, 1))
    v = generator.normal(size=(8, vectors, 37)).astype(np.float32)
    targets = generator.integers(1, 301, 8)
    found = run_ranks(v, np.ones((8, vectors), bool), table, targets, None, n_items=300, block=64, merge=merge)
    np.testing.assert_array_equal(found, 301 / 2)


@pytest.mark.parametrize("merge", MERGES)
def test_masked_vectors_do_not_matter(merge):
    v, mask, table, targets, _ = case(3, vectors=2)
    options = dict(n_items=50, block=16, merge=merge)
    other = np.where(mask[..., None], v, np.float32(np.nan))
    np.testing.assert_array_equal(
        run_ranks(v, mask, table, targets, None, **options), run_ranks(other, mask, table, targets, None, **options)
    )
    for a, b in zip(
        run_top_k(v, mask, table, None, 50, **options), run_top_k(other, mask, table, None, 50, **options), strict=True
    ):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("length", [0.02, 0.05, 1.0])
@pytest.mark.parametrize("merge", MERGES)
def test_rounding_does_not_take_the_first_place(merge, length):
    """User vectors at the target of their own: scores near 0, whose merged form rounds by the size of its terms."""
    generator = np.random.default_rng(0)
    table = (length * generator.normal(size=(500, 64))).astype(np.float32)
    targets = generator.integers(1, 490, 1024).astype(np.int32)
    vectors = table[targets][:, None] * (1 + 0.01 * generator.normal(size=(1024, 4, 1))).astype(np.float32)
    found = run_ranks(vectors, np.ones((1024, 4), bool), table, targets, None, n_items=490, block=64, merge=merge)
    np.testing.assert_array_equal(found, 1)


def test_an_excluded_target_is_not_recommended_and_so_not_found():
    table = np.array([[0], [5], [4], [3], [2]], np.float32)
    v, mask = np.ones((1, 1, 1), np.float32), np.ones((1, 1), bool)
    excluded = np.array([[3, 1, 0, 1]], np.int32)
    options = dict(n_items=4, block=8, merge="max")
    assert run_ranks(v, mask, table, np.array([3]), excluded, **options).tolist() == [5]  # behind all four
    assert run_top_k(v, mask, table, excluded, 4, **options)[1].tolist() == [[2, 4, 0, 0]]


def test_rank_is_one_plus_the_place_in_the_full_top_k():
    v, mask, table, targets, _ = case(4, vectors=2)
    options = dict(n_items=50, block=16, merge="max")
    _, ids = run_top_k(v, mask, table, None, 50, **options)
    places = [row.tolist().index(target) + 1 for row, target in zip(ids, targets, strict=True)]
    assert run_ranks(v, mask, table, targets, None, **options).tolist() == places
    assert all(sorted(row.tolist()) == list(range(1, 51)) for row in ids)


# --- divergence ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("vectors", [1, 2])
@pytest.mark.parametrize("merge", MERGES)
def test_nan_anywhere_makes_the_rank_nan(merge, vectors):
    v, _, table, targets, _ = case(5, vectors=vectors)
    mask, options = np.ones((9, vectors), bool), dict(n_items=50, block=16, merge=merge)
    bad_user = v.copy()
    bad_user[4, 0, 2] = np.nan
    found = run_ranks(bad_user, mask, table, targets, None, **options)
    assert np.flatnonzero(np.isnan(found)).tolist() == [4]
    bad_item = table.copy()
    bad_item[50, 1] = np.nan
    assert np.isnan(run_ranks(v, mask, bad_item, targets, None, **options)).all()


@pytest.mark.parametrize("merge", MERGES)
def test_nan_in_padding_rows_does_not_matter(merge):
    v, mask, table, targets, _ = case(6, vectors=2)
    options = dict(n_items=50, block=16, merge=merge)
    other = table.copy()
    other[0] = other[51:] = np.nan
    np.testing.assert_array_equal(
        run_ranks(v, mask, other, targets, None, **options),
        run_ranks(v, mask, table, targets, None, **options),
    )


@pytest.mark.parametrize("vectors", [1, 2])
@pytest.mark.parametrize("merge", MERGES)
def test_a_user_without_a_vector_has_no_rank(merge, vectors):
    v, mask, table, targets, _ = case(7, vectors=vectors)
    mask[3] = False
    found = run_ranks(v, mask, table, targets, None, n_items=50, block=16, merge=merge)
    assert np.flatnonzero(np.isnan(found)).tolist() == [3]
    _, ids = run_top_k(v, mask, table, None, 50, n_items=50, block=16, merge=merge)
    assert not ids[3].any() and ids[[0, 1, 2, 4, 5]].all()


@pytest.mark.parametrize("merge", MERGES)
@pytest.mark.parametrize("bad", [np.inf, -np.inf])
def test_overflow_makes_the_rank_nan(bad, merge):
    v, mask, table, targets, _ = case(8)
    v[2] = np.abs(v[2])
    table = table.copy()
    table[targets[2]] = bad
    assert np.isnan(run_ranks(v, mask, table, targets, None, n_items=50, block=16, merge=merge)[2])


# --- shards ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("merge", "excluded", "search"),
    [
        ("max", True, "float32"),
        ("softmax_mean", False, "float32"),
        ("softmax_mean", True, "float32"),
        ("logsumexp", True, "float32"),
        ("max", True, "bfloat16"),
        ("max", True, "int8"),
    ],
)
def test_the_result_does_not_depend_on_the_mesh(merge, excluded, search):
    n_items = 90
    v, mask, table, targets, out = case(9, n_items=n_items, filling=5, users=16, vectors=2, excluded=excluded)

    def score(mesh, vectors, mask, out, table, targets):
        users = Users(vectors, mask, out)
        cut = block_table(table, n_items, 32, parts=mesh.shape["model"], search=search)
        own = cut.rows(targets)
        best = top_k(users, cut, 12, merge=merge, mesh=mesh)
        return *score_targets(users, cut, targets, own, merge=merge, mesh=mesh), *best

    def run(mesh: Mesh):
        batch, rows = batch_sharding(mesh), row_sharding(mesh)
        args = jax.device_put((v, mask, out, table, targets), (batch, batch, batch, rows, batch))
        return jax.tree.map(np.asarray, jax.jit(score, static_argnums=0)(mesh, *args))

    single = Mesh(np.array(jax.devices()[:1]).reshape(1, 1), ("data", "model"), axis_types=(AxisType.Auto,) * 2)
    expected_ranks, expected_loss, expected_scores, expected_ids = run(single)
    matrix = reference.score_matrix(v, mask, table, n_items, merge, out)
    np.testing.assert_array_equal(expected_ranks, reference.ranks(matrix, targets, out))
    for data, model in ((8, 1), (2, 4)):
        found_ranks, loss, scores, ids = run(make_mesh(MeshConfig(data, model)))
        np.testing.assert_array_equal(found_ranks, expected_ranks)
        np.testing.assert_allclose(loss, expected_loss, rtol=1e-5, atol=1e-5)
        np.testing.assert_array_equal(ids, expected_ids)
        np.testing.assert_allclose(scores, expected_scores, rtol=1e-6, atol=1e-6)


# --- search at less precision ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("search", ["bfloat16", "int8"])
@pytest.mark.parametrize(("merge", "vectors", "excluded"), [("max", 1, True), ("logsumexp", 3, False)])
def test_a_search_at_less_precision(search, merge, vectors, excluded):
    """Nearly all of the best are found, with exact scores, in order, and nothing that may not be ranked."""
    n_items, k = 3000, 20
    query, mask, table, _, out = case(n_items=n_items, users=40, vectors=vectors, width=16, excluded=excluded)
    users = Users(jnp.array(query), jnp.array(mask), None if out is None else jnp.array(out))
    exact = top_k_jit(users, block_jit(table, n_items, 512), k, merge=merge)
    cut = jax.jit(block_table, static_argnames=("n_items", "block", "search"))(table, n_items, 512, search=search)
    assert cut.coarse.blocks.dtype == search and cut.coarse.blocks.shape == cut.blocks.shape
    scores, ids = top_k_jit(users, cut, k, merge=merge)
    found = np.mean([np.isin(a, b).mean() for a, b in zip(np.asarray(exact[1]), np.asarray(ids), strict=True)])
    assert found > 0.99
    same = np.asarray(ids) == np.asarray(exact[1])
    np.testing.assert_allclose(np.asarray(scores)[same], np.asarray(exact[0])[same], rtol=1e-5)
    assert (np.diff(scores, axis=1) <= 0).all() and (ids > 0).all() and (ids <= n_items).all()
    if excluded:
        assert not any(np.isin(a[a > 0], b).any() for a, b in zip(out, np.asarray(ids), strict=True))


def test_int8_rows_by_hand():
    """Each row has its own scale: the greatest number becomes 127; a row of zeros stays one."""
    table = np.zeros((16, 2), np.float32)
    table[1], table[2] = (1.0, -0.5), (1e-3, 1e-3)
    coarse = block_table(jnp.array(table), 15, 100, search="int8").coarse
    np.testing.assert_array_equal(coarse.blocks[0, 0, :4], [[0, 0], [127, -64], [127, 127], [0, 0]])
    np.testing.assert_allclose(coarse.scale[0, 0, :4], [0, 1 / 127, 1e-3 / 127, 0], rtol=1e-6)


@pytest.mark.parametrize("n_items", [15, 16, 17, 500])
@pytest.mark.parametrize("k", [1, 5, 40])
def test_top_k_where_most_items_tie(n_items, k):
    """Of equal scores the smaller id comes first, whatever group, block or part it lies in."""
    table = np.zeros((n_items + 1 + (-(n_items + 1) % 2), 2), np.float32)
    table[1 : n_items + 1, 0] = np.random.default_rng(0).integers(0, 3, n_items)
    order = np.lexsort((np.arange(1, n_items + 1), -table[1 : n_items + 1, 0]))[:k] + 1
    for parts in (1, 2):
        mask = np.ones((1, 1), bool)
        args = dict(n_items=n_items, block=64, merge="max", parts=parts)
        _, ids = run_top_k(np.array([[[1.0, 0.0]]], np.float32), mask, table, None, k, **args)
        np.testing.assert_array_equal(ids[0], np.pad(order, (0, k - len(order))))


def test_an_approximate_search_has_exact_scores_of_what_it_finds():
    """On this device the approximation may be exact; what is found is in order, and scored exactly."""
    n_items, k = 3000, 20
    query, mask, table, _, _ = case(n_items=n_items, users=40, vectors=1, width=16, excluded=False)
    users, cut = Users(jnp.array(query), jnp.array(mask), None), block_jit(table, n_items, 512)
    approximate = jax.jit(top_k, static_argnames=("k", "merge", "found"))
    assert "approx" in approximate.lower(users, cut, k=k, merge="max", found=0.9).as_text().lower()
    assert "approx" not in approximate.lower(users, cut, k=k, merge="max", found=1.0).as_text().lower()
    scores, ids = approximate(users, cut, k=k, merge="max", found=0.9)
    np.testing.assert_allclose(scores, np.take_along_axis(query[:, 0] @ table.T, np.asarray(ids), 1), rtol=1e-5)
    assert (np.diff(scores, axis=1) <= 0).all() and (ids > 0).all()
    exact = np.asarray(top_k_jit(users, cut, k, merge="max")[1])
    assert np.mean([np.isin(a, b).mean() for a, b in zip(exact, np.asarray(ids), strict=True)]) > 0.8


# --- a table on disk -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rows", [50, 64, 333, 5000])
@pytest.mark.parametrize(
    ("merge", "vectors", "excluded"), [("max", 1, True), ("logsumexp", 3, True), ("max", 2, False)]
)
def test_a_table_on_disk_is_searched_as_one_in_memory(tmp_path, rows, merge, vectors, excluded):
    n_items, k = 1000, 25
    query, mask, table, _, out = case(n_items=n_items, users=9, vectors=vectors, width=8, excluded=excluded)
    table = table[: n_items + 1].copy()
    table[200:230] = table[400:430] = table[7]  # ties across lots: the smaller id first
    np.save(tmp_path / "items.npy", table)
    mapped = np.load(tmp_path / "items.npy", mmap_mode="r")
    users = Users(jnp.array(query), jnp.array(mask), None if out is None else jnp.array(out))
    scores, ids = top_k_from_disk(users, mapped, k, merge=merge, rows=rows, block=128)
    expected = top_k_jit(users, block_jit(jnp.array(table), n_items, 128), k, merge=merge)
    np.testing.assert_array_equal(ids, expected[1])
    np.testing.assert_allclose(scores, expected[0], rtol=1e-6, atol=1e-6)


def test_a_table_on_disk_with_fewer_items_than_wanted(tmp_path):
    table = np.arange(8, dtype=np.float16).reshape(4, 2)
    users = Users(jnp.ones((1, 1, 2)), jnp.ones((1, 1), bool), jnp.array([[2]]))
    scores, ids = top_k_from_disk(users, table, 5, merge="max", rows=2, block=16)
    assert ids.tolist() == [[3, 1, 0, 0, 0]] and scores[0, :2].tolist() == [13.0, 5.0]
    assert np.isneginf(scores[0, 2:]).all()
    with pytest.raises(ValueError, match="softmax_mean reads the whole table twice"):
        top_k_from_disk(users, table, 5, merge="softmax_mean", rows=2, block=16)
