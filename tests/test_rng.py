"""Named streams: the same name gives the same key, other names, steps and users give others."""

import zlib

import jax
import jax.numpy as jnp
import numpy as np

from t2diff_jax import rng


def data(key):
    return np.asarray(jax.random.key_data(key)).tolist()


def test_stream_by_hand():
    # The CRC-32 check value of the literature.
    assert zlib.crc32(b"123456789") == 0xCBF43926
    assert data(rng.stream(3, "123456789")) == data(jax.random.fold_in(jax.random.key(3), 0xCBF43926))


def test_streams_differ_by_seed_name_and_step():
    keys = [rng.stream(0, "train"), rng.stream(1, "train"), rng.stream(0, "init")]
    keys += [rng.at_step(keys[0], step) for step in (0, 1, 2)]
    assert len({tuple(data(k)) for k in keys}) == len(keys)


def test_a_traced_step_gives_the_same_key():
    key = rng.stream(0, "train")
    assert data(jax.jit(rng.at_step)(key, jnp.int32(5))) == data(rng.at_step(key, 5))


def test_per_user_keys_follow_user_and_position_only():
    key = rng.stream(0, "eval")
    users, positions = jnp.array([3, 4, 3, 0]), jnp.array([1, 1, 2, 3])
    keys = data(rng.per_user(key, users, positions))
    assert keys[0] == data(jax.random.fold_in(jax.random.fold_in(key, 3), 1))
    assert len({tuple(k) for k in keys}) == 4
    order = np.array([2, 0, 3, 1])
    assert data(rng.per_user(key, users[order], positions[order])) == [keys[i] for i in order]
    assert data(rng.per_user(key, users[1:2], positions[1:2])) == [keys[1]]
    # Swapping the two numbers is another request.
    assert data(rng.per_user(key, jnp.array([1]), jnp.array([3])))[0] != keys[0]
