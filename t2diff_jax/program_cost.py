"""What a compiled program takes on each device: memory, collectives, copies of tables, floating-point operations."""

import collections
import dataclasses
import math
import re
from collections.abc import Container, Iterator
from typing import Any

import jax
from jax.extend import core

COLLECTIVES = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute", "collective-broadcast")

_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{$", re.MULTILINE)
_OPERATION = re.compile(r"^\s+(?:ROOT )?%?[\w.\-]+ = (\(.*?\)|\S+) ([a-z][\w\-]*)\((.*)$")
_CALLED = re.compile(
    r"(?:calls|body|condition|true_computation|false_computation)=%?([\w.\-]+)|branch_computations=\{([^}]*)\}"
)
_ARRAY = re.compile(r"([a-z]+\d*)(?:e\w+)?\[([\d,]*)\]")
_BITS = {"pred": 8}


@dataclasses.dataclass(frozen=True)
class Collective:
    """Arrays of one kind that a program sends between devices in one run of it.

    Attributes:
      kind: "all-reduce" and so on; what passes between TPU slices is named so, beside what each slice does of it.
      count: how often; a collective inside a loop counts each time round.
      bytes: of their results on one device, all together.
      largest: of the greatest single array; the compiler sends several together.
      loops_known: False where one is in a loop whose length the program does not say: there it counts once.
    """

    kind: str
    count: int
    bytes: int
    largest: int
    loops_known: bool


@dataclasses.dataclass(frozen=True)
class Memory:
    """Bytes on one device while a program runs. Arguments and results with the padding of the device's layout.

    Attributes:
      arguments, results: of which `aliased` bytes are the same memory (donated).
      temporaries: the greatest that is in use at once beside them.
    """

    arguments: int
    results: int
    aliased: int
    temporaries: int
    code: int

    @property
    def total(self) -> int:
        """All together."""
        return self.arguments + self.results - self.aliased + self.temporaries + self.code


def memory_of(compiled: jax.stages.Compiled) -> Memory:
    """Bytes on one device, as the compiler has laid them out."""
    told = compiled.memory_analysis()
    return Memory(
        told.argument_size_in_bytes,
        told.output_size_in_bytes,
        told.alias_size_in_bytes,
        told.temp_size_in_bytes,
        told.generated_code_size_in_bytes,
    )


def collectives_of(compiled: jax.stages.Compiled) -> list[Collective]:
    """What the program sends between devices, by kind, the greatest first."""
    found: dict[str, list[tuple[list[int], int, bool]]] = collections.defaultdict(list)
    for kind, sizes, times in _sent(_computations(compiled.as_text())):
        found[kind].append((sizes, times or 1, times is not None))
    totals = [
        Collective(
            kind,
            sum(times for _, times, _ in parts),
            sum(sum(sizes) * times for sizes, times, _ in parts),
            max(max(sizes, default=0) for sizes, _, _ in parts),
            all(known for *_, known in parts),
        )
        for kind, parts in found.items()
    ]
    return sorted(totals, key=lambda c: -c.bytes)


def copies_of(compiled: jax.stages.Compiled, shapes: Container[tuple[int, ...]]) -> int:
    """How often a float32 array of one of these shapes is copied whole, as from one layout of the device to another.

    Outside loops and fusions; what a TPU takes into its fast memory, which it may do with small ones, does not count.
    """
    entry, computations = _computations(compiled.as_text())
    copied = [o for o in computations[entry] if o.name in ("copy", "copy-start") and "S(1)" not in o.form]
    first = [_ARRAY.search(operation.form).groups() for operation in copied]
    return sum(kind == "f32" and tuple(int(n) for n in shape.split(",") if n) in shapes for kind, shape in first)


def product_flops(jaxpr: Any) -> int:
    """Floating-point operations of all matrix products of a traced program, on all devices together.

    A scan's body counts as often as it runs; the body of an open loop once, of branches the longest.
    """
    return sum(_flops(equation) for equation in jaxpr.eqns)


def _flops(equation: Any) -> int:
    inner = [product_flops(body) for body in _bodies(equation)]
    match equation.primitive.name:
        case "dot_general":
            (contracted, _), _ = equation.params["dimension_numbers"]
            left, (out,) = equation.invars[0].aval.shape, equation.outvars
            return 2 * math.prod(out.aval.shape) * math.prod(left[axis] for axis in contracted)
        case "conv_general_dilated":
            kernel, form = equation.invars[1].aval.shape, equation.params["dimension_numbers"].rhs_spec
            return 2 * math.prod(equation.outvars[0].aval.shape) * math.prod(kernel) // kernel[form[0]]
        case "scan":
            return equation.params["length"] * sum(inner)
        case "cond":
            return max(inner)
        case "shard_map":  # its body is what one device of these axes does
            shape = equation.params["mesh"].shape
            (axes,) = (value for name, value in equation.params.items() if name.endswith("manual_axes"))
            return math.prod(shape[axis] for axis in axes) * sum(inner)
    return sum(inner)


def _bodies(equation: Any) -> Iterator[Any]:
    for value in equation.params.values():
        for part in value if isinstance(value, tuple | list) else (value,):
            if isinstance(part, core.ClosedJaxpr):
                yield part.jaxpr
            elif isinstance(part, core.Jaxpr):
                yield part


@dataclasses.dataclass(frozen=True)
class _Operation:
    name: str
    form: str
    rest: str


def _computations(text: str) -> tuple[str, dict[str, list[_Operation]]]:
    """The name of the entry and the operations of every computation of a program's text."""
    heads, entry, found = list(_COMPUTATION.finditer(text)), "", {}
    for head, end in zip(heads, [h.start() for h in heads[1:]] + [len(text)], strict=True):
        entry = head[2] if head[1] else entry
        lines = map(_OPERATION.match, text[head.end() : end].splitlines())
        found[head[2]] = [_Operation(line[2], line[1], line[3]) for line in lines if line]
    return entry, found


def _sent(program: tuple[str, dict[str, list[_Operation]]]) -> Iterator[tuple[str, list[int], int | None]]:
    """(kind, bytes of its arrays, how often or None) of every collective.

    One that runs beside other work is written twice, in the fusion (or asynchronous call) that starts it and in the
    one that ends it: of two equal ones there the second is none. Elsewhere equal ones are several: what a program asks
    for by name, as `psum`, all has one channel.
    """
    entry, computations = program
    started: set[tuple[str, ...]] = set()

    def walk(name: str, times: int | None, fused: bool) -> Iterator[tuple[str, list[int], int | None]]:
        for operation in computations.get(name, ()):
            if kind := _kind(operation):
                channel = re.search(r"channel_id=\d+", operation.rest)
                same = kind, channel[0] if channel else "", operation.form
                if fused and same in started:
                    started.remove(same)
                else:
                    started.update([same] if fused else ())
                    yield kind, _bytes(operation), times
            inside, apart = times, operation.name == "fusion" or operation.name.startswith("async-")
            if operation.name == "while":
                rounds = _rounds(operation, computations)
                inside = None if times is None or rounds is None else times * rounds
            for single, several in _CALLED.findall(operation.rest):
                for called in [single] if single else re.findall(r"[\w.\-]+", several):
                    yield from walk(called, inside, fused or apart)

    return walk(entry, 1, False)


def _kind(operation: _Operation) -> str:
    """Of a collective; else nothing. Between slices it is a transfer by the hosts, whose receipt tells its result."""
    if operation.name == "recv" and (between := re.search(r'_xla_megascale_transfer_type="(\w+)"', operation.rest)):
        return f"{between[1].lower().replace('_', '-')} between slices"
    kind = operation.name.removesuffix("-start")
    return kind if kind in COLLECTIVES else ""


def _rounds(loop: _Operation, computations: dict[str, list[_Operation]]) -> int | None:
    """How often a loop goes round: as the compiler notes, or the one number that its condition compares with."""
    if noted := re.search(r"known_trip_count\D*(\d+)", loop.rest):
        return int(noted[1])
    condition = computations.get(re.search(r"condition=%?([\w.\-]+)", loop.rest)[1], ())
    numbers = [re.match(r"(-?\d+)\)", o.rest) for o in condition if o.name == "constant" and o.form.startswith("s32[]")]
    compares = [o for o in condition if o.name == "compare" and "direction=LT" in o.rest]
    return int(numbers[0][1]) if len(numbers) == 1 and numbers[0] and len(compares) == 1 else None


def _bytes(operation: _Operation) -> list[int]:
    """Of each array of the result. The result of the start of an asynchronous one has its operands first.

    On TPUs two numbers of the compiler's own follow what a permutation moves.
    """
    arrays = _ARRAY.findall(operation.form)
    if operation.name == "collective-permute-start" and len(arrays) > 2 and arrays[-2:] == [("u32", "")] * 2:
        arrays = arrays[:-2]
    if operation.name == "recv":
        arrays = arrays[:1]  # beside it a number and a token
    if operation.name.endswith("-start") and operation.name != "all-reduce-start":
        arrays = arrays[len(arrays) // 2 :]
    return [_bits(kind) * math.prod(int(n) for n in shape.split(",") if n) // 8 for kind, shape in arrays]


def _bits(kind: str) -> int:
    return _BITS[kind] if kind in _BITS else int(re.search(r"\d+", kind)[0])
