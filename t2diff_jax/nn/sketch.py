"""A sketch of what the user has had, in dimensions of its own, that the inner product reads item by item."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

# Signatures have to spread out before they help: with a unit gain they move a tenth as fast as they can.
_GAIN = 10.0


class HistorySketch(nn.Module):
    """Gives every item i a signature c_i beside e(i), and a user vector u the sketch -g sum_j w_j c_j of the history.

    w_j = sigmoid(a <u, v_j> - t(u)) for the scored vector v_j of behaviour j. The score of item i becomes

        <u, v_i> - g sum_j w_j <c_j, c_i>

    Signatures being nearly orthogonal, this takes g w_i |c_i|^2 from an item of the history and little from others; the
    D dimensions that also say which items are alike cannot single out a hundred of them. Not of the paper: a count
    sketch (Charikar et al. 2002) with learned signatures and weights. Where users come back, g may become negative.

    Attributes:
      rows: R, rows of the signature table.
      width: S, width of a signature.
      dropout: rate at which training drops a dimension of a row's sketches, the same one after every behaviour: learned
        signatures would come to hold pairs of items by heart.
    """

    rows: int
    width: int
    dropout: float

    def setup(self) -> None:
        self.signature_table = self.param("signature_table", nn.initializers.normal(0.02), (self.rows, self.width))
        self.scale = self.param("scale", nn.initializers.ones, ())
        self.strength = self.param("strength", nn.initializers.ones, ())
        self.threshold = nn.Dense(1, bias_init=nn.initializers.constant(2.0))
        self.drop = nn.Dropout(self.dropout, broadcast_dims=(1,))

    def signatures(self, ids: Int[Array, "..."] | None) -> Float[Array, "... S"]:
        """c_i for ids of any shape; of every row for None."""
        return _GAIN * (self.signature_table if ids is None else self.signature_table[ids])

    def __call__(
        self,
        users: Float[Array, "B P U"],
        scored: Float[Array, "B L U"],
        ids: Int[Array, "B L"],
        mask: Bool[Array, "B P L"],
        *,
        deterministic: bool,
    ) -> Float[Array, "B P S"]:
        """The sketch of each user vector over the behaviours that its mask allows; zero where it allows none."""
        scores = jnp.einsum("bpu,blu->bpl", users, scored)
        weights = jnp.where(mask, jax.nn.sigmoid(self.scale * scores - self.threshold(users)), 0)
        sketches = -self.strength * jnp.einsum("bpl,bls->bps", weights, self.signatures(ids))
        return self.drop(sketches, deterministic=deterministic)
