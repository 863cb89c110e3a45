import jax.numpy as jnp
import numpy as np

from genjax.nn.position import rotary_angles, rotate


def test_pairs_turn_by_position_times_frequency():
    rng = np.random.default_rng(0)
    inputs = rng.normal(size=(2, 7, 3, 8))
    positions = rng.integers(100, size=(2, 7))
    angles = rotary_angles(jnp.asarray(positions, jnp.int32), 8, theta=500.0)
    outputs = rotate(jnp.asarray(inputs, jnp.float32), angles)
    for i in range(4):
        pair = inputs[..., i] + 1j * inputs[..., i + 4]
        turned = pair * np.exp(1j * positions * 500.0 ** (-2 * i / 8))[:, :, None]
        np.testing.assert_allclose(outputs[..., i], turned.real, atol=2e-5)
        np.testing.assert_allclose(outputs[..., i + 4], turned.imag, atol=2e-5)


def test_products_depend_on_the_difference_of_positions_alone():
    rng = np.random.default_rng(0)
    query, key = jnp.asarray(rng.normal(size=(2, 1, 1, 1, 16)), jnp.float32)

    def product(query_position, key_position):
        turned = [
            rotate(x, rotary_angles(jnp.array([p]), 16))
            for x, p in ((query, query_position), (key, key_position))
        ]
        return float((turned[0] * turned[1]).sum())

    assert abs(product(9, 4) - product(25, 20)) < 1e-5
    assert abs(product(9, 4) - product(9, 5)) > 1e-3
