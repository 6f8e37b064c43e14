"""Costs of programs whose costs are known."""

from unittest import mock

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from t2diff_jax.config import MeshConfig
from t2diff_jax.program_cost import Collective, collectives_of, copies_of, memory_of, product_flops
from t2diff_jax.sharding import make_mesh

eight = pytest.mark.skipif(jax.device_count() != 8, reason="needs 8 devices")


def flops(function, *shapes):
    return product_flops(jax.jit(function).trace(*(jnp.zeros(shape) for shape in shapes)).jaxpr.jaxpr)


def test_products_by_hand():
    """2 m n k of a product; a batch axis counts; sums and elementwise work do not."""
    assert flops(lambda a, b: jnp.tanh(a @ b).sum(), (3, 5), (5, 7)) == 2 * 3 * 5 * 7
    assert flops(lambda a, b: jnp.einsum("bij,bkj->bik", a, b), (4, 3, 5), (4, 7, 5)) == 4 * 2 * 3 * 5 * 7
    assert flops(jnp.sum, (9,)) == 0


def test_convolutions_by_hand():
    """Every output is a product with the whole kernel of its channel."""

    def convolve(x, kernel):
        return jax.lax.conv_general_dilated(x, kernel, (1,), "SAME", dimension_numbers=("NWC", "WIO", "NWC"))

    assert flops(convolve, (2, 10, 4), (3, 4, 6)) == 2 * (2 * 10 * 6) * (3 * 4)


def test_a_scan_counts_each_time_round_and_of_branches_the_longest():
    def scanned(a, b):
        return jax.lax.scan(lambda c, _: (c @ b, None), a, length=6)[0]

    def branched(a, b):
        return jax.lax.cond(a.sum() > 0, lambda: a @ b, lambda: a @ b @ b)

    one = 2 * 3 * 5 * 5
    assert flops(scanned, (3, 5), (5, 5)) == 6 * one
    assert flops(branched, (3, 5), (5, 5)) == 2 * one
    assert flops(jax.grad(lambda a, b: scanned(a, b).sum()), (3, 5), (5, 5)) == 2 * 6 * one  # forward and backward


def test_copies_of_tables():
    """What is given back as it came has to be copied, unless it is donated; other shapes do not count."""
    args = jnp.zeros((64, 8)), jnp.zeros(3)
    kept, donated = (
        jax.jit(lambda a, b: (a, b), donate_argnums=given, keep_unused=True).lower(*args).compile() for given in ((), 0)
    )
    assert copies_of(kept, {(64, 8)}) == 1 and copies_of(kept, {(64, 8), (3,)}) == 2
    assert copies_of(kept, {(8, 64)}) == copies_of(donated, {(64, 8)}) == 0


def test_copies_into_fast_memory_and_of_other_types_do_not_count():
    compiled = mock.create_autospec(jax.stages.Compiled, instance=True)
    compiled.as_text.return_value = """ENTRY %main (a: f32[64,8]) -> f32[64,8] {
  %copy-start = (f32[64,8]{0,1:T(8,128)S(1)}, f32[64,8]{0,1:T(8,128)}, u32[]{:S(2)}) copy-start(%a)
  %copy-done = f32[64,8]{0,1:T(8,128)S(1)} copy-done(%copy-start)
  %copy.5 = bf16[64,8]{1,0:T(8,128)} copy(%b)
  ROOT %copy.6 = f32[64,8]{0,1:T(8,128)} copy(%copy-done)
}"""
    assert copies_of(compiled, {(64, 8)}) == 1


def placed(mesh, *axes):
    return NamedSharding(mesh, PartitionSpec(*axes))


def compiled(function, mesh, into, out, *shapes):
    shapes = [jax.ShapeDtypeStruct(shape, jnp.float32, sharding=at) for shape, at in zip(shapes, into, strict=True)]
    return jax.jit(function, out_shardings=out).lower(*shapes).compile()


@eight
def test_what_all_devices_do_is_counted_for_all():
    mesh = make_mesh(MeshConfig(2, 4))

    def product(axes):
        into = PartitionSpec("data"), PartitionSpec()
        return jax.shard_map(jnp.matmul, mesh=mesh, axis_names=axes, in_specs=into, out_specs=PartitionSpec("data"))

    assert flops(product({"data"}), (8, 5), (5, 7)) == 2 * 8 * 5 * 7
    # Of the axis "model" every device does the same.
    assert flops(product({"data", "model"}), (8, 5), (5, 7)) == 4 * 2 * 8 * 5 * 7


@eight
def test_collectives_by_hand():
    """A sum of [16, 4] over four devices, a table of [64, 4] collected, and both once more in a loop of three."""
    mesh = make_mesh(MeshConfig(2, 4))

    def total(a, b):
        return a @ b

    by_columns = placed(mesh, None, "model"), placed(mesh, "model")
    program = compiled(total, mesh, by_columns, placed(mesh), (16, 8), (8, 4))
    assert collectives_of(program) == [Collective("all-reduce", 1, 16 * 4 * 4, 16 * 4 * 4, True)]
    program = compiled(lambda a: a * 2, mesh, [placed(mesh, "model")], placed(mesh), (64, 4))
    assert collectives_of(program) == [Collective("all-gather", 1, 64 * 4 * 4, 64 * 4 * 4, True)]

    def loop(a, b):
        return jax.lax.scan(lambda c, row: (c + (a * row) @ b, None), jnp.zeros((16, 4)), jnp.arange(3.0))[0]

    program = compiled(loop, mesh, by_columns, placed(mesh), (16, 8), (8, 4))
    (found,) = collectives_of(program)
    assert found.kind == "all-reduce" and found.loops_known and found.largest == 16 * 4 * 4
    assert found.bytes == found.count * found.largest and found.count in (1, 3)  # summed after the loop, or in it


