"""Class labels at the door of a network.

Letters: B batch, K classes.
"""

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from genjax.errors import UserError


def check_labels(labels: Int[Array, "B"] | None, num_classes: int) -> None:
    """Check that labels are there exactly where a network wants them.

    Args:
        labels: the class of each example, or None.
        num_classes: classes that the network knows; 0 for an unconditional one.

    Raises:
        UserError: labels lack, or would be ignored.
    """
    if num_classes and labels is None:
        raise UserError(f"num_classes = {num_classes}, but no labels were given; give one a sample")
    if not num_classes and labels is not None:
        raise UserError("labels were given to a network of num_classes = 0, which knows no classes")


def one_hot(
    labels: Int[Array, "B"] | None, num_classes: int, dtype: DTypeLike
) -> Float[Array, "B K"] | None:
    """Labels as vectors with a single one, or None for an unconditional network.

    Raises:
        UserError: labels lack, or would be ignored.
    """
    check_labels(labels, num_classes)
    return None if labels is None else jax.nn.one_hot(labels, num_classes, dtype=dtype)


def output_dtype(dtype: DTypeLike) -> DTypeLike:
    """The dtype of images and logits: float32, or what is wider."""
    return jnp.promote_types(dtype, jnp.float32)
