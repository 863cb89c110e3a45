"""Inception v3 as the Frechet Inception Distance uses it.

The network of the TensorFlow graph of 2015-12-05, with which FID and Inception Score were defined.
It differs from the network in today's libraries: 1008 classes; averages over 3x3 windows that leave
out the border; in the last block the maximum in place of the average; and its own resizing
(`resize_tensorflow1`). FID changes with each.

There are no weights here: `python -m tools.convert_inception` makes them from the usual PyTorch
file. Batch normalisation (epsilon 1e-3) is folded into the convolutions when they are converted.

Letters: B batch, H height, W width, C channels, K classes.

Paper: Szegedy et al. 2016, "Rethinking the Inception architecture for computer vision".
"""

import functools
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from jaxtyping import Array, Float

from genjax.errors import UserError
from genjax.nn.convolution import conv2d

FEATURES = 2048
"""Length of the pooled features."""

FID_CLASSES = 1008
"""Classes of the weights that define FID; others make another figure."""

_SIZE = 299


def resize_tensorflow1(
    images: Float[Array, "B H W C"], height: int = _SIZE, width: int = _SIZE
) -> Float[Array, "B H2 W2 C"]:
    """Resize as TensorFlow 1's `resize_bilinear` does, which is part of FID's definition.

    Output pixel i lies at i * H / height in the image, without the half-pixel shift that later
    libraries add, between two neighbours; what lies below the last pixel repeats it. There is no
    antialiasing, so large images alias, as they do in the published figures. (Libraries that
    resize otherwise, with antialiasing or centred pixels, report other numbers under that name.)
    """
    for axis, size in ((1, height), (2, width)):
        length = images.shape[axis]
        place = np.arange(size) * (length / size)
        low = np.floor(place).astype(np.int32)
        shape = [1] * 4
        shape[axis] = size
        weight = (place - low).astype(np.float32).reshape(shape)
        before = jnp.take(images, low, axis=axis)
        after = jnp.take(images, np.minimum(low + 1, length - 1), axis=axis)
        images = before + (after - before) * weight
    return images


class InceptionV3(nn.Module):
    """The network from scaled images to pooled features and logits.

    Modules are named as in the PyTorch file; each holds a "kernel" and a "bias".

    Attributes:
        num_classes: number of classes K.
    """

    num_classes: int = FID_CLASSES

    @nn.compact
    def __call__(
        self, images: Float[Array, "B H W 3"]
    ) -> tuple[Float[Array, "B 2048"], Float[Array, "B K"]]:
        """Features and logits.

        Args:
            images: RGB, at least 75x75, in [-1, 1): of a level v in 0..255, (v - 128) / 128.

        Returns:
            Features [B, 2048], the mean over places; and logits [B, K] without their bias, as the
            Inception Score has them.
        """
        unit = _Unit
        x = unit(32, 3, stride=2, padding=0, name="Conv2d_1a_3x3")(images)
        x = unit(32, 3, padding=0, name="Conv2d_2a_3x3")(x)
        x = unit(64, 3, name="Conv2d_2b_3x3")(x)
        x = _reduce(x)
        x = unit(80, 1, name="Conv2d_3b_1x1")(x)
        x = unit(192, 3, padding=0, name="Conv2d_4a_3x3")(x)
        x = _reduce(x)
        x = _BlockA(32, name="Mixed_5b")(x)
        x = _BlockA(64, name="Mixed_5c")(x)
        x = _BlockA(64, name="Mixed_5d")(x)
        x = _BlockB(name="Mixed_6a")(x)
        x = _BlockC(128, name="Mixed_6b")(x)
        x = _BlockC(160, name="Mixed_6c")(x)
        x = _BlockC(160, name="Mixed_6d")(x)
        x = _BlockC(192, name="Mixed_6e")(x)
        x = _BlockD(name="Mixed_7a")(x)
        x = _BlockE(maximum=False, name="Mixed_7b")(x)
        x = _BlockE(maximum=True, name="Mixed_7c")(x)
        features = x.mean((1, 2))
        return features, nn.Dense(self.num_classes, use_bias=False, name="fc")(features)


