"""What a generator of clips is asked for, beside its latents.

Letters: B batch, H height, W width, C channels.
"""

from typing import NamedTuple

from jaxtyping import Array, Float, Int


class Conditions(NamedTuple):
    """Conditions of a batch of clips.

    Attributes:
        labels: the class of each clip, or None.
        first: the first frame of each clip in about [-1, 1], or None.
    """

    labels: Int[Array, "B"] | None = None
    first: Float[Array, "B H W C"] | None = None
