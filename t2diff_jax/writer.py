"""What a run writes for people and plots: `metrics.jsonl`, TensorBoard scalars, the progress line, results as files."""

import io
import json
import math
import os
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

TABLE_WIDTH = 100  # terminal columns that `metrics_table` fits its columns into


class MetricsWriter:
    """Appends to `workdir/metrics.jsonl` and mirrors the scalars to TensorBoard, on process 0 only.

    One JSON object per line: {"step": int, "split": "train" | "validation" | "test", name: float, ...}. JSON knows no
    NaN or infinity: a value that is not finite is written as null and left out of TensorBoard.

    On construction every line with a step above `resume_step` is removed, and so is a line that a kill tore, so that
    the file of an interrupted run goes on as that of an uninterrupted one (but that means over `train.log_every` steps
    begin at the checkpoint). TensorBoard gets the matching purge mark.
    """

    def __init__(self, workdir: str | os.PathLike, *, resume_step: int):
        """Opens the files for appending.

        Args:
          workdir: folder of the run; made if it is absent.
          resume_step: step of the restored checkpoint; -1 for a fresh run, which clears the file.
        """
        self._file = None
        self._board = None
        if jax.process_index() != 0:
            return
        folder = pathlib.Path(workdir)
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / "metrics.jsonl"
        _truncate(path, resume_step)
        self._file = path.open("a", encoding="utf-8")
        self._board = _open_tensorboard(folder / "tensorboard", purge_step=resume_step + 1)

    def write(self, step: int, split: str, metrics: Mapping[str, Any]) -> None:
        """Appends one line and flushes it. `metrics` maps names to numbers (or scalar arrays).

        Raises:
          ValueError: a metric is named "step" or "split".
        """
        if "step" in metrics or "split" in metrics:
            raise ValueError('no metric may be named "step" or "split": the line has fields of these names')
        if self._file is None:
            return
        values = {name: float(value) for name, value in metrics.items()}
        line = {"step": int(step), "split": split, **_jsonable(values)}
        self._file.write(json.dumps(line, allow_nan=False) + "\n")
        self._file.flush()
        if self._board is not None:
            for name, value in values.items():
                if math.isfinite(value):
                    self._board.add_scalar(f"{split}/{name}", value, int(step))

    def close(self) -> None:
        """Closes the files; closing twice is fine."""
        if self._file is not None:
            self._file.close()
            self._file = None
        if self._board is not None:
            self._board.close()
            self._board = None

    def __enter__(self) -> "MetricsWriter":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def say(text: str) -> None:
    """Prints a line at once, on process 0 only."""
    if jax.process_index() == 0:
        print(text, flush=True)


def write_json(path: str | os.PathLike, obj: Any) -> None:
    """Writes `obj` as indented JSON: a reader, or a kill at any moment, finds the old file or the whole new one.

    Values that are not finite become null; array scalars become numbers. Call it on process 0 only.
    """
    text = json.dumps(_jsonable(obj), indent=2, allow_nan=False) + "\n"
    _replace(pathlib.Path(path), text.encode())


def write_arrays(path: str | os.PathLike, **arrays: np.ndarray) -> None:
    """Writes arrays by name as a compressed .npz file, whole or not at all as `write_json`; process 0 only."""
    packed = io.BytesIO()
    np.savez_compressed(packed, **arrays)
    _replace(pathlib.Path(path), packed.getvalue())


def progress_line(step: int, steps: int, metrics: Mapping[str, float], examples_per_s: float, eta_s: float) -> str:
    """One line on how a run stands: `step  1200/3000  loss 5.432  12,345 examples/s  ETA 3 min 20 s`.

    Args:
      step: steps done, of `steps`.
      metrics: shown in this order with four significant digits.
      examples_per_s: training examples per second, over all devices.
      eta_s: seconds to go; shown as `?` while it is not finite.
    """
    width = len(str(steps)) + 1
    parts = [f"step {step:>{width}}/{steps}"]
    parts += [f"{name} {float(value):.4g}" for name, value in metrics.items()]
    speed = f"{examples_per_s:,.0f}" if math.isfinite(examples_per_s) else "?"
    return "  ".join([*parts, f"{speed} examples/s", f"ETA {_duration(eta_s)}"])


