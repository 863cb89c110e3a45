"""ADA's pipeline of augmentations, each applied to each image with a probability.

Karras et al. 2020, "Training Generative Adversarial Networks with Limited Data", appendix B. How
the probability adapts is in `ada_controller.py`.

Shapes: B batch, H height, W width, C channels; images are in about [-1, 1].
"""

from typing import Literal

import jax
from jaxtyping import Array, Float, Key

from genjax.image.ada_blit import random_blit
from genjax.image.ada_colour import random_colour
from genjax.image.ada_filter import random_cutout, random_filter, random_noise
from genjax.image.ada_geometry import random_geometry
from genjax.image.augmentation_pixels import Boundary, Probability

Category = Literal["blit", "geometry", "colour", "filter", "noise", "cutout"]
"""The paper's categories; it calls the first three "bgc"."""

CATEGORIES: tuple[Category, ...] = ("blit", "geometry", "colour", "filter", "noise", "cutout")
"""The categories, in the order in which they are applied."""


def ada(
    images: Float[Array, "B H W C"],
    key: Key[Array, ""],
    probability: Probability,
    *,
    categories: tuple[Category, ...] = ("blit", "geometry", "colour"),
    circular: bool = False,
    colour_share: float = 1.0,
) -> Float[Array, "B H W C"]:
    """Augment each image with its own draws; at probability 0 nothing changes, to the bit.

    It is linear in the images at given draws, so that gradient penalties go through it.

    Args:
        images: the images, of any size and of 1, 3 or 4 channels. The last of 4 is alpha, which
            "blit", "geometry" and "cutout" treat like the others and the rest leaves alone.
            Images that are not square are not turned by 90 or 270 degrees.
        key: random key.
        probability: of each transform for each image.
        categories: which to apply; their order is always that of `CATEGORIES`.
        circular: for textures that tile: what moves in comes from the opposite edge, instead of
            from a reflection. "blit" then keeps seams invisible; "geometry" need not.
        colour_share: the probability of colour transforms, as a share of the others'.

    Raises:
        UserError: colours, filters or noise are asked for with another number of channels.
    """
    boundary: Boundary = "wrap" if circular else "reflect"
    for number, category in enumerate(CATEGORIES):
        if category not in categories:
            continue
        # By number, so that a category's draws do not depend on which others there are.
        category_key = jax.random.fold_in(key, number)
        match category:
            case "blit":
                images = random_blit(images, category_key, probability, boundary)
            case "geometry":
                images = random_geometry(images, category_key, probability, boundary)
            case "colour":
                images = random_colour(images, category_key, colour_share * probability)
            case "filter":
                images = random_filter(images, category_key, probability, boundary)
            case "noise":
                images = random_noise(images, category_key, probability)
            case "cutout":
                images = random_cutout(images, category_key, probability)
    return images
