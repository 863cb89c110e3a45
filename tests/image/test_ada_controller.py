"""The probability's controller against its rule, in Python numbers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from genjax.image.ada_controller import init_controller, update_controller, update_probability

pytestmark = pytest.mark.fast

RULE = {"target": 0.6, "adjustment_images": 1000}


@pytest.mark.parametrize(
    ("probability", "sign_sum", "count", "expected"),
    [
        (0.5, 50.0, 64.0, 0.564),  # r_t = 0.78: overfits
        (0.5, 30.0, 64.0, 0.436),
        (0.02, -64.0, 64.0, 0.0),
        (0.97, 64.0, 64.0, 1.0),
        (0.5, 0.0, 0.0, 0.5),
    ],
)
def test_the_probability_moves_by_the_images_seen(probability, sign_sum, count, expected):
    actual = update_probability(*map(jnp.float32, (probability, sign_sum, count)), **RULE)
    np.testing.assert_allclose(actual, expected, atol=1e-6)


def test_at_the_target_nothing_changes():
    half = {"target": 0.5, "adjustment_images": 1000}
    assert update_probability(*map(jnp.float32, (0.25, 32, 64)), **half) == np.float32(0.25)


def test_it_is_adjusted_every_few_steps_with_all_logits_since():
    update = jax.jit(
        lambda state, logits, step: update_controller(state, logits, step, interval=3, **RULE)
    )
    rng = np.random.default_rng(0)
    state, probability, signs = init_controller(0.3), 0.3, []
    for step in range(12):
        logits = rng.normal(size=10) + 2.0 * (step < 6)
        signs.append(np.sign(logits))
        state = update(state, jnp.asarray(logits, jnp.bfloat16), jnp.int32(step))
        if step % 3 == 2:
            probability += np.sign(np.mean(signs) - 0.6) * 30 / 1000
            signs = []
            assert float(state["count"]) == float(state["sign_sum"]) == 0.0
        else:
            assert float(state["count"]) == 10 * len(signs)
            assert float(state["sign_sum"]) == np.sum(signs)
        np.testing.assert_allclose(state["probability"], probability, atol=1e-6)
    assert probability == pytest.approx(0.3)


def test_sums_are_global_over_devices():
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
    logits = np.random.default_rng(1).normal(size=16).astype(np.float32)
    update = jax.jit(lambda state, logits: update_controller(state, logits, 0, interval=2, **RULE))
    state = update(init_controller(), jax.device_put(logits, sharding))
    assert float(state["sign_sum"]) == np.sign(logits).sum()
    assert float(state["count"]) == 16


def test_it_settles_where_the_discriminator_is_as_sure_as_the_target_says():
    """A discriminator whose r_t falls from 1 by the probability holds r_t = 0.6 at p = 0.4."""
    state, rng = init_controller(), np.random.default_rng(2)
    update = jax.jit(
        lambda state, logits, step: update_controller(state, logits, step, interval=4, **RULE)
    )
    seen = []
    for step in range(400):
        sure = 1.0 - float(state["probability"])
        logits = np.where(rng.random(16) < (1 + sure) / 2, 1.0, -1.0)
        state = update(state, jnp.float32(logits), step)
        seen.append(float(state["probability"]))
    assert abs(np.mean(seen[200:]) - 0.4) < 0.1
