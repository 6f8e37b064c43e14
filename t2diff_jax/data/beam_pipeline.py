"""The passes of `out_of_core` on the machines of an Apache Beam runner; the same log, byte for byte.

Workers read the files of the log, count ids and sort buckets; where the command runs, the sorted buckets are
put one after the other. Elements of the pipelines are blocks of rows, not rows.
"""

import functools
import io
import pathlib
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

import apache_beam as beam
import numpy as np
from apache_beam.options.pipeline_options import PipelineOptions
from etils import epath

from t2diff_jax.config import DataConfig, PrepareConfig
from t2diff_jax.data.log import DataError, InteractionLog
from t2diff_jax.data.out_of_core import (
    ROW,
    Counted,
    bucket_starts,
    bucketed,
    count_files,
    merge,
    sort_rows,
    write_sorted,
)
from t2diff_jax.data.parts import Parts

_SHARES = 64  # the ids are counted in so many shares, so that no worker holds all of them
_Block = tuple[int, int, np.ndarray]  # number of the file, of the block in it, rows


def build_with_beam(
    parts: Parts,
    folder: pathlib.Path,
    data: DataConfig,
    sizes: PrepareConfig,
    say: Callable[[str], None],
    options: Sequence[str],
    shared: str,
) -> InteractionLog:
    """Writes the log of `parts` to `folder`, an empty one; opens it. Workers need this package and reach all files.

    Args:
      options: of the runner, as on Beam's command lines; none: Beam's own on this machine.
      shared: folder, also one of a bucket store, that workers and this process reach.

    Raises:
      DataError: nothing is left of the log. What a worker cannot read is an error of the runner, and names the line.
    """
    # A name that nobody has used: what another run left there must be neither counted nor deleted.
    scratch = epath.Path(shared) / f"rows_{uuid.uuid4().hex}"
    scratch.mkdir(parents=True)
    try:
        say(f"{parts.name}: counting the ids of {len(parts.files)} file(s) with Beam")
        users, items = _count(parts, sizes.block_rows, options, scratch)
        starts = bucket_starts(users.counts, sizes.bucket_rows)
        say(
            f"{len(users.ids):,} users, {len(items.ids):,} items, {users.counts.sum():,} behaviours; "
            f"sorting them in {len(starts)} bucket(s)"
        )
        _sort(parts, sizes.block_rows, options, scratch, {"users": users.ids, "items": items.ids, "starts": starts})
        say("writing the columns")
        buckets = [functools.partial(_read_rows, scratch / f"{number}.rows") for number in range(len(starts))]
        return write_sorted(folder, buckets, users, items, parts, data)
    finally:
        scratch.rmtree()


def _count(parts: Parts, rows: int, options: Sequence[str], scratch: epath.Path) -> tuple[Counted, Counted]:
    with beam.Pipeline(options=PipelineOptions(list(options))) as pipeline:
        _ = (
            pipeline
            | "files" >> beam.Create([str(file) for file in parts.files])
            | "apart" >> beam.Reshuffle()
            | "count" >> beam.FlatMap(_count_file, parts, rows)
            | "merge" >> beam.CombinePerKey(_merge)
            | "save" >> beam.MapTuple(functools.partial(_save_counted, scratch))
        )
    files = sorted(scratch.iterdir())
    kinds = [[_load_counted(path) for path in files if path.name.startswith(kind)] for kind in ("users", "items")]
    if not all(kinds):
        raise DataError(parts.if_empty)
    users, items = map(merge, kinds)
    return users, items


def _count_file(file: str, parts: Parts, rows: int) -> Iterator[tuple[tuple[str, int], Counted]]:
    counted = count_files(parts, [epath.Path(file)], rows)
    for kind, part in zip(("users", "items"), counted or (), strict=False):
        share = _share(part.ids)
        for number in np.unique(share).tolist():
            yield (kind, number), Counted(part.ids[share == number], part.counts[share == number])


def _share(ids: np.ndarray) -> np.ndarray:
    """The share of each id: of strings by the sum of their code points, which does not depend on their width."""
    numbers = ids if ids.dtype.kind == "i" else ids.view(np.uint32).reshape(len(ids), -1).sum(axis=1)
    return numbers % _SHARES


def _merge(parts: Iterable[Counted]) -> Counted:
    return merge([part for part in parts if len(part.ids)] or [Counted(np.zeros(0, np.int64), np.zeros(0, np.int64))])


def _save_counted(scratch: epath.Path, key: tuple[str, int], part: Counted) -> None:
    _save(scratch / f"{key[0]}-{key[1]:03}.npz", {"ids": part.ids, "counts": part.counts})


def _load_counted(path: epath.Path) -> Counted:
    return Counted(**_load(path))


def _save(path: epath.Path, arrays: Mapping[str, np.ndarray]) -> None:
    memory = io.BytesIO()
    np.savez(memory, **arrays)
    path.write_bytes(memory.getbuffer())


def _load(path: epath.Path) -> dict[str, np.ndarray]:
    with np.load(io.BytesIO(path.read_bytes()), allow_pickle=False) as arrays:
        return dict(arrays)


def _sort(parts: Parts, rows: int, options: Sequence[str], scratch: epath.Path, plan: Mapping[str, np.ndarray]) -> None:
    _save(scratch / "plan.npz", plan)
    with beam.Pipeline(options=PipelineOptions(list(options))) as pipeline:
        _ = (
            pipeline
            | "files" >> beam.Create([(number, str(file)) for number, file in enumerate(parts.files)])
            | "apart" >> beam.Reshuffle()
            | "code" >> beam.ParDo(_Code(parts, rows, str(scratch / "plan.npz")))
            | "gather" >> beam.GroupByKey()
            | "sort" >> beam.MapTuple(functools.partial(_sort_bucket, scratch))
        )


class _Code(beam.DoFn):
    """Files to rows of codes, by bucket. The ids are loaded once per worker, not sent with every file."""

    def __init__(self, parts: Parts, rows: int, plan: str):
        self._parts, self._rows, self._path = parts, rows, plan

    def setup(self) -> None:
        """Reads the ids and the buckets."""
        self._plan = _load(epath.Path(self._path))

    def process(self, numbered: tuple[int, str]) -> Iterator[tuple[int, _Block]]:
        """(number of the file, file) -> (bucket, block of it) each."""
        number, file = numbered
        plan = (self._plan["users"], self._plan["items"], self._plan["starts"])
        for block_number, block in enumerate(self._parts.read(epath.Path(file), self._rows)):
            for bucket, rows in bucketed(block, *plan).items():
                yield bucket, (number, block_number, rows)


def _sort_bucket(scratch: epath.Path, bucket: int, blocks: Iterable[_Block]) -> None:
    in_order = sorted(blocks, key=lambda block: block[:2])
    rows = sort_rows(np.concatenate([rows for _, _, rows in in_order]))
    (scratch / f"{bucket}.rows").write_bytes(rows.data.cast("B"))


def _read_rows(path: epath.Path) -> np.ndarray:
    return np.frombuffer(path.read_bytes(), ROW)