class _Unit(nn.Module):
    """Convolution, folded normalisation, ReLU; `padding` None keeps the size at stride 1."""

    features: int
    kernel_size: int | tuple[int, int]
    stride: int = 1
    padding: int | None = None

    @nn.compact
    def __call__(self, images: Float[Array, "B H W C"]) -> Float[Array, "B H2 W2 F"]:
        size = self.kernel_size
        size = (size, size) if isinstance(size, int) else size
        shape = (*size, images.shape[-1], self.features)
        kernel = self.param("kernel", nn.initializers.he_normal(), shape)
        bias = self.param("bias", nn.initializers.zeros, (self.features,))
        return nn.relu(conv2d(images, kernel, stride=self.stride, padding=self.padding) + bias)


def _reduce(x: Array) -> Array:
    return nn.max_pool(x, (3, 3), (2, 2))


def _average(x: Array) -> Array:
    return nn.avg_pool(x, (3, 3), padding="SAME", count_include_pad=False)


def _maximum(x: Array) -> Array:
    return nn.max_pool(x, (3, 3), padding="SAME")


def _chain(x: Array, *units: _Unit) -> Array:
    return functools.reduce(lambda value, unit: unit(value), units, x)


class _BlockA(nn.Module):
    """Branches of 1x1, 5x5 and twice 3x3."""

    pool_features: int

    @nn.compact
    def __call__(self, x: Array) -> Array:
        unit = _Unit
        one = unit(64, 1, name="branch1x1")(x)
        five = _chain(x, unit(48, 1, name="branch5x5_1"), unit(64, 5, name="branch5x5_2"))
        three = _chain(
            x,
            unit(64, 1, name="branch3x3dbl_1"),
            unit(96, 3, name="branch3x3dbl_2"),
            unit(96, 3, name="branch3x3dbl_3"),
        )
        pooled = unit(self.pool_features, 1, name="branch_pool")(_average(x))
        return jnp.concatenate([one, five, three, pooled], -1)


class _BlockB(nn.Module):
    """Halves the size, from 35x35 to 17x17 in full images."""

    @nn.compact
    def __call__(self, x: Array) -> Array:
        unit = _Unit
        once = unit(384, 3, stride=2, padding=0, name="branch3x3")(x)
        twice = _chain(
            x,
            unit(64, 1, name="branch3x3dbl_1"),
            unit(96, 3, name="branch3x3dbl_2"),
            unit(96, 3, stride=2, padding=0, name="branch3x3dbl_3"),
        )
        return jnp.concatenate([once, twice, _reduce(x)], -1)


class _BlockC(nn.Module):
    """7x7 convolutions as rows and columns, in a narrower branch."""

    inner_features: int

    @nn.compact
    def __call__(self, x: Array) -> Array:
        unit, inner = _Unit, self.inner_features
        row, column = (1, 7), (7, 1)
        one = unit(192, 1, name="branch1x1")(x)
        once = _chain(
            x,
            unit(inner, 1, name="branch7x7_1"),
            unit(inner, row, name="branch7x7_2"),
            unit(192, column, name="branch7x7_3"),
        )
        twice = _chain(
            x,
            unit(inner, 1, name="branch7x7dbl_1"),
            unit(inner, column, name="branch7x7dbl_2"),
            unit(inner, row, name="branch7x7dbl_3"),
            unit(inner, column, name="branch7x7dbl_4"),
            unit(192, row, name="branch7x7dbl_5"),
        )
        pooled = unit(192, 1, name="branch_pool")(_average(x))
        return jnp.concatenate([one, once, twice, pooled], -1)


