"""Checksums: they see every flipped bit and every swap, and do not depend on the sharding."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from genjax.parallel.mesh import MeshConfig, make_mesh
from train.integrity import checksum, checksums

DTYPES = ["float32", "bfloat16", "float16", "int32", "uint32", "uint8", "int8"]
SHAPE = (3, 4)


def random_bits(dtype, shape=SHAPE, seed=0):
    """An array whose every bit is random."""
    dtype = jnp.dtype(dtype)
    words = np.random.default_rng(seed).integers(0, 256, (*shape, dtype.itemsize), np.uint8)
    return words.view(dtype)[..., 0]


def flipped(array):
    """Every array that differs from `array` in one bit."""
    words = np.frombuffer(array.tobytes(), np.uint8)
    for byte in range(len(words)):
        for bit in range(8):
            changed = words.copy()
            changed[byte] ^= 1 << bit
            yield changed.view(array.dtype).reshape(array.shape)


def one_by_one(arrays):
    return np.asarray(jax.jit(jax.vmap(checksum))(jnp.asarray(np.stack(list(arrays)))))


@pytest.mark.fast
@pytest.mark.parametrize("dtype", DTYPES)
def test_every_flipped_bit_changes_it(dtype):
    array = random_bits(dtype)
    found = one_by_one([array, *flipped(array)])
    assert len(found) == 1 + 12 * 8 * array.dtype.itemsize
    assert np.all(found[1:] != found[0])


@pytest.mark.parametrize("dtype", ["float64", "int64", "uint64"])
def test_every_flipped_bit_of_64_changes_it(dtype):
    with jax.enable_x64(True):
        array = random_bits(dtype)
        found = one_by_one([array, *flipped(array)])
    assert len(found) == 1 + 12 * 64
    assert np.all(found[1:] != found[0])


def test_every_flipped_boolean_changes_it():
    array = np.random.default_rng(0).random(SHAPE) < 0.5
    changes = [array ^ (np.arange(12).reshape(SHAPE) == index) for index in range(12)]
    found = one_by_one([array, *changes])
    assert np.all(found[1:] != found[0])


@pytest.mark.parametrize("shape", [(), (1,), (0,), (2, 0)])
def test_scalars_and_empty_arrays_have_one(shape):
    array = random_bits("float32", shape)
    found = checksum(jnp.asarray(array))
    assert found.shape == () and found.dtype == jnp.uint32
    for other in flipped(array):
        assert checksum(jnp.asarray(other)) != found


@pytest.mark.fast
def test_key_data_is_watched():
    data = np.asarray(jax.random.key_data(jax.random.key(7)))
    found = one_by_one([data, *flipped(data)])
    assert np.all(found[1:] != found[0])


@pytest.mark.fast
@pytest.mark.parametrize("distance", [1, 2, 128, 256, 512, 1024])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_swap_of_round_numbers_changes_it(dtype, distance):
    """1 and 2 differ in high bits alone, where a sum of bits times positions would miss them."""
    array = np.ones(2048, dtype)
    array[0] = 2
    swapped = np.roll(array, distance)
    found = one_by_one([array, swapped])
    assert found[0] != found[1]


def test_swapped_rows_columns_and_axes_change_it():
    array = np.random.default_rng(0).integers(-2, 3, (16, 16)).astype(np.float32)
    changed = [array.T, array[::-1], array[:, ::-1], np.roll(array, 8, 0), np.roll(array, 8, 1)]
    for first in range(16):
        for second in range(first):
            rows, columns = array.copy(), array.copy()
            rows[[first, second]] = rows[[second, first]]
            columns[:, [first, second]] = columns[:, [second, first]]
            changed += [rows, columns]
    found = one_by_one([array, *changed])
    assert np.all(found[1:] != found[0])


def test_negative_zero_and_nan_payloads_count():
    array = np.zeros(4, np.float32)
    minus = np.array([0, -0.0, 0, 0], np.float32)
    nans = np.array([0x7FC00000, 0x7FC00001], np.uint32).view(np.float32)
    found = one_by_one([array, minus])
    assert found[0] != found[1]
    assert checksum(jnp.asarray(nans[:1])) != checksum(jnp.asarray(nans[1:]))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "uint8"])
def test_the_sharding_does_not_matter(dtype):
    mesh = make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))
    array = random_bits(dtype, (8, 16))
    specs = [
        P(),
        P("fsdp"),
        P(None, "tensor"),
        P(("data", "fsdp", "tensor")),
        P("tensor", ("fsdp", "data")),
    ]
    placed = {
        str(number): jax.device_put(array, NamedSharding(mesh, spec))
        for number, spec in enumerate(specs)
    }
    found = checksums(placed)
    assert set(found.values()) == {int(checksum(jnp.asarray(array)))}


def test_equal_arrays_have_equal_ones_whatever_their_name():
    array = jnp.arange(6.0)
    found = checksums({"a": array, "b": array.reshape(2, 3), "c": array + 0})
    assert found["a"] == found["c"] != found["b"]
