"""Each loss and its gradient against the formula, in float64 numpy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from genjax.image.losses import LOSSES

pytestmark = pytest.mark.fast

RANDOM = np.random.default_rng(0)
REAL, FAKE = 3 * RANDOM.normal(size=40), 3 * RANDOM.normal(size=40)


def log(x):
    """-log sigmoid(x)."""
    return np.logaddexp(0, -x)


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


# For each: the losses of D and of G, then their derivatives times B: D's by the logits of real and
# of generated images, G's by the same.
ZERO = np.zeros(40)
FORMULAS = {
    "non_saturating": (
        log(REAL).mean() + log(-FAKE).mean(),
        log(FAKE).mean(),
        (-sigmoid(-REAL), sigmoid(FAKE)),
        (ZERO, -sigmoid(-FAKE)),
    ),
    "saturating": (
        log(REAL).mean() + log(-FAKE).mean(),
        np.log(1 - sigmoid(FAKE)).mean(),
        (-sigmoid(-REAL), sigmoid(FAKE)),
        (ZERO, -sigmoid(FAKE)),
    ),
    "hinge": (
        np.maximum(0, 1 - REAL).mean() + np.maximum(0, 1 + FAKE).mean(),
        -FAKE.mean(),
        (-1.0 * (REAL < 1), 1.0 * (FAKE > -1)),
        (ZERO, -np.ones(40)),
    ),
    "least_squares": (
        ((REAL - 1) ** 2).mean() / 2 + (FAKE**2).mean() / 2,
        ((FAKE - 1) ** 2).mean() / 2,
        (REAL - 1, FAKE),
        (ZERO, FAKE - 1),
    ),
    "wasserstein": (
        FAKE.mean() - REAL.mean(),
        -FAKE.mean(),
        (-np.ones(40), np.ones(40)),
        (ZERO, -np.ones(40)),
    ),
    "relativistic": (
        log(REAL - FAKE).mean(),
        log(FAKE - REAL).mean(),
        (-sigmoid(FAKE - REAL), sigmoid(FAKE - REAL)),
        (sigmoid(REAL - FAKE), -sigmoid(REAL - FAKE)),
    ),
}


def test_every_loss_has_a_formula_here():
    assert LOSSES.keys() == FORMULAS.keys()


@pytest.mark.parametrize("name", FORMULAS)
def test_values_and_gradients(name):
    loss, formula = LOSSES[name], FORMULAS[name]
    for side, value, slopes in zip(loss[:2], formula[:2], formula[2:], strict=True):
        found, gradients = jax.value_and_grad(side, (0, 1))(jnp.asarray(REAL), jnp.asarray(FAKE))
        np.testing.assert_allclose(found, value, rtol=1e-6)
        np.testing.assert_allclose(gradients, np.stack(slopes) / 40, rtol=2e-5, atol=1e-8)


def test_only_the_relativistic_generator_looks_at_real_images():
    assert [name for name, loss in LOSSES.items() if loss.pairs] == ["relativistic"]


def test_the_relativistic_loss_sees_differences_of_pairs_only():
    loss = LOSSES["relativistic"]
    shift = jnp.linspace(-5, 5, 40)
    real, fake = jnp.asarray(REAL), jnp.asarray(FAKE)
    for side in loss[:2]:
        np.testing.assert_allclose(side(real + shift, fake + shift), side(real, fake), rtol=1e-5)
    # In the mean over unpaired logits the order would not matter.
    assert abs(loss.discriminator(real, fake[::-1]) - loss.discriminator(real, fake)) > 1e-2
    np.testing.assert_allclose(loss.discriminator(real, fake), loss.generator(fake, real))


def test_games_of_zero_sum():
    """What D gains by its generated images, G loses."""
    real, fake = jnp.asarray(REAL), jnp.asarray(FAKE)
    for name in ("saturating", "wasserstein"):
        by_fake = jax.grad(LOSSES[name].discriminator, 1)(real, fake)
        np.testing.assert_allclose(jax.grad(LOSSES[name].generator, 1)(real, fake), -by_fake)


@pytest.mark.parametrize("name", FORMULAS)
def test_large_logits_stay_finite(name):
    loss, large = LOSSES[name], jnp.asarray([-1e4, 1e4])
    for side in loss[:2]:
        value, gradients = jax.value_and_grad(side, (0, 1))(large, large[::-1])
        assert np.isfinite(value) and np.isfinite(gradients).all()