def metrics_table(rows: Mapping[str, Mapping[str, tuple[float, float | None]]]) -> str:
    """A plain-text table: one line per metric, one column per system, families of metrics (`recall@...`) set apart.

    Args:
      rows: {system: {metric: (mean, standard deviation or None)}}. A metric that a system lacks shows as `-`. More
        systems than fit `TABLE_WIDTH` columns go into further tables below.
    """
    metrics = list(dict.fromkeys(metric for values in rows.values() for metric in values))
    name_width = max([len("metric"), *map(len, metrics)])
    columns = [_column(system, [values.get(metric) for metric in metrics]) for system, values in rows.items()]
    tables, used = [[]], name_width
    for column in columns:
        if tables[-1] and used + 2 + len(column[0]) > TABLE_WIDTH:
            tables.append([])
            used = name_width
        tables[-1].append(column)
        used += 2 + len(column[0])
    return "\n\n".join(_lay_out(metrics, name_width, table) for table in tables)


def _lay_out(metrics: list[str], name_width: int, columns: list[list[str]]) -> str:
    def line(name: str, cells: list[str]) -> str:
        return "  ".join([f"{name:<{name_width}}", *cells]).rstrip()

    head = line("metric", [column[0] for column in columns])
    lines, family = [head, "-" * max(len(head), name_width)], None
    for i, metric in enumerate(metrics):
        if family not in (None, metric.split("@")[0]):
            lines.append("")
        family = metric.split("@")[0]
        lines.append(line(metric, [column[i + 1] for column in columns]))
    return "\n".join(lines)


def _column(system: str, values: list[tuple[float, float | None] | None]) -> list[str]:
    """The cells of one system, its name first, padded to one width so that the decimal points line up."""
    means = ["-" if value is None else f"{value[0]:.4f}" for value in values]
    spreads = [f" ± {value[1]:.4f}" if value and value[1] else "" for value in values]  # 0: of a model without noise
    mean_width, spread_width = (max(map(len, texts), default=0) for texts in (means, spreads))
    cells = [f"{mean:>{mean_width}}{spread:<{spread_width}}" for mean, spread in zip(means, spreads, strict=True)]
    width = max(len(system), mean_width + spread_width)
    return [f"{text:>{width}}" for text in [system, *cells]]


def _duration(seconds: float) -> str:
    if not math.isfinite(seconds):
        return "?"
    minutes, second = divmod(max(0, round(seconds)), 60)
    hours, minute = divmod(minutes, 60)
    days, hour = divmod(hours, 24)
    if days:
        return f"{days} d {hour} h"
    if hours:
        return f"{hour} h {minute} min"
    return f"{minute} min {second} s" if minutes else f"{second} s"


def _truncate(path: pathlib.Path, last_step: int) -> None:
    if not path.exists():
        return
    old = path.read_text(encoding="utf-8", errors="replace")
    new = "".join(line for line in old.splitlines(keepends=True) if _belongs(line, last_step))
    if new != old:
        _replace(path, new.encode())


def _belongs(line: str, last_step: int) -> bool:
    """Whether a line is whole and lies at or before `last_step`."""
    try:
        return line.endswith("\n") and json.loads(line)["step"] <= last_step
    except (ValueError, KeyError, TypeError):
        return False


def _replace(path: pathlib.Path, content: bytes) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())  # else a power cut may leave the new name on an empty file
        os.replace(temporary, path)
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error  # that of a full disk names no file
    finally:
        temporary.unlink(missing_ok=True)


def _jsonable(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _jsonable(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_jsonable(item) for item in value]
    if hasattr(value, "tolist"):  # numpy and jax arrays and scalars
        return _jsonable(value.tolist())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def _open_tensorboard(folder: pathlib.Path, *, purge_step: int) -> Any:
    try:
        import tensorboardX
    except ImportError:
        print("TensorBoard output is off: tensorboardX is not installed (pip install tensorboardX)", flush=True)
        return None
    # The mark makes TensorBoard drop what an interrupted run wrote after its last checkpoint. Without a limit on what
    # waits for its thread a run does not wait forever for one that a full disk has ended.
    return tensorboardX.SummaryWriter(logdir=str(folder), purge_step=purge_step, max_queue=0)
