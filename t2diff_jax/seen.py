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
        size, length = self.history.shape
        first = jnp.full((size, rows), length)
        return first.at[jnp.arange(size)[:, None], self.history].min(jnp.arange(length))

    def allowed(
        self, first: Int[Array, "B R"], is_item: Bool[Array, " R"], targets: Int[Array, " Q"]
    ) -> Bool[Array, "Q R"]:
        """The items a position may be followed by: those not behind it, and its target in any case."""
        unseen = first[self.window] > self.place[:, None]
        return is_item[None] & (unseen | (jnp.arange(len(is_item))[None] == targets[:, None]))
