"""Named random streams: seed -> name -> step. No key is ever stored in a state or a checkpoint."""

import zlib

import jax


def stream(seed: int, name: str) -> jax.Array:
    """Key of the stream `name`: the same seed and name give the same key on every machine."""
    return jax.random.fold_in(jax.random.key(seed), zlib.crc32(name.encode()))


def at_step(key: jax.Array, step: jax.Array | int) -> jax.Array:
    """Key of one step of a stream; `step` may be traced."""
    return jax.random.fold_in(key, step)


def per_user(key: jax.Array, users: jax.Array, positions: jax.Array) -> jax.Array:
    """One key per request, [B]: depends on (user, position) alone, so results do not depend on batch order."""
    return jax.vmap(lambda u, p: jax.random.fold_in(jax.random.fold_in(key, u), p))(users, positions)
