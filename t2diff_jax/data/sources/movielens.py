"""MovieLens: 100K (u.data), 1M (ratings.dat) and the later releases (ratings.csv), as unpacked from their archives."""

import numpy as np
from etils import epath

from t2diff_jax.config import DataConfig
from t2diff_jax.data.log import DataError, InteractionLog, ItemTable, UserTable, build_log
from t2diff_jax.data.sources import features, text

GENRES_100K = (
    "unknown", "Action", "Adventure", "Animation", "Children's", "Comedy", "Crime", "Documentary", "Drama", "Fantasy",
    "Film-Noir", "Horror", "Musical", "Mystery", "Romance", "Sci-Fi", "Thriller", "War", "Western",
)  # fmt: skip
NO_GENRE = ("unknown", "(no genres listed)")
AGE_GROUPS = (1, 18, 25, 35, 45, 50, 56)  # lower ends of the groups that the 1M release publishes


def load_movielens(config: DataConfig) -> InteractionLog:
    """Reads the release found in the folder `config.path`. Ratings below `config.movielens.min_rating` are left out.

    Categories are the genres; user features are gender, age group and occupation where the release has them.

    Raises:
      DataError: no release found, a file of it missing, or a line that cannot be read.
    """
    if not config.path:
        raise DataError("data.path is empty; set it to the folder of an unpacked MovieLens archive")
    folder = text.existing(config.path, "set data.path to the folder of an unpacked MovieLens archive")
    if (folder / "ratings.dat").exists():
        ratings = text.read_text(
            folder / "ratings.dat",
            separator="::",
            columns=("UserID", "MovieID", "Rating", "Timestamp"),
            header=False,
            quoted=False,
        )
        items, users = _movies_dat, _users_dat
    elif (folder / "u.data").exists():
        ratings = _ratings_100k(folder / "u.data")
        items, users = _u_item, _u_user
    elif (folder / "ratings.csv").exists():
        columns = ("userId", "movieId", "rating", "timestamp")
        ratings = text.read_text(folder / "ratings.csv", separator=",", columns=columns, header=True, quoted=True)
        items, users = _movies_csv, None
    else:
        raise DataError(f"{folder}: none of ratings.dat, u.data, ratings.csv in it; unpack a MovieLens archive there")
    user, item, rating, time = ratings.frame.columns
    keep = text.floats(ratings, rating) >= config.movielens.min_rating
    if len(keep) and not keep.any():
        raise DataError(
            f"{ratings.path}, field {rating}: no rating reaches {config.movielens.min_rating}; "
            "lower data.movielens.min_rating"
        )
    return build_log(
        folder.resolve().name,
        text.integers(ratings, user)[keep],
        text.integers(ratings, item)[keep],
        text.integers(ratings, time, "give unix seconds")[keep],
        min_user_count=config.min_user_count,
        min_item_count=config.min_item_count,
        item_features=items(folder),
        user_features=users(folder) if users is not None and config.user_features else None,
    )


def _ratings_100k(path: epath.Path) -> text.TextTable:
    columns = ("user id", "item id", "rating", "timestamp")
    return text.read_text(path, separator="\t", columns=columns, header=False, quoted=False, blanks=True)


def _movies_dat(folder: epath.Path) -> ItemTable:
    path = folder / "movies.dat"
    lines = _side_lines(path, "::", ("MovieID", "Title", "Genres"))
    return _item_table(path, [r[0] for r in lines], [r[1] for r in lines], [r[2] for r in lines], None)


def _u_item(folder: epath.Path) -> ItemTable:
    path = folder / "u.item"
    fields = ("movie id", "movie title", "release date", "video release date", "IMDb URL", *GENRES_100K)
    lines = _side_lines(path, "|", fields)
    genres = ["|".join(g for g, flag in zip(GENRES_100K, r[5:], strict=True) if flag == "1") for r in lines]
    return _item_table(path, [r[0] for r in lines], [r[1] for r in lines], genres, GENRES_100K[1:])


def _movies_csv(folder: epath.Path) -> ItemTable:
    path = text.existing(folder / "movies.csv", "copy it from the archive that ratings.csv came from")
    movies = text.read_text(path, separator=",", columns=("movieId", "title", "genres"), header=True, quoted=True)
    categories, names = features.encode_categories(text.strings(movies, "genres"), "|", names=None, ignore=NO_GENRE)
    return ItemTable(text.integers(movies, "movieId"), text.strings(movies, "title"), categories, names)


def _users_dat(folder: epath.Path) -> UserTable:
    path = folder / "users.dat"
    lines = _side_lines(path, "::", ("UserID", "Gender", "Age", "Occupation", "Zip-code"))
    ages = _side_integers(path, "Age", [r[2] for r in lines])
    return _user_table(path, [r[0] for r in lines], [r[1] for r in lines], ages, [r[3] for r in lines])


def _u_user(folder: epath.Path) -> UserTable:
    path = folder / "u.user"
    lines = _side_lines(path, "|", ("user id", "age", "gender", "occupation", "zip code"))
    ages = _side_integers(path, "age", [r[1] for r in lines])
    return _user_table(path, [r[0] for r in lines], [r[2] for r in lines], ages, [r[3] for r in lines])


def _item_table(path: epath.Path, ids: list[str], titles: list[str], genres: list[str], names) -> ItemTable:
    categories, names = features.encode_categories(text.to_str_array(genres), "|", names=names, ignore=NO_GENRE)
    return ItemTable(_side_integers(path, "movie id", ids), text.to_str_array(titles), categories, names)


def _user_table(path: epath.Path, ids: list[str], gender: list[str], ages: np.ndarray, jobs: list[str]) -> UserTable:
    groups = np.array(AGE_GROUPS)[np.maximum(np.searchsorted(AGE_GROUPS, ages, side="right") - 1, 0)]
    encoded = features.encode_attributes(
        {"gender": text.to_str_array(gender), "age": groups, "occupation": text.to_str_array(jobs)}
    )
    return UserTable(_side_integers(path, "user id", ids), *encoded)


def _side_lines(path: epath.Path, separator: str, fields: tuple[str, ...]) -> list[list[str]]:
    """The lines of movies or users, split. Titles hold single colons, so this is not a job for the columnar reader."""
    text.existing(path, "copy it from the archive that the ratings came from")
    raw = path.read_bytes()
    try:
        content = raw.decode()
    except UnicodeDecodeError:
        content = raw.decode("latin-1")  # 100K and 1M; the later releases are UTF-8
    if "\0" in content:
        number = content.count("\n", 0, content.index("\0")) + 1
        raise DataError(f"{path}, line {number}: NUL character; delete it, or copy the file from the archive again")
    rows = [line.split(separator) for line in content.replace("\r\n", "\n").rstrip("\n").split("\n")]
    for number, row in enumerate(rows, start=1):
        if len(row) != len(fields):
            raise DataError(
                f"{path}, line {number}: expected the {len(fields)} fields {separator.join(fields)[:80]}, "
                f"found {len(row)}; the separator must be {separator!r}; correct the line"
            )
    return rows


def _side_integers(path: epath.Path, field: str, values: list[str]) -> np.ndarray:
    for number, value in enumerate(values, start=1):
        if not value.isdecimal() or len(value) > 18:  # int64 holds all of 18 digits
            raise DataError(
                f"{path}, line {number}, field {field}: {value!r} where a whole number is needed; correct the line"
            )
    return np.array(values, np.int64)
