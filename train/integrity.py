"""Checksums of arrays, computed on the devices that hold them.

A checkpoint whose bytes changed on disk restores without an error. So each save carries a
checksum per array, and each restore compares.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, UInt32

_WORDS = {1: jnp.uint8, 2: jnp.uint16, 4: jnp.uint32}


def _mix(word: UInt32[Array, "..."]) -> UInt32[Array, "..."]:
    """A one-to-one map of 32-bit words that spreads each bit (the end of MurmurHash3)."""
    word = (word ^ (word >> 16)) * jnp.uint32(0x85EBCA6B)
    word = (word ^ (word >> 13)) * jnp.uint32(0xC2B2AE35)
    return word ^ (word >> 16)


def checksum(array: Array) -> UInt32[Array, ""]:
    """A 32-bit checksum of an array's bits.

    The sum over all elements, modulo 2**32, of the element's bits mixed with its position. The
    mixing is one-to-one, so any change within a single word is detected; other changes, such as
    swapped rows, with probability 1 - 2**-32. The sum does not depend on how the array is sharded.
    """
    if array.dtype == jnp.bool_:
        array = array.astype(jnp.uint8)
    if array.dtype.itemsize == 8:
        array = jax.lax.bitcast_convert_type(array, jnp.uint32)
    bits = jax.lax.bitcast_convert_type(array, _WORDS[array.dtype.itemsize]).astype(jnp.uint32)
    position = jnp.uint32(0)
    for dimension in range(bits.ndim):
        index = jax.lax.broadcasted_iota(jnp.uint32, bits.shape, dimension)
        # An odd multiplier keeps positions apart; mixing before each dimension keeps (0, 1) and
        # (1, 0) apart.
        position = _mix(position + index * jnp.uint32(0x9E3779B1) + 1)
    return jnp.sum(_mix(bits ^ position), dtype=jnp.uint32)


@jax.jit
def _checksums(arrays: dict[str, Any]) -> dict[str, UInt32[Array, ""]]:
    return {name: checksum(array) for name, array in arrays.items()}


def checksums(arrays: dict[str, Any]) -> dict[str, int]:
    """The checksum of each array by name, as integers on the host."""
    return {name: int(value) for name, value in jax.device_get(_checksums(arrays)).items()}