@eight
def test_a_loop_of_unknown_length_is_told():
    mesh = make_mesh(MeshConfig(1, 8))

    def halve(a):
        def shrink(c):
            return jax.lax.with_sharding_constraint(jnp.tanh(c) * c.sum(), placed(mesh, "model"))

        return jax.lax.while_loop(lambda c: c.sum() > 1, shrink, a)

    found = collectives_of(compiled(halve, mesh, [placed(mesh, "model")], placed(mesh, "model"), (64,)))
    assert found and not all(c.loops_known for c in found)


def test_one_device_sends_nothing_and_its_memory_is_what_it_holds():
    program = jax.jit(lambda a: a + 1, donate_argnums=0).lower(jax.ShapeDtypeStruct((100,), jnp.float32)).compile()
    assert collectives_of(program) == []
    memory = memory_of(program)
    assert (memory.arguments, memory.results, memory.aliased) == (400, 400, 400)
    assert memory.total == 400 + memory.temporaries + memory.code


SAMPLE = """HloModule jit_step

%sum (a: f32[], b: f32[]) -> f32[] {
  ROOT %add = f32[] add(%a, %b)
}

%gathering (p: f32[4,8]) -> f32[16,8] {
  %all-gather.1 = f32[16,8]{1,0:T(8,128)} all-gather(%p), channel_id=3, dimensions={0}
}

%ended (p: f32[4,8]) -> f32[16,8] {
  ROOT %all-gather.2 = f32[16,8]{1,0:T(8,128)} all-gather(%p), channel_id=3, dimensions={0}
}

%scattering (p: f32[5]) -> f32[10] {
  ROOT %reduce-scatter.1 = f32[10]{0} reduce-scatter(%p), channel_id=5, to_apply=%sum
}

%condition (c: (s32[], f32[2])) -> pred[] {
  %constant.7 = s32[]{:T(128)} constant(5), metadata={op_name="while"}
  ROOT %lt = pred[]{:T(512)} compare(%i, %constant.7), direction=LT
}

%body (c: (s32[], f32[2])) -> (s32[], f32[2]) {
  %all-reduce.1 = (f32[2]{0:T(128)}, bf16[6]{0:T(128)(2,1)}) all-reduce(%x, %y), channel_id=1, to_apply=%sum
  ROOT %tuple = (s32[], f32[2]) tuple(%i, %x)
}

ENTRY %main (a: f32[4,8]) -> f32[16,8] {
  %start = (f32[4,8]{1,0}, f32[16,8]{1,0:T(8,128)}, /*index=5*/u32[]{:S(2)}) fusion(%a), kind=kCustom, calls=%gathering
  %while.1 = (s32[]{:T(128)}, f32[2]{0:T(128)}) while(%t), condition=%condition, body=%body, metadata={op_name="while"}
  %permute = (f32[4]{0}, f32[4]{0}) collective-permute-start(%b), channel_id=9
  %permute.1 = (f32[8]{0}, f32[8]{0}, u32[]{:S(2)}, u32[]{:S(2)}) collective-permute-start(%b), channel_id=10
  %all-reduce.2 = f32[3]{0:T(128)} all-reduce(%x), channel_id=1, to_apply=%sum
  %all-reduce.3 = f32[3]{0:T(128)} all-reduce(%all-reduce.2), channel_id=1, to_apply=%sum
  %send = (f32[2,4]{1,0}, u32[], token[]) send(%d, %after), channel_id=2, x={_xla_megascale_transfer_type="ALL_REDUCE"}
  %recv = (f32[2,4]{1,0}, u32[], token[]) recv(%after), channel_id=1, x={_xla_megascale_transfer_type="ALL_REDUCE"}
  %later = ((f32[5]{0}), f32[10]{0}) async-start(%d), calls=%scattering
  %sooner = f32[10]{0} async-done(%later), calls=%scattering
  %recv.1 = (f32[9]{0}, u32[], token[]) recv(%after), channel_id=4, is_host_transfer=true
  ROOT %done = f32[16,8]{1,0:T(8,128)} fusion(%start), kind=kCustom, calls=%ended
}
"""


def test_the_text_of_a_tpu_program():
    """A gather that runs beside other work is written twice with one channel; the loop says its length as a number.

    Two sums that the program names have one channel as well. A permutation ends in two numbers of the compiler's own.
    What passes between slices goes through the hosts, which count channels of their own.
    """

    compiled = mock.create_autospec(jax.stages.Compiled, instance=True)
    compiled.as_text.return_value = SAMPLE
    assert collectives_of(compiled) == [
        Collective("all-gather", 1, 512, 512, True),
        Collective("all-reduce", 5 + 2, 5 * 20 + 2 * 12, 12, True),
        Collective("collective-permute", 2, 16 + 32, 32, True),
        Collective("reduce-scatter", 1, 40, 40, True),
        Collective("all-reduce between slices", 1, 32, 32, True),
    ]
