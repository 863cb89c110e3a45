"""Rotary position embedding.

Letters: B batch, T time, H heads, D features of a head.
"""

import jax.numpy as jnp
from jaxtyping import Array, Float, Int


def rotary_angles(
    positions: Int[Array, "*B T"], head_dim: int, theta: float = 10_000.0
) -> Float[Array, "*B T half"]:
    """Angles `position * theta**(-2i / head_dim)` for i in [0, head_dim / 2).

    Args:
        positions: place of each token in its sequence, from 0.
        head_dim: features of a head, an even number.
        theta: base of the geometric series of wavelengths; longer contexts want larger ones.

    Returns:
        Angles in radians, float32 [*B, T, head_dim / 2].

    Paper: Su et al. 2021, "RoFormer: enhanced transformer with rotary position embedding".
    """
    assert head_dim % 2 == 0, head_dim
    frequencies = theta ** (-jnp.arange(0, head_dim, 2, dtype=jnp.float32) / head_dim)
    return positions[..., None].astype(jnp.float32) * frequencies


def rotate(
    inputs: Float[Array, "B T H D"], angles: Float[Array, "*#B T half"]
) -> Float[Array, "B T H D"]:
    """Turn each pair of features (i, i + D / 2) by its angle.

    Pairs join the two halves of a head, not neighbours: the two conventions differ by a fixed
    permutation of the features. The product of a query and a key turned this way depends on
    their positions only through the difference.

    Args:
        inputs: queries or keys, [B, T, H, D].
        angles: from `rotary_angles`, [B, T, D / 2] or [T, D / 2].

    Returns:
        The turned features, with the dtype of `inputs`; the rotation is done in float32.
    """
    cos, sin = jnp.cos(angles)[..., None, :], jnp.sin(angles)[..., None, :]
    first, second = jnp.split(inputs.astype(jnp.float32), 2, axis=-1)
    turned = jnp.concatenate((first * cos - second * sin, second * cos + first * sin), axis=-1)
    return turned.astype(inputs.dtype)
