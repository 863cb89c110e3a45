"""LPIPS against a float64 reference over the PyTorch names."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from genjax.errors import UserError
from genjax.image.lpips import Lpips, load_lpips, parameter_shapes
from genjax.image.weight_files import read_weights
from tools import convert_i3d, convert_lpips

CONVOLUTIONS = ((0, 3, 64, 11), (3, 64, 192, 5), (6, 192, 384, 3), (8, 384, 256, 3))
CONVOLUTIONS += ((10, 256, 256, 3),)

distance = jax.jit(Lpips().apply)


def lpips_state():
    """AlexNet's and the heads' state dicts as torchvision and LPIPS name them, random."""
    rng = np.random.default_rng(0)
    alexnet = {"classifier.6.bias": np.zeros(1000)}
    heads = {}
    for number, (place, inputs, outputs, size) in enumerate(CONVOLUTIONS):
        kernel = rng.normal(size=(outputs, inputs, size, size)) / np.sqrt(size**2 * inputs / 2)
        alexnet[f"features.{place}.weight"] = kernel
        alexnet[f"features.{place}.bias"] = rng.normal(0, 0.1, outputs)
        heads[f"lin{number}.model.1.weight"] = rng.uniform(0, 1, (1, outputs, 1, 1))
    return tuple(
        {name: np.float32(array) for name, array in one.items()} for one in (alexnet, heads)
    )


def reference(state, images):
    """What each layer sees in images [B, 3, H, W]: features of length 1."""
    shift = np.array([-0.030, -0.088, -0.188])[:, None, None]
    x = (images - shift) / np.array([0.458, 0.448, 0.450])[:, None, None]
    found = []
    for place, _, _, size in CONVOLUTIONS:
        stride, padding = {0: (4, 2), 3: (1, 2)}.get(place, (1, 1))
        if place in (3, 6):
            windows = np.lib.stride_tricks.sliding_window_view(x, (3, 3), axis=(2, 3))
            x = windows[:, :, ::2, ::2].max((4, 5))
        x = np.pad(x, ((0, 0), (0, 0), (padding,) * 2, (padding,) * 2))
        windows = np.lib.stride_tricks.sliding_window_view(x, (size, size), axis=(2, 3))
        kernel, bias = (
            state[f"features.{place}.{part}"].astype(np.float64) for part in ("weight", "bias")
        )
        windows = windows[:, :, ::stride, ::stride]
        x = np.einsum("bchwkl,fckl->bfhw", windows, kernel, optimize=True)
        x = np.maximum(x + bias[:, None, None], 0)
        found.append(x / (np.sqrt((x**2).sum(1, keepdims=True)) + 1e-10))
    return found


@pytest.fixture(scope="module")
def state():
    alexnet, heads = lpips_state()
    return alexnet | heads


@pytest.fixture(scope="module")
def params(state):
    arrays = convert_lpips.convert(state)
    nested = {}
    for path, array in arrays.items():
        module, name = path.split("/")
        nested.setdefault(module, {})[name] = jnp.asarray(array)
    return nested


def pair(shape=(2, 79, 68, 3)):
    rng = np.random.default_rng(1)
    return tuple(np.float32(rng.uniform(-1, 1, shape)) for _ in range(2))


def test_matches_float64_numpy(state, params):
    images, others = pair()
    seen, beside = (
        reference(state, np.float64(one).transpose(0, 3, 1, 2)) for one in (images, others)
    )
    expected = np.zeros(2)
    for number, (a, b) in enumerate(zip(seen, beside, strict=True)):
        weights = state[f"lin{number}.model.1.weight"].astype(np.float64)[0]
        expected += (weights * (a - b) ** 2).sum(1).mean((1, 2))
    found = distance({"params": params}, images, others)
    assert found.shape == (2,)
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_a_distance(params):
    images, others = pair()
    there = np.asarray(distance({"params": params}, images, others))
    back = distance({"params": params}, others, images)
    np.testing.assert_allclose(there, back, rtol=1e-6)
    np.testing.assert_array_equal(distance({"params": params}, images, images), 0)
    nearer = np.asarray(distance({"params": params}, images, 0.9 * images + 0.1 * others))
    assert (nearer < 0.5 * there).all() and (nearer > 0).all()


def test_grey_images_are_three_equal_channels(params):
    images, others = pair((1, 40, 40, 1))
    found = distance({"params": params}, images, others)
    colored = distance({"params": params}, *(np.repeat(x, 3, 3) for x in (images, others)))
    np.testing.assert_allclose(found, colored, rtol=1e-6)


def test_gradients_are_finite_where_all_features_are_0(params):
    # A bias that silences the first layer, and with it all that its places show.
    silent = {**params, "conv1": {**params["conv1"], "bias": np.full(64, -1e3, np.float32)}}
    loss = jax.jit(
        jax.value_and_grad(lambda x, y, params: Lpips().apply({"params": params}, x, y).sum())
    )
    value, gradient = loss(*pair((1, 35, 35, 3)), silent)
    assert float(value) == 0
    np.testing.assert_array_equal(gradient, 0)


@pytest.mark.fast
def test_published_size():
    sizes = {name: int(np.prod(shape)) for name, shape in parameter_shapes().items()}
    # torchvision's AlexNet has 61,100,840 parameters, its classifier 58,631,144 of them.
    convolutions = sum(size for name, size in sizes.items() if name.startswith("conv"))
    assert convolutions == 61_100_840 - 58_631_144
    assert sum(sizes.values()) - convolutions == 64 + 192 + 384 + 256 + 256


@pytest.mark.fast
def test_images_it_cannot_take_are_refused():
    def trace(shape):
        image = jax.ShapeDtypeStruct((2, *shape), jnp.float32)
        return jax.eval_shape(lambda x: Lpips().init_with_output(jax.random.key(0), x, x)[0], image)

    assert trace((31, 31, 3)).shape == (2,)
    with pytest.raises(UserError, match="31x31 pixels or more, not 64x30"):
        trace((64, 30, 3))
    with pytest.raises(UserError, match="1 or 3 channels, not 4"):
        trace((64, 64, 4))


def test_stored_and_read_again(state, params, tmp_path):
    (tmp_path / "source.pth").write_bytes(b"weights")
    file = tmp_path / "lpips.npz"
    convert_i3d.write_weights(file, convert_lpips.convert(state), [tmp_path / "source.pth"])
    weights = load_lpips(file)
    jax.tree.map(np.testing.assert_array_equal, weights.params, params)
    # printf weights | sha256sum
    assert weights.sha256 == "9a129038d9a00aed0cf6a7ea059ca50a813449061ab87848cf1a13eafdf33b2c"
    with pytest.raises(UserError, match="no LPIPS weights there"):
        load_lpips(tmp_path / "missing.npz")


@pytest.mark.fast
def test_stored_weights_that_do_not_fit_are_refused(tmp_path):
    file, shapes = tmp_path / "weights.npz", {"a/kernel": (2, 3), "a/bias": (3,)}
    arrays = {name: np.ones(shape, np.float32) for name, shape in shapes.items()}
    sources = '[["one.pth", "12ab"], ["two.pth", "34cd"]]'

    def read(**arrays):
        np.savez(file, **arrays)
        return read_weights(file, shapes, "toy", "make it")

    found = read(**arrays, sources=sources)
    assert found.sha256 == "12ab+34cd"
    np.testing.assert_array_equal(found.params["a"]["kernel"], np.ones((2, 3)))
    with pytest.raises(UserError, match="does not say what it was converted from; make it"):
        read(**arrays)
    with pytest.raises(UserError, match="is not a file of toy weights"):
        read(**arrays, sources="12ab")
    with pytest.raises(UserError, match="1 arrays are missing, first a/bias; make it"):
        read(**{"a/kernel": arrays["a/kernel"]}, sources=sources)
    with pytest.raises(UserError, match="1 arrays are not known, first b"):
        read(**arrays, b=np.zeros(1), sources=sources)
    with pytest.raises(UserError, match=r"a/bias has shape \(4,\) in place of \(3,\)"):
        read(**(arrays | {"a/bias": np.zeros(4)}), sources=sources)
