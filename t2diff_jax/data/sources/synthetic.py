"""A made log with something to learn: interests that drift, bursts of related behaviours, and popular items.

Each user carries a mixture over categories that takes a random step before every session. A session stays near one
category and follows one branch of an item-to-item graph; what leaves the graph is drawn by popularity. So the last
items tell the next one, the session tells which branch is followed, and the history tells where the next session goes.
"""

import dataclasses

import numpy as np

from t2diff_jax.config import DataConfig, SyntheticConfig
from t2diff_jax.data.log import DataError, InteractionLog, ItemTable, UserTable, build_log

GENRES = (
    "Action", "Adventure", "Animation", "Comedy", "Crime", "Documentary", "Drama", "Family", "Fantasy", "History",
    "Horror", "Music", "Mystery", "Romance", "Science", "Sport", "Thriller", "Travel", "War", "Western",
)  # fmt: skip
BRANCHES = 3  # followers of an item
FOLLOW = 0.6  # chance that the next item of a session follows the last one
ON_BRANCH = 0.7  # chance that it does so along the session's branch
STAY = 0.95  # chance that a session keeps its category from one behaviour to the next
SESSION_END = 0.12  # chance that a session ends after a behaviour
DRIFT = 0.6  # standard deviation of the random step of the interests between sessions
SHORTEST = 5  # behaviours of a user
ZIPF = 0.8  # popularity of the r-th item of a category is r to the power of minus this
START = 1_600_000_000  # unix seconds
HOUR, DAY = 3_600, 86_400  # seconds
COHORTS, REGIONS = 4, 6


@dataclasses.dataclass(frozen=True)
class _World:
    """What is fixed for all users; items are 0-based here and lie in order of their main category.

    Attributes:
      main: [N] main category 0..G-1, ascending.
      bounds: [G + 1] where each category begins on the scale of `mass`.
      mass: [N] running sum of the items' popularity.
      followers: [N, BRANCHES] items that may follow, of the same main category.
    """

    main: np.ndarray
    bounds: np.ndarray
    mass: np.ndarray
    followers: np.ndarray


def load_synthetic(config: DataConfig) -> InteractionLog:
    """The log of `config.synthetic`, with the minimum counts of `config` applied."""
    return make_log(config.synthetic, min_user_count=config.min_user_count, min_item_count=config.min_item_count)


def make_log(config: SyntheticConfig, *, min_user_count: int = 1, min_item_count: int = 1) -> InteractionLog:
    """Draws a log of about `users * mean_length` behaviours; equal configurations make equal logs.

    Items have 1 to 3 named categories and a title; users have a cohort, which shapes their first interests, and a
    region, which means nothing. Items that nobody met are not in the log.

    Raises:
      DataError: fewer items than categories, or a size below 1.
    """
    if min(config.n_users, config.categories) < 1 or config.n_items < config.categories:
        raise DataError(
            "data.synthetic: users and categories must be at least 1 and items at least categories; raise them"
        )
    rng = np.random.default_rng(config.seed)
    world = _make_world(rng, config)
    public = rng.permutation(config.n_items) + 1  # original ids say nothing of categories
    item_table = _item_table(rng, world, public, config.categories)
    cohort, region = rng.integers(COHORTS, size=config.n_users), rng.integers(REGIONS, size=config.n_users)
    lengths = _lengths(rng, config)
    items, times = _walk(rng, world, cohort, int(lengths.max()), config.categories)
    user, step = np.nonzero(np.arange(lengths.max()) < lengths[:, None])
    return build_log(
        "synthetic",
        user + 1,
        public[items[step, user]],
        times[step, user],
        min_user_count=min_user_count,
        min_item_count=min_item_count,
        item_features=item_table,
        user_features=UserTable(
            np.arange(config.n_users) + 1,
            np.stack([cohort + 1, region + 1], axis=1).astype(np.int32),
            ("cohort", "region"),
            (COHORTS + 1, REGIONS + 1),
        ),
    )


