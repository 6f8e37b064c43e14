"""Muon on stacks, against optax's rule kernel by kernel."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import traverse_util
from model_cases import SIZES, make_batch, make_catalogue, normal, small_config
from optax.contrib import MuonDimensionNumbers, muon

from t2diff_jax.config_rules import MODELS
from t2diff_jax.models import build_retriever
from t2diff_jax.muon import Form, is_kernel, scale_by_stacked_muon, stacked, unstacked

# Flat, tall and wide ones, with heads, of a convolution, over two sides of a power of two.
SHAPES = {
    "query": (8, 2, 4), "out": (2, 4, 8), "conv": (3, 30, 6), "dense": (8, 6), "tall": (70, 6), "wide": (6, 130),
    "again": (8, 6), "square": (65, 65),
}  # fmt: skip


def kernels(seed):
    return {layer: {"kernel": jnp.asarray(normal(seed + i, *s))} for i, (layer, s) in enumerate(SHAPES.items())}


def test_stacks_by_hand():
    tree = {"tall": {"kernel": jnp.arange(6.0).reshape(3, 2)}, "flat": {"kernel": jnp.ones((2, 65))}}
    found = stacked(tree)
    assert {name: s.shape for name, s in found.items()} == {"64x64": (1, 64, 64), "64x128": (1, 64, 128)}
    np.testing.assert_array_equal(found["64x64"][0, :2, :3], [[0, 2, 4], [1, 3, 5]])
    assert found["64x64"].sum() == 15 and found["64x128"].sum() == 130


def test_unstacking_is_the_inverse():
    tree = kernels(0)
    jax.tree.map(np.testing.assert_array_equal, unstacked(stacked(tree), tree), tree)
    assert sum(len(stack) for stack in stacked(tree).values()) == len(SHAPES)
    assert stacked({}) == {} and unstacked({}, {}) == {}


def test_five_steps_are_optaxs_kernel_by_kernel():
    """Padding, turning over and the company of others change nothing; the size follows the kernel, not the stack."""

    def axes(tree):
        return {
            layer: {"kernel": MuonDimensionNumbers(tuple(range(n)), tuple(range(n, len(SHAPES[layer]))))}
            for layer, n in ((layer, 1 if layer == "query" else len(SHAPES[layer]) - 1) for layer in tree)
        }

    own = optax.chain(scale_by_stacked_muon(), optax.scale(-0.1 * 0.2))
    theirs = muon(0.1, muon_weight_dimension_numbers=axes, consistent_rms=0.2)
    states = [tx.init(kernels(0)) for tx in (own, theirs)]
    for step in range(5):
        gradients, updates = kernels(10 * step), []
        for i, tx in enumerate((own, theirs)):
            update, states[i] = tx.update(gradients, states[i], gradients)
            updates.append(update)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5), *updates)


def test_a_kernel_without_gradient_stays():
    """Not NaN, though its norm is 0; beside others in its stack."""
    gradients = {**kernels(0), "dense": {"kernel": jnp.zeros((8, 6))}}
    tx = scale_by_stacked_muon()
    update, _ = tx.update(gradients, tx.init(gradients))
    assert (update["dense"]["kernel"] == 0).all() and all(jnp.isfinite(u).all() for u in jax.tree.leaves(update))


def test_kernels_are_maps_from_inputs_to_outputs():
    """Heads are outputs of query, key and value and inputs of what mixes them; a convolution's taps are inputs."""
    found = {path[0].key: Form.of(path, leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(kernels(0))}
    assert found["query"] == (8, 8) and found["out"] == (8, 8) and found["conv"] == (90, 6) and found["dense"] == (8, 6)


@pytest.mark.parametrize("name", MODELS)
def test_every_kernel_of_a_model_is_a_whole_map(name):
    """What comes out of it is what its bias is added to, and what goes in is the rest."""
    retriever = build_retriever(small_config(model__name=name), SIZES)
    params = jax.eval_shape(retriever.init, jax.random.key(0), make_catalogue(), make_batch())["params"]
    shapes = traverse_util.flatten_dict(params)
    found = {
        tuple(entry.key for entry in path): Form.of(path, leaf)
        for path, leaf in jax.tree_util.tree_leaves_with_path(params)
        if is_kernel(path, leaf)
    }
    assert set(found) == {path for path in shapes if path[-1] == "kernel"} != set()
    for path, form in found.items():
        assert form.ins * form.outs == shapes[path].size, path
        if (bias := shapes.get((*path[:-1], "bias"))) is not None:
            assert form.outs == bias.size, path
