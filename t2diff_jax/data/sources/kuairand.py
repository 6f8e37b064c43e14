"""KuaiRand (27K, 1K, Pure): short-video logs as unpacked from their archives."""

import dataclasses
import functools
import glob
from collections.abc import Iterator

import numpy as np
from etils import epath

from t2diff_jax.config import DataConfig, KuaiRandConfig
from t2diff_jax.data.log import DataError, InteractionLog, ItemTable, UserTable
from t2diff_jax.data.parts import Behaviours, Parts, load_parts
from t2diff_jax.data.sources import features, text


def load_kuairand(config: DataConfig) -> InteractionLog:
    """Reads the logs `config.kuairand.logs` in the folder `config.path` or its folder `data`.

    A video's category is its first tag. User features are the activity degree and the anonymised one-hot features.

    Raises:
      DataError: a file is missing, of another release than the rest, or holds a line that cannot be read; or no row is
        left after the filters `clicks_only` and `tab`.
    """
    return load_parts(kuairand_parts(config), config)


def kuairand_parts(config: DataConfig) -> Parts:
    """The files of the logs `config.kuairand.logs`.

    Raises:
      DataError: a file is missing or of another release than the rest.
    """
    if not config.path:
        raise DataError("data.path is empty; set it to the folder of an unpacked KuaiRand archive")
    folder = text.existing(config.path, "set data.path to the folder of an unpacked KuaiRand archive")
    folder = folder / "data" if (folder / "data").is_dir() else folder
    paths = [path for which in config.kuairand.logs for path in _log_files(folder, which)]
    releases = sorted({_release(path) for path in paths})
    if len(releases) != 1:
        raise DataError(
            f"{folder}: logs of the releases {', '.join(releases)} side by side; keep one release per folder"
        )
    return Parts(
        f"kuairand-{releases[0]}",
        tuple(paths),
        functools.partial(_behaviours, config.kuairand),
        functools.partial(_videos, folder, releases[0]) if config.categories else features.none,
        functools.partial(_users, folder, releases[0]) if config.user_features else features.none,
        f"{folder}: empty log after the row filters on the fields is_click and tab; "
        "change data.kuairand.clicks_only or data.kuairand.tab",
    )


def _log_files(folder: epath.Path, which: str) -> list[epath.Path]:
    paths = sorted(epath.Path(glob.escape(str(folder))).glob(f"log_{which}_*.csv"))
    if not paths:
        raise DataError(f"{folder}: no file log_{which}_*.csv; unpack it there or correct data.kuairand.logs")
    return paths


def _release(path: epath.Path) -> str:
    """27k of log_standard_4_08_to_4_21_27k_part1.csv."""
    return path.stem.split("_part")[0].rsplit("_", 1)[1]


def _behaviours(keys: KuaiRandConfig, path: epath.Path, rows: int | None) -> Iterator[Behaviours]:
    """The rows of one file that pass the filters, their times in unix seconds."""
    pl = text.import_polars()
    # Only what is surely filtered out is dropped while reading: unreadable flags must come through to be reported.
    keep = pl.lit(True)
    if keys.clicks_only:
        keep = keep & pl.col("is_click").ne_missing("0")
    if keys.tab >= 0:
        tab = pl.col("tab").cast(pl.Int64, strict=False)
        keep = keep & (tab.is_null() | (tab == keys.tab))
    columns = ("user_id", "video_id", "time_ms", "is_click", "tab")
    form = dict(separator=",", columns=columns, header=True, quoted=False, keep=keep)
    for table in text.read_blocks(path, rows=rows, **form):
        _check_flags(table)
        users, videos = text.integers(table, "user_id"), text.integers(table, "video_id")
        yield Behaviours(users, videos, text.integers(table, "time_ms", "give unix milliseconds") // 1000)


def _check_flags(table: text.TextTable) -> None:
    click = text.integers(table, "is_click")
    wrong = np.flatnonzero((click != 0) & (click != 1))
    if len(wrong):
        line = table.lines[int(wrong[0])]
        raise DataError(
            f"{table.path}, line {line}, field is_click: {click[wrong[0]]} where 0 or 1 is needed; correct the line"
        )
    text.integers(table, "tab")


def _videos(folder: epath.Path, release: str, videos: np.ndarray) -> ItemTable:
    """First tags of the videos in the log. The largest file has 32 million rows, most of which the log never shows."""
    pl = text.import_polars()
    path = text.existing(
        folder / f"video_features_basic_{release}.csv", "unpack it there or set data.categories to False"
    )
    wanted = pl.Series(np.unique(videos))
    number = pl.col("video_id").cast(pl.Int64, strict=False)
    keep = number.is_null() | number.is_in(wanted.implode())
    table = text.read_text(path, separator=",", columns=("video_id", "tag"), header=True, quoted=True, keep=keep)
    first = dataclasses.replace(table, frame=table.frame.with_columns(pl.col("tag").str.split(",").list.first()))
    categories, names = features.encode_categories(text.strings(first, "tag"), ",", names=None, ignore=())
    return ItemTable(text.integers(table, "video_id"), None, categories, names)


def _users(folder: epath.Path, release: str, _ids: np.ndarray) -> UserTable:
    path = text.existing(folder / f"user_features_{release}.csv", "unpack it there or set data.user_features to False")
    names = text.first_fields(path, ",", quoted=True)
    wanted = ["user_active_degree", *(name for name in names if name.startswith("onehot_feat"))]
    table = text.read_text(path, separator=",", columns=["user_id", *wanted], header=True, quoted=True)
    encoded = features.encode_attributes({name: text.strings(table, name) for name in wanted})
    return UserTable(text.integers(table, "user_id"), *encoded)
