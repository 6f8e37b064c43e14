"""Datasets prepared by tensorflow-datasets, read at random access and without TensorFlow."""

import glob
from typing import Any

import numpy as np
from etils import epath

from t2diff_jax.config import DataConfig
from t2diff_jax.data.log import DataError, InteractionLog, ItemTable, UserTable, build_log
from t2diff_jax.data.sources import features, text

CHUNK = 10_000  # examples decoded at a time
NO_GENRE = ("(no genres listed)",)
RATING_FIELDS = ("user_id", "movie_id", "timestamp", "user_rating", "movie_title", "movie_genres")
USER_FIELDS = {"user_gender": "gender", "bucketized_user_age": "age", "user_occupation_label": "occupation"}


def load_tfds(config: DataConfig) -> InteractionLog:
    """Reads `config.tfds.name` below the folder `config.path`: `t2diff_log`, or ratings such as `movielens/1m-ratings`.

    Ratings are one example each and decoded one by one, which takes minutes for a million. Behaviours of a user with
    equal times come in the order in which the dataset was stored.

    Raises:
      DataError: no such prepared dataset, one that only TensorFlow can read, or fields missing.
      ImportError: tensorflow-datasets is not installed.
    """
    if not config.path:
        raise DataError("data.path is empty; set it to the data_dir of tensorflow-datasets")
    name = config.tfds.name
    if name != "t2diff_log" and not (name.startswith("movielens/") and name.endswith("-ratings")):
        raise DataError(f"data.tfds.name: {name!r} is not known; use t2diff_log or movielens/<release>-ratings")
    builder = _open(text.existing(config.path, "set data.path to the data_dir of tensorflow-datasets"), name)
    return _read_log(builder, config) if name == "t2diff_log" else _read_ratings(builder, config)


def _open(data_dir: epath.Path, name: str) -> Any:
    """The builder of the newest prepared version."""
    try:
        import tensorflow_datasets as tfds
    except ImportError as error:
        raise ImportError(
            "data.source tfds needs tensorflow-datasets and array_record; install them with pip"
        ) from error
    infos = sorted(epath.Path(glob.escape(str(data_dir / name))).glob("*/dataset_info.json"), key=_version)
    if not infos:
        raise DataError(
            f"{data_dir / name}: no prepared dataset in it; prepare {name} there with file_format='array_record'"
        )
    builder = tfds.builder_from_directory(infos[-1].parent)
    if "array_record" not in {file_format.value for file_format in builder.info.available_file_formats()}:
        raise DataError(
            f"{infos[-1].parent}: stored as {builder.info.file_format.value}, which has no random access "
            "without TensorFlow; prepare it again with download_and_prepare(file_format='array_record')"
        )
    return builder


def _version(info: epath.Path) -> tuple[int, ...]:
    return tuple(int(part) if part.isdecimal() else -1 for part in info.parent.name.split("."))


def _read_log(builder: Any, config: DataConfig) -> InteractionLog:
    folder = epath.Path(builder.data_dir)
    path = text.existing(folder / "catalogue.npz", "write the log again with tfds_builder.write_log")
    with np.load(path, allow_pickle=False) as file:
        known = dict(file)
    source = builder.as_data_source(split="users")
    if len(source) != len(known["user_ids"]):
        raise DataError(f"{path}: {len(known['user_ids'])} users beside {len(source)} examples; write the log again")
    examples = [e for start in range(0, len(source), CHUNK) for e in _chunk(source, start)]
    examples.sort(key=lambda e: int(e["user"]))
    lengths = [len(e["items"]) for e in examples]
    items = ItemTable(
        known["item_ids"][1:],
        known["titles"][1:] if "titles" in known else None,
        known["categories"][1:] if "categories" in known else None,
        tuple(known["category_names"].tolist()),
    )
    users = None
    if examples and "user_features" in examples[0]:
        values = np.stack([e["user_features"] for e in examples])
        sizes = tuple(known["user_feature_sizes"].tolist())
        users = UserTable(known["user_ids"], values, tuple(known["user_feature_names"].tolist()), sizes)
    return build_log(
        str(known["name"]),
        np.repeat(known["user_ids"], lengths),
        known["item_ids"][np.concatenate([e["items"] for e in examples])],
        np.concatenate([e["times"] for e in examples]),
        min_user_count=config.min_user_count,
        min_item_count=config.min_item_count,
        item_features=items,
        user_features=users,
    )


def _chunk(source: Any, start: int) -> list[dict[str, Any]]:
    return source.__getitems__(list(range(start, min(start + CHUNK, len(source)))))


def _read_ratings(builder: Any, config: DataConfig) -> InteractionLog:
    known = builder.info.features
    missing = [field for field in RATING_FIELDS if field not in known]
    if missing:
        raise DataError(f"{builder.data_dir}: no field {missing[0]!r}; prepare one of the movielens/*-ratings datasets")
    user_fields = [field for field in USER_FIELDS if field in known and config.user_features]
    columns = _columns(builder.as_data_source(split="train"), (*RATING_FIELDS, *user_fields))
    columns = {field: np.array(values) for field, values in columns.items() if field != "movie_genres"} | {
        "movie_genres": columns["movie_genres"]
    }
    keep = columns["user_rating"] >= config.movielens.min_rating
    users, items = (_ids(builder, field, columns[field]) for field in ("user_id", "movie_id"))
    movies, movie_rows = np.unique(items, return_index=True)
    people, user_rows = np.unique(users, return_index=True)
    names = known["movie_genres"].feature.names
    genres = ["|".join(names[g] for g in columns["movie_genres"][row]) for row in movie_rows]
    categories, names = features.encode_categories(text.to_str_array(genres), "|", names=None, ignore=NO_GENRE)
    titles = text.to_str_array([title.decode() for title in columns["movie_title"][movie_rows].tolist()])
    attributes = {USER_FIELDS[field]: columns[field][user_rows] for field in user_fields}
    return build_log(
        config.tfds.name,
        users[keep],
        items[keep],
        columns["timestamp"][keep],
        min_user_count=config.min_user_count,
        min_item_count=config.min_item_count,
        item_features=ItemTable(movies, titles, categories, names),
        user_features=UserTable(people, *features.encode_attributes(attributes)) if attributes else None,
    )


def _columns(source: Any, fields: tuple[str, ...]) -> dict[str, list]:
    columns = {field: [] for field in fields}
    for start in range(0, len(source), CHUNK):
        for example in _chunk(source, start):
            for field in fields:
                columns[field].append(example[field])
    return columns


def _ids(builder: Any, field: str, values: np.ndarray) -> np.ndarray:
    """Ids are stored as text; they are whole numbers."""
    try:
        return values.astype(np.int64)
    except ValueError as error:
        raise DataError(
            f"{builder.data_dir}, field {field}: {error}; the ids of MovieLens are whole numbers"
        ) from error