class _BlockD(nn.Module):
    """Halves the size, from 17x17 to 8x8 in full images."""

    @nn.compact
    def __call__(self, x: Array) -> Array:
        unit = _Unit
        three = _chain(
            x,
            unit(192, 1, name="branch3x3_1"),
            unit(320, 3, stride=2, padding=0, name="branch3x3_2"),
        )
        seven = _chain(
            x,
            unit(192, 1, name="branch7x7x3_1"),
            unit(192, (1, 7), name="branch7x7x3_2"),
            unit(192, (7, 1), name="branch7x7x3_3"),
            unit(192, 3, stride=2, padding=0, name="branch7x7x3_4"),
        )
        return jnp.concatenate([three, seven, _reduce(x)], -1)


class _BlockE(nn.Module):
    """3x3 convolutions as a row beside a column; the pool is a maximum in the last block."""

    maximum: bool

    @nn.compact
    def __call__(self, x: Array) -> Array:
        unit = _Unit
        row, column = (1, 3), (3, 1)
        one = unit(320, 1, name="branch1x1")(x)
        three = unit(384, 1, name="branch3x3_1")(x)
        twice = unit(448, 1, name="branch3x3dbl_1")(x)
        twice = unit(384, 3, name="branch3x3dbl_2")(twice)
        pooled = _maximum(x) if self.maximum else _average(x)
        parts = [
            one,
            unit(384, row, name="branch3x3_2a")(three),
            unit(384, column, name="branch3x3_2b")(three),
            unit(384, row, name="branch3x3dbl_3a")(twice),
            unit(384, column, name="branch3x3dbl_3b")(twice),
            unit(192, 1, name="branch_pool")(pooled),
        ]
        return jnp.concatenate(parts, -1)


def parameter_shapes(num_classes: int = FID_CLASSES) -> dict[str, tuple[int, ...]]:
    """Shapes of all parameters by their "/"-joined path, such as "Mixed_5b/branch1x1/kernel"."""
    image = jax.ShapeDtypeStruct((1, 75, 75, 3), jnp.float32)
    tree = jax.eval_shape(InceptionV3(num_classes).init, jax.random.key(0), image)["params"]
    flat = cast(dict[str, Any], flatten_dict(tree, sep="/"))
    return {path: leaf.shape for path, leaf in flat.items()}


def load_inception(path: Path) -> dict[str, Any]:
    """Parameters of `InceptionV3` from a file of `tools.convert_inception`.

    The number of classes is that of `params["fc"]["kernel"]`.

    Raises:
        UserError: the file is missing, is not such a file, or its arrays do not fit.
    """
    advice = "make it with `python -m tools.convert_inception`"
    try:
        with np.load(path) as file:
            arrays = {name: file[name] for name in file.files}
    except OSError as error:
        raise UserError(
            f"{path}: no Inception weights there ({error.strerror or error}); {advice}"
        ) from error
    except (ValueError, zipfile.BadZipFile, AttributeError, TypeError) as error:
        raise UserError(f"{path} is not a file of Inception weights ({error}); {advice}") from error
    check_parameters(arrays, f"{path}", advice)
    return unflatten_dict({name: jnp.asarray(array) for name, array in arrays.items()}, sep="/")


def check_parameters(arrays: Mapping[str, np.ndarray], where: str, advice: str) -> None:
    """Check that arrays by path are all of Inception's parameters, with its shapes.

    Raises:
        UserError: some are missing, left over or of another shape; names the first.
    """
    if "fc/kernel" not in arrays or arrays["fc/kernel"].ndim != 2:
        raise UserError(f"{where}: fc/kernel is missing; {advice}")
    shapes = parameter_shapes(arrays["fc/kernel"].shape[1])
    for wrong, what in (
        (sorted(shapes.keys() - arrays.keys()), "missing"),
        (sorted(arrays.keys() - shapes.keys()), "not known"),
    ):
        if wrong:
            raise UserError(f"{where}: {len(wrong)} arrays are {what}, first {wrong[0]}; {advice}")
    for name, shape in shapes.items():
        if arrays[name].shape != shape:
            raise UserError(
                f"{where}: {name} has shape {arrays[name].shape} in place of {shape}; {advice}"
            )
