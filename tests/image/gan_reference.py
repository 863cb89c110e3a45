"""The pieces of image GANs in plain numpy, from their equations, that autograd differentiates.

Letters: B batch, H height, W width, C channels.
"""

import autograd.numpy as anp
import jax
import numpy as np
from autograd.tracer import Box


def randomized(variables, seed=0, scale=0.5):
    """The same tree with random float64 arrays; variances stay positive."""
    rng = np.random.default_rng(seed)

    def draw(path, leaf):
        values = rng.normal(size=leaf.shape)
        name = path[-1].key
        return np.exp(0.3 * values) if name in ("variance", "scale") else scale * values

    return jax.tree_util.tree_map_with_path(draw, variables)


def relative_error(actual, expected):
    actual, expected = np.asarray(actual, np.float64), np.asarray(expected, np.float64)
    assert actual.shape == expected.shape
    return np.abs(actual - expected).max() / np.abs(expected).max()


def greatest_error(actual, expected):
    """The greatest relative error of the arrays of two trees."""
    pairs = jax.tree.map(relative_error, actual, expected)
    return max(jax.tree.leaves(pairs))


def bordered(images, border, circular):
    """Images with a border of zeros, or of their opposite sides."""
    for axis in (1, 2):
        size = images.shape[axis]
        order = np.arange(-border, size + border)
        matrix = np.zeros((len(order), size))
        for row, index in enumerate(order):
            if circular or 0 <= index < size:
                matrix[row, index % size] = 1
        images = along(images, matrix, axis)
    return images


def along(images, matrix, axis):
    """A matrix applied along height (axis 1) or width (axis 2)."""
    equation = "ph,bhwc->bpwc" if axis == 1 else "qw,bhwc->bhqc"
    return anp.einsum(equation, matrix, images)


def both_axes(images, matrix):
    height, width = images.shape[1:3]
    return along(along(images, matrix(height), 1), matrix(width), 2)


def conv(images, kernel, circular=False):
    size = kernel.shape[0]
    height, width = images.shape[1:3]
    padded = bordered(images, size // 2, circular)
    return sum(
        anp.dot(padded[:, i : i + height, j : j + width], kernel[i, j])
        for i in range(size)
        for j in range(size)
    )


def grouped_conv(images, kernel, groups, circular=False):
    inputs, outputs = images.shape[-1] // groups, kernel.shape[-1] // groups
    pieces = [
        conv(
            images[..., n * inputs : (n + 1) * inputs],
            kernel[..., n * outputs : (n + 1) * outputs],
            circular,
        )
        for n in range(groups)
    ]
    return anp.concatenate(pieces, axis=-1)


def doubled(images):
    return both_axes(images, lambda size: np.kron(np.eye(size), [[1], [1]]))


def halved(images):
    return both_axes(images, lambda size: np.kron(np.eye(size // 2), [[0.5, 0.5]]))


def interpolated(images, circular):
    """Twice as large: between two pixels of the original lies their mean, above each itself."""

    def matrix(size):
        rows = np.zeros((2 * size, size))
        for i in range(size):
            rows[2 * i + 1, i] = 1
            rows[2 * i, i] = 0.5
            if i > 0 or circular:
                rows[2 * i, i - 1] += 0.5
        return rows

    return both_axes(images, matrix)


def averaged(images, circular):
    """Half as large: pixels 2i - 1, 2i and 2i + 1 with weights 1, 2 and 1."""

    def matrix(size):
        rows = np.zeros((size // 2, size))
        for i in range(size // 2):
            rows[i, 2 * i] += 0.5
            rows[i, 2 * i + 1] += 0.25
            if i > 0 or circular:
                rows[i, 2 * i - 1] += 0.25
        return rows

    return both_axes(images, matrix)


def relu(x):
    return anp.where(x > 0, x, 0)


def leaky_relu(x):
    return anp.where(x > 0, x, 0.2 * x)


def value(x):
    """An array as a constant, whatever is being differentiated."""
    while isinstance(x, Box):
        x = x._value
    return x


def spectrally_normalized(kernel, left):
    """A kernel over its spectral norm, as estimated by a step of power iteration."""
    shape = kernel.shape
    matrix = anp.reshape(kernel, (-1, shape[-1]))
    right = value(matrix) @ left
    right = right / np.sqrt((right**2).sum())
    better = right @ value(matrix)
    better = better / np.sqrt((better**2).sum())
    return kernel / anp.dot(anp.dot(right, matrix), better)


def batch_normalized(x, scale, bias, epsilon, averages=None):
    """Batch normalisation by the batch's statistics, or by running averages."""
    axes = tuple(range(x.ndim - 1))
    mean = x.mean(axes) if averages is None else averages["mean"]
    variance = ((x - mean) ** 2).mean(axes) if averages is None else averages["variance"]
    return (x - mean) / anp.sqrt(variance + epsilon) * scale + bias
