"""What lies behind a position of a window, to leave it out of the softmax there."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int


class Seen(NamedTuple):
    """What each of Q positions has behind it.

    Attributes:
      history: the windows, int32 [B, L].
      window, place: the window of a position and its place there, int32 [Q]. Behind it is what appears up to there.
    """

    history: jax.Array
    window: jax.Array
    place: jax.Array

    @staticmethod
    def of(history: Int[Array, "B L"], positions: int) -> "Seen":
        """For the last `positions` places of each window, in row-major order."""
        size, length = history.shape
        place = jnp.arange(length - positions, length)
        return Seen(history, jnp.repeat(jnp.arange(size), positions), jnp.tile(place, size))

    def first(self, rows: int) -> Int[Array, "B R"]:
        """Place in its window at which a row of the item table first appears; L where it does not."""
        return self.first_in_block(0, rows, 1, rows)[:, 0]

    def first_in_block(self, start: Array | int, size: int, parts: int, part_rows: int) -> Int[Array, "B p n"]:
        """The same for `size` rows from `start` on in each of `parts` parts of the table, of `part_rows` rows each."""
        part, place = self.history // part_rows, self.history % part_rows - start
        # A negative index would wrap around: everything outside the block goes past its end, where it is dropped.
        place = jnp.where(place < 0, size, place)
        windows, length = self.history.shape
        first = jnp.full((windows, parts, size), length)
        return first.at[jnp.arange(windows)[:, None], part, place].min(jnp.arange(length)[None], mode="drop")

    def allowed(
        self, first: Int[Array, "B R"], is_item: Bool[Array, " R"], targets: Int[Array, " Q"]
    ) -> Bool[Array, "Q R"]:
        """The items a position may be followed by: those not behind it, and its target in any case."""
        unseen = first[self.window] > self.place[:, None]
        return is_item[None] & (unseen | (jnp.arange(len(is_item))[None] == targets[:, None]))