def _make_world(rng: np.random.Generator, config: SyntheticConfig) -> _World:
    n, g = config.n_items, config.categories
    main = np.sort(np.concatenate([np.arange(g), rng.integers(g, size=n - g)]))  # no category is empty
    starts = np.searchsorted(main, np.arange(g + 1))
    mass = np.cumsum((np.arange(n) - starts[main] + 1.0) ** -ZIPF)
    followers = np.empty((n, BRANCHES), np.int64)
    for branch in range(BRANCHES):  # a random ring through each category
        ring = np.lexsort((rng.random(n), main))
        after = np.arange(1, n + 1)
        after[starts[1:] - 1] = starts[:-1]
        followers[ring, branch] = ring[after]
    return _World(main, np.concatenate([[0.0], mass[starts[1:] - 1]]), mass, followers)


def _lengths(rng: np.random.Generator, config: SyntheticConfig) -> np.ndarray:
    """Behaviours per user [U], between SHORTEST and five times the mean."""
    extra = rng.gamma(2.0, max(config.mean_length - SHORTEST, 0) / 2, size=config.n_users)
    return SHORTEST + np.minimum(extra.round(), 5 * config.mean_length).astype(np.int64)


def _walk(
    rng: np.random.Generator, world: _World, cohort: np.ndarray, steps: int, n_categories: int
) -> tuple[np.ndarray, np.ndarray]:
    """Items and unix seconds [steps, U] of all users, one step at a time."""
    n_users = len(cohort)
    interest = rng.normal(size=(COHORTS, n_categories))[cohort] + rng.normal(size=(n_users, n_categories))
    category, branch, last = np.zeros((3, n_users), np.int64)
    clock = START + rng.integers(60 * DAY, size=n_users).astype(np.float64)
    starts = np.ones(n_users, bool)  # whose session starts now
    items, times = np.empty((2, steps, n_users), np.int64)
    for step in range(steps):
        interest[starts] += DRIFT * rng.normal(size=(starts.sum(), n_categories))
        turns = starts | (rng.random(n_users) > STAY)
        category[turns] = (interest[turns] + rng.gumbel(size=(turns.sum(), n_categories))).argmax(axis=1)
        branch[starts] = rng.integers(BRANCHES, size=starts.sum())
        follows = ~turns & (rng.random(n_users) < FOLLOW)
        taken = np.where(rng.random(n_users) < ON_BRANCH, branch, rng.integers(BRANCHES, size=n_users))
        last = np.where(follows, world.followers[last, taken], _popular(rng, world, category))
        pause = rng.exponential(size=n_users)
        clock += np.where(starts, HOUR + 1.5 * DAY * pause, 10 + 120 * pause)
        items[step], times[step] = last, clock
        starts = rng.random(n_users) < SESSION_END
    return items, times


def _popular(rng: np.random.Generator, world: _World, category: np.ndarray) -> np.ndarray:
    """An item of each category [U], by popularity."""
    low, high = world.bounds[category], world.bounds[category + 1]
    drawn = np.searchsorted(world.mass, low + rng.random(len(category)) * (high - low), side="right")
    return np.minimum(drawn, len(world.mass) - 1)


def _item_table(rng: np.random.Generator, world: _World, public: np.ndarray, n_categories: int) -> ItemTable:
    n = len(public)
    order = rng.random((n, n_categories))
    order[np.arange(n), world.main] = -1.0  # the main category comes first
    width = min(3, n_categories)
    categories = np.argsort(order, axis=1)[:, :width] + 1
    used = 1 + (rng.random(n) < 0.5).astype(np.int64) + (rng.random(n) < 0.25)
    categories[np.arange(width) >= used[:, None]] = 0
    names = tuple(GENRES[g] if g < len(GENRES) else f"Genre {g + 1}" for g in range(n_categories))
    titles = np.array([f"{names[g]} item {i}" for g, i in zip(world.main, public, strict=True)])
    return ItemTable(public, titles, categories.astype(np.int32), names)
