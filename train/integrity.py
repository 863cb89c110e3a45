"""Checksums of arrays, computed on the devices that hold them.

A checkpoint whose bytes changed on disk restores without an error. So each save carries a
checksum per array, and each restore compares.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, UInt32

_WORDS = {1: jnp.uint8, 2: jnp.uint16, 4: jnp.uint32}


def checksum(array: Array) -> UInt32[Array, ""]:
    """A 32-bit checksum of an array's bits.

    The sum over all elements of the element's bits times an odd number that depends on its
    position, modulo 2**32. An odd factor cannot map a change to zero, so any change within a
    single element is detected; the sum does not depend on how the array is sharded.
    """
    if array.dtype == jnp.bool_:
        array = array.astype(jnp.uint8)
    if array.dtype.itemsize == 8:
        array = jax.lax.bitcast_convert_type(array, jnp.uint32)
    bits = jax.lax.bitcast_convert_type(array, _WORDS[array.dtype.itemsize]).astype(jnp.uint32)
    total = bits if bits.ndim == 0 else jnp.uint32(0)
    if bits.ndim:
        factor = jnp.uint32(1)
        for dimension in range(bits.ndim):
            index = jax.lax.broadcasted_iota(jnp.uint32, bits.shape, dimension)
            # Products of odd numbers are odd; distinct multipliers keep swapped rows apart.
            factor = factor * (2 * index * jnp.uint32(0x9E3779B1 + 2 * dimension) + 1)
        total = jnp.sum(bits * factor, dtype=jnp.uint32)
    return total


@jax.jit
def _checksums(arrays: dict[str, Any]) -> dict[str, UInt32[Array, ""]]:
    return {name: checksum(array) for name, array in arrays.items()}


def checksums(arrays: dict[str, Any]) -> dict[str, int]:
    """The checksum of each array by name, as integers on the host."""
    return {name: int(value) for name, value in jax.device_get(_checksums(arrays)).items()}
