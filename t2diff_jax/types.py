"""The letters, and the interface that every retrieval model stands behind.

B: batch. L: behaviours in the window. k: session slots. D: embedding width. N: items in the catalogue (ids 1..N, id
0 is padding). R: rows of an item table (R >= N + 1). M: user vectors per user. T: diffusion steps. K: cut-off of a
metric.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable

import jax

Array = jax.Array
Params = Any  # nested dict of arrays
Variables = Mapping[str, Any]  # {"params": Params, "stats": running statistics}

# Keys of a batch. Windows are right-aligned: column L-1 is the most recent behaviour, padding (id 0) is on the left.
#   history         int32 [B, L]  the behaviours before the target
#   session_length  int32 [B]     how many of the last behaviours belong to the current session (0..k)
#   target          int32 [B]     the next positive item; never read by `encode_user`
#   weight          float32 [B]   1 for an example, 0 for a row that only fills the batch
#   user            int32 [B]     user row in the log; names the evaluation noise
#   position        int32 [B]     position of the target in the user's behaviours; names the evaluation noise
#   age             int32 [B, L]  seconds from a behaviour to the request; present where times are real
#   user_features   int32 [B, F]  categorical user features; present where the log has them
#   negatives       int32 [m]     drawn items, shared by all; present in training with the sampled softmax
#   log_counts      float32 [m]   beside them: the logarithm of how often each is expected among them
#   before          int32 [B, S]  the behaviours before the window, 0-padded on the left; present in training, where the
#                                 softmax leaves them out too
#   seen            int32 [B, S]  earlier items of the user, 0-padded; present in evaluation, where they are excluded
#   user_row        int32 [B]     row of DAT's table of users; present inside that model
#   retrieved       float32 [B, C]  the retriever's scores of C items, less its best; present for a pre-ranker
Batch = Mapping[str, Array | jax.ShapeDtypeStruct]  # their shapes will do where nothing is computed


LAG_BUCKETS = 32  # log2 buckets of an int32 number of seconds


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Catalogue:
    """What is known of the items apart from what is learned. Row i describes item id i; row 0 is padding.

    Attributes:
      counts: float32 [R], how often an item occurs in the training behaviours; 0 for padding rows.
      categories: int32 [R, C] category ids (0: none), or None.
      content: float32 [R, F] pre-computed content vectors, or None.
      n_items: N. Rows above N only fill the table up to a shardable size and are never scored.

    The types are open: JAX also puts shapes, shardings and placeholders where the arrays are.
    """

    counts: Any
    categories: Any
    content: Any
    n_items: int = dataclasses.field(metadata={"static": True})

    @property
    def n_rows(self) -> int:
        """R, the rows of every item table."""
        return self.counts.shape[0]


@dataclasses.dataclass(frozen=True)
class Sizes:
    """The static sizes of the data that shape a model's parameters.

    Attributes:
      rows: R, rows of the item tables.
      window: L.
      categories: rows of the category table with its padding row; 0 where there are no categories.
      content: F, width of the content vectors; 0 where there are none.
      user_features: ids per user feature with id 0 for "unknown".
      lags: whether batches carry time lags.
      users: users of the log.
    """

    rows: int
    window: int
    categories: int
    content: int
    user_features: tuple[int, ...]
    lags: bool
    users: int


@runtime_checkable
class Encoder(Protocol):
    """What retrieval needs of a model: pure functions of (variables, catalogue, batch, key).

    `key` drives the diffusion noise. Given a key, the result of `encode_user` for one user depends on nothing else in
    the batch.
    """

    def encode_user(self, variables: Variables, catalogue: Catalogue, batch: Batch, key: Array) -> tuple[Array, Array]:
        """User vectors float32 [B, M, D'] and their mask bool [B, M]."""

    def encode_items(self, variables: Variables, catalogue: Catalogue) -> Array:
        """Item vectors float32 [R, D'] of the whole catalogue."""


@runtime_checkable
class Retriever(Encoder, Protocol):
    """A model that can be trained. Implementations are frozen dataclasses.

    Attributes:
      sizes: what shapes its parameters.
    """

    sizes: Sizes

    def init(self, key: Array, catalogue: Catalogue, batch: Batch) -> Variables:
        """Draws {"params", "stats"} for the shapes of one batch."""

    def loss(
        self, variables: Variables, catalogue: Catalogue, batch: Batch, key: Array
    ) -> tuple[Array, tuple[dict[str, Array], Any]]:
        """Training loss (scalar) and (metrics by name, updated stats); `key` drives dropout and noise."""


@runtime_checkable
class PreRanker(Protocol):
    """A model that scores given items of a request, too dear for a whole catalogue: it ranks what a retriever found."""

    def init(self, key: Array, catalogue: Catalogue, batch: Batch, items: Array) -> Variables:
        """Draws {"params"} for the shapes of one batch, which has "retrieved", and its items int32 [B, C]."""

    def score(self, variables: Variables, catalogue: Catalogue, batch: Batch, items: Array) -> Array:
        """Scores [B, C] of the items int32 [B, C]."""

    def loss(self, variables: Variables, catalogue: Catalogue, batch: Batch, items: Array) -> Array:
        """Training loss (scalar) where the first item of each row was taken; ids of 0 are no candidates."""


@runtime_checkable
class Generative(Protocol):
    """A model that generates the next item's representation, so that it can be compared with the item that came."""

    def generate_items(self, variables: Variables, catalogue: Catalogue, batch: Batch, key: Array) -> Array | None:
        """xhat float32 [B, M, D] of every request; None where the configuration generates nothing."""

    def denoise_items(
        self, variables: Variables, catalogue: Catalogue, batch: Batch, key: Array, r: Array
    ) -> Array | None:
        """xhat [B, D] by one call on the true next item noised to step r; None where nothing is diffused."""

    def item_embeddings(self, variables: Variables, catalogue: Catalogue) -> Array:
        """e(i) float32 [R, D] of every row, the space of xhat."""
