"""Choice of augmentation by config, and mirroring."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from genjax.config import Config, check
from genjax.errors import UserError
from genjax.image.ada import ada
from genjax.image.augmentation import (
    ADAConfig,
    AugmentationConfig,
    DiffAugmentConfig,
    NoAugmentation,
    make_augmentation,
    mirror,
)
from genjax.image.diffaugment import diffaugment

pytestmark = pytest.mark.fast

KEY = jax.random.key(0)


class Settings(Config):
    """A task's config, as far as it matters here."""

    augmentation: AugmentationConfig = NoAugmentation()
    """The augmentation."""


def test_config_chooses_by_kind():
    tree = {"augmentation": {"kind": "ada", "categories": ["blit"], "target": 0.5}}
    config = check(tree, Settings).augmentation
    assert config == ADAConfig(categories=("blit",), target=0.5)
    tree = {"augmentation": {"kind": "diffaugment", "policies": ["cutout"]}}
    assert check(tree, Settings).augmentation == DiffAugmentConfig(policies=("cutout",))
    assert check({}, Settings).augmentation == NoAugmentation()


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({"kind": "ada", "categories": ["colour", "colour"]}, "'colour' stands twice"),
        ({"kind": "ada", "categories": []}, "empty"),
        ({"kind": "ada", "categories": ["color"]}, "augmentation.categories"),
        ({"kind": "diffaugment", "policies": []}, "empty"),
        ({"kind": "ada", "probability": 0.2, "interval": 8}, "augmentation.interval: 8"),
        ({"kind": "ada", "probability": 0.2, "target": 0.5}, "held at 0.2"),
        ({"kind": "ada", "categories": ["blit"], "colour_share": 0.5}, "augmentation.colour_share"),
        ({"kind": "ada", "probability": 1.5}, "augmentation.probability"),
    ],
)
def test_mistakes_name_the_field(table, message):
    with pytest.raises(UserError, match=message):
        check({"augmentation": table}, Settings)


@pytest.mark.parametrize("circular", [False, True])
def test_the_function_does_what_the_config_says(circular):
    images = jnp.asarray(np.random.default_rng(0).uniform(-1, 1, (4, 8, 8, 3)), jnp.float32)
    assert make_augmentation(NoAugmentation(), circular)(images, KEY, 0.9) is images
    config = DiffAugmentConfig(policies=("translation", "color"))

    @jax.jit
    def plain(images):
        return diffaugment(images, KEY, policies=config.policies, circular=circular)

    # Bits may differ by compilation.
    actual = jax.jit(make_augmentation(config, circular))(images, KEY, 0.0)
    np.testing.assert_allclose(actual, plain(images), atol=1e-5)
    config = ADAConfig(categories=("colour", "blit"), colour_share=0.5)

    @jax.jit
    def one_by_one(images):
        blit = ada(images, KEY, 1.0, categories=("blit",), circular=circular)
        return ada(blit, KEY, 0.5, categories=("colour",), circular=circular)

    actual = jax.jit(make_augmentation(config, circular))(images, KEY, 1.0)
    np.testing.assert_allclose(actual, one_by_one(images), atol=1e-5)


def test_half_of_the_images_are_mirrored():
    images = np.random.default_rng(0).integers(0, 256, (1000, 3, 5, 3), np.uint8)
    actual = np.asarray(jax.jit(mirror)(images, KEY))
    assert actual.dtype == np.uint8
    same = np.all(actual == images, axis=(1, 2, 3))
    flipped = np.all(actual == images[:, :, ::-1], axis=(1, 2, 3))
    assert np.all(same ^ flipped)
    assert abs(np.mean(flipped) - 0.5) < 0.07
