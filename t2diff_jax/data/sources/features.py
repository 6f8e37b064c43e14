"""Raw category lists and user attributes, as strings, to the padded ids of the feature tables."""

from collections.abc import Mapping, Sequence

import numpy as np

from t2diff_jax.data.log import DataError


def none(_ids: np.ndarray) -> None:
    """What a source that has no features knows of these ids."""
    return None


def encode_categories(
    values: np.ndarray, separator: str, *, names: Sequence[str] | None, ignore: Sequence[str]
) -> tuple[np.ndarray, tuple[str, ...]]:
    """Lists like "Action|Drama" to category ids.

    Args:
      values: [M] strings; "" for no category.
      separator: what stands between two categories.
      names: the known categories in id order, or None: those that occur, sorted.
      ignore: names that mean "no category".

    Returns:
      int32 [M, C] ids 1..G filled up with 0 (C >= 1), and the G names.

    Raises:
      DataError: a category is not among `names`.
    """
    unique, inverse = np.unique(values, return_inverse=True)
    lists = [[c.strip() for c in text.split(separator)] for text in unique.tolist()]
    lists = [list(dict.fromkeys(c for c in cs if c and c not in ignore)) for cs in lists]
    found = {c for cs in lists for c in cs}
    if names is None:
        names = sorted(found)
    unknown = found.difference(names)
    if unknown:
        raise DataError(f"category {min(unknown)!r} is none of {', '.join(names)}; check the separator {separator!r}")
    index = {name: i + 1 for i, name in enumerate(names)}
    padded = np.zeros((len(lists), max([1, *map(len, lists)])), np.int32)
    for row, cs in zip(padded, lists, strict=True):
        row[: len(cs)] = [index[c] for c in cs]
    return padded[inverse], tuple(names)


def encode_attributes(columns: Mapping[str, np.ndarray]) -> tuple[np.ndarray, tuple[str, ...], tuple[int, ...]]:
    """Categorical attributes [M] by name, strings or integers, to the value ids of a `UserTable`.

    Values are numbered from 1 in ascending order; "" is unknown, 0.

    Returns:
      int32 [M, F] ids, the F names, and per feature its number of values, the unknown one included.
    """
    encoded, sizes = [], []
    for column in columns.values():
        unique, inverse = np.unique(column, return_inverse=True)
        first = int(unique.dtype.kind != "U" or not len(unique) or unique[0] != "")
        encoded.append(inverse + first)
        sizes.append(len(unique) + first)
    return np.stack(encoded, axis=1).astype(np.int32), tuple(columns), tuple(sizes)
