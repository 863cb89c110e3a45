"""Inception v3 against a reference that reads the PyTorch names and is written twice over:
with float64 numpy operations, and with those of PyTorch where it is installed."""

import functools
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from genjax.errors import UserError
from genjax.image.inception_v3 import (
    InceptionV3,
    load_inception,
    parameter_shapes,
    resize_tensorflow1,
)
from tools import convert_inception

# The smallest size at which the last blocks tell rows from columns, and have borders.
SHAPE = (1, 107, 91, 3)


# ---- the reference ----------------------------------------------------------------------------


def network(operations, images):
    """Features of images [B, 3, H, W]; `operations` hold the state dict."""
    conv, pool, cat = operations.conv, operations.pool, operations.cat
    x = conv("Conv2d_1a_3x3", images, stride=2)
    x = conv("Conv2d_2a_3x3", x)
    x = conv("Conv2d_2b_3x3", x, padding=(1, 1))
    x = pool(x, "max", stride=2)
    x = conv("Conv2d_3b_1x1", x)
    x = conv("Conv2d_4a_3x3", x)
    x = pool(x, "max", stride=2)
    for name in ("5b", "5c", "5d"):
        at = functools.partial(_at, conv, f"Mixed_{name}.")
        double = at("branch3x3dbl_2", at("branch3x3dbl_1", x), padding=(1, 1))
        x = cat(
            at("branch1x1", x),
            at("branch5x5_2", at("branch5x5_1", x), padding=(2, 2)),
            at("branch3x3dbl_3", double, padding=(1, 1)),
            at("branch_pool", pool(x, "average", padding=1)),
        )
    at = functools.partial(_at, conv, "Mixed_6a.")
    double = at("branch3x3dbl_2", at("branch3x3dbl_1", x), padding=(1, 1))
    x = cat(
        at("branch3x3", x, stride=2),
        at("branch3x3dbl_3", double, stride=2),
        pool(x, "max", stride=2),
    )
    row, column = {"padding": (0, 3)}, {"padding": (3, 0)}
    for name in ("6b", "6c", "6d", "6e"):
        at = functools.partial(_at, conv, f"Mixed_{name}.")
        single = at("branch7x7_3", at("branch7x7_2", at("branch7x7_1", x), **row), **column)
        double = at("branch7x7dbl_2", at("branch7x7dbl_1", x), **column)
        double = at("branch7x7dbl_4", at("branch7x7dbl_3", double, **row), **column)
        x = cat(
            at("branch1x1", x),
            single,
            at("branch7x7dbl_5", double, **row),
            at("branch_pool", pool(x, "average", padding=1)),
        )
    at = functools.partial(_at, conv, "Mixed_7a.")
    seven = at("branch7x7x3_3", at("branch7x7x3_2", at("branch7x7x3_1", x), **row), **column)
    x = cat(
        at("branch3x3_2", at("branch3x3_1", x), stride=2),
        at("branch7x7x3_4", seven, stride=2),
        pool(x, "max", stride=2),
    )
    row, column = {"padding": (0, 1)}, {"padding": (1, 0)}
    for name, kind in (("7b", "average"), ("7c", "max")):
        at = functools.partial(_at, conv, f"Mixed_{name}.")
        single = at("branch3x3_1", x)
        double = at("branch3x3dbl_2", at("branch3x3dbl_1", x), padding=(1, 1))
        x = cat(
            at("branch1x1", x),
            at("branch3x3_2a", single, **row),
            at("branch3x3_2b", single, **column),
            at("branch3x3dbl_3a", double, **row),
            at("branch3x3dbl_3b", double, **column),
            at("branch_pool", pool(x, kind, padding=1)),
        )
    return x.mean((2, 3))


def _at(conv, prefix, name, x, **options):
    return conv(prefix + name, x, **options)


class Numpy:
    def __init__(self, state):
        self.state = state

    def windows(self, x, size, stride, padding, value=0.0):
        sides = ((0, 0), (0, 0), *((pad, pad) for pad in padding))
        x = np.pad(x, sides, constant_values=value)
        view = np.lib.stride_tricks.sliding_window_view(x, size, axis=(2, 3))
        return view[:, :, ::stride, ::stride]

    def conv(self, name, x, stride=1, padding=(0, 0)):
        kernel, weight, bias, mean, variance = (
            self.state[f"{name}.{part}"].astype(np.float64)
            for part in ("conv.weight", "bn.weight", "bn.bias", "bn.running_mean", "bn.running_var")
        )
        columns = self.windows(x, kernel.shape[2:], stride, padding)
        outputs = np.tensordot(kernel, columns, ((1, 2, 3), (1, 4, 5))).swapaxes(0, 1)
        weight, bias, mean, variance = (v[:, None, None] for v in (weight, bias, mean, variance))
        return np.maximum((outputs - mean) / np.sqrt(variance + 1e-3) * weight + bias, 0)

    def pool(self, x, kind, stride=1, padding=0):
        padding = (padding, padding)
        if kind == "max":
            return self.windows(x, (3, 3), stride, padding, -np.inf).max((4, 5))
        counts = self.windows(np.ones_like(x), (3, 3), stride, padding).sum((4, 5))
        return self.windows(x, (3, 3), stride, padding).sum((4, 5)) / counts

    def cat(self, *parts):
        return np.concatenate(parts, 1)


class Torch:
    def __init__(self, torch, state):
        self.torch = torch
        self.state = {name: torch.from_numpy(value) for name, value in state.items()}

    def conv(self, name, x, stride=1, padding=(0, 0)):
        functional = self.torch.nn.functional
        x = functional.conv2d(x, self.state[f"{name}.conv.weight"], None, stride, padding)
        mean, variance, weight, bias = (
            self.state[f"{name}.bn.{part}"]
            for part in ("running_mean", "running_var", "weight", "bias")
        )
        return functional.relu(functional.batch_norm(x, mean, variance, weight, bias, eps=1e-3))

    def pool(self, x, kind, stride=1, padding=0):
        functional = self.torch.nn.functional
        if kind == "max":
            return functional.max_pool2d(x, 3, stride, padding)
        return functional.avg_pool2d(x, 3, stride, padding, count_include_pad=False)

    def cat(self, *parts):
        return self.torch.cat(parts, 1)


@pytest.fixture(scope="module")
def state():
    """A state dict with PyTorch's names and shapes, and random values."""
    rng = np.random.default_rng(0)
    arrays = {
        "fc.weight": rng.normal(0, 0.02, (1008, 2048)),
        "fc.bias": rng.normal(size=1008),
        "Conv2d_1a_3x3.bn.num_batches_tracked": np.zeros((), np.int64),
    }
    for path, shape in parameter_shapes().items():
        if path.endswith("/kernel") and path != "fc/kernel":
            name = path.removesuffix("/kernel").replace("/", ".")
            height, width, inputs, outputs = shape
            kernel = rng.standard_normal((outputs, inputs, height, width), np.float32)
            arrays[f"{name}.conv.weight"] = kernel * np.sqrt(2 / (height * width * inputs))
            arrays[f"{name}.bn.weight"] = rng.uniform(0.7, 1.3, outputs)
            arrays[f"{name}.bn.bias"] = rng.normal(0, 0.2, outputs)
            arrays[f"{name}.bn.running_mean"] = rng.normal(0, 0.2, outputs)
            # Small enough that epsilon counts.
            arrays[f"{name}.bn.running_var"] = rng.uniform(0.05, 1.5, outputs)
    return {name: np.asarray(array, np.float32) for name, array in arrays.items()}


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(1).uniform(-1, 1, SHAPE).astype(np.float32)


@pytest.fixture(scope="module")
def outputs(state, images, tmp_path_factory):
    """What the converted and stored weights give."""
    file = tmp_path_factory.mktemp("inception") / "inception.npz"
    convert_inception.write(file, convert_inception.convert(state))
    params = load_inception(file)
    return jax.jit(InceptionV3().apply)({"params": params}, images)


# ---- the network ------------------------------------------------------------------------------


def test_matches_float64_numpy(state, images, outputs):
    expected = network(Numpy(state), images.astype(np.float64).transpose(0, 3, 1, 2))
    features, logits = outputs
    assert features.shape == (1, 2048)
    scale = np.abs(expected).max()
    assert np.std(expected) > 0.05 * scale
    np.testing.assert_allclose(features, expected, atol=1e-5 * scale, rtol=0)
    # Without the bias that the file holds.
    expected = expected @ state["fc.weight"].T
    np.testing.assert_allclose(logits, expected, atol=1e-5 * np.abs(expected).max(), rtol=0)


def test_matches_torch(state, images, outputs):
    torch = pytest.importorskip("torch")
    with torch.no_grad():
        expected = network(Torch(torch, state), torch.from_numpy(images.transpose(0, 3, 1, 2)))
    np.testing.assert_allclose(
        outputs[0], expected.numpy(), atol=1e-5 * float(expected.max()), rtol=0
    )


def test_published_size():
    shapes = parameter_shapes(1000)
    kernels = sum(np.prod(s) for name, s in shapes.items() if name.endswith("kernel"))
    biases = [s for name, s in shapes.items() if name.endswith("bias")]
    # Keras's Inception v3 has 23,851,784: these, three vectors a normalisation, and fc's bias.
    assert kernels + 3 * sum(s[0] for s in biases) + 1000 == 23_851_784
    assert len(biases) == 94


# ---- its resizing -----------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(7, 5), (3, 9), (4, 6)])
def test_resizing_matches_loops(size):
    images = np.random.default_rng(2).normal(size=(2, 4, 6, 3)).astype(np.float32)
    expected = np.zeros((2, *size, 3))
    for i in range(size[0]):
        for j in range(size[1]):
            y, x = i * 4 / size[0], j * 6 / size[1]
            for down in (0, 1):
                for right in (0, 1):
                    weight = (y % 1 if down else 1 - y % 1) * (x % 1 if right else 1 - x % 1)
                    row, column = min(int(y) + down, 3), min(int(x) + right, 5)
                    expected[:, i, j] += weight * images[:, row, column]
    found = resize_tensorflow1(jnp.asarray(images), *size)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


def test_resizing_puts_the_first_pixel_first():
    # Doubling: even pixels are copies, odd ones halfway, the last repeated.
    image = jnp.array([1.0, 3.0, 7.0]).reshape(1, 1, 3, 1)
    found = resize_tensorflow1(image, 1, 6).ravel()
    np.testing.assert_allclose(found, [1, 2, 3, 5, 7, 7])


# ---- files ------------------------------------------------------------------------------------


def test_command_line_converts_a_torch_file(state, tmp_path, capsys):
    torch = pytest.importorskip("torch")
    source, target = tmp_path / "inception.pth", tmp_path / "inception.npz"
    torch.save({name: torch.from_numpy(value) for name, value in state.items()}, source)
    assert convert_inception.main([str(source), str(target)]) == 0
    assert "1008 classes" in capsys.readouterr().out
    kernel = load_inception(target)["Mixed_6b"]["branch7x7_2"]["kernel"]
    assert kernel.shape == (1, 7, 128, 128)


def test_weights_of_torchvision_are_told_apart(state, tmp_path, capsys):
    torch = pytest.importorskip("torch")
    source, target = tmp_path / "inception.pth", tmp_path / "inception.npz"
    other = state | {
        "fc.weight": state["fc.weight"][:1000],
        "AuxLogits.conv0.conv.weight": np.zeros((128, 768, 1, 1), np.float32),
    }
    torch.save({name: torch.from_numpy(value) for name, value in other.items()}, source)
    assert convert_inception.main([str(source), str(target)]) == 0
    assert "not be called FID" in capsys.readouterr().out
    assert load_inception(target)["fc"]["kernel"].shape == (2048, 1000)


def test_missing_arrays_are_named(state):
    some = {k: v for k, v in state.items() if k != "Mixed_7c.branch_pool.bn.running_mean"}
    with pytest.raises(UserError, match=r"1 of 471 .* Mixed_7c\.branch_pool\.bn\.running_mean"):
        convert_inception.convert(some, "weights.pth")
    wrong = state | {"Mixed_5b.branch1x1.conv.weight": np.zeros((64, 192, 3, 3), np.float32)}
    with pytest.raises(UserError, match=r"Mixed_5b/branch1x1/kernel has shape \(3, 3"):
        convert_inception.convert(wrong, "weights.pth")


def test_wrong_files_are_refused(tmp_path, capsys):
    pytest.importorskip("torch")
    source = tmp_path / "weights.pth"
    assert convert_inception.main([str(source), str(tmp_path / "out.npz")]) == 2
    assert "weights.pth cannot be read" in capsys.readouterr().err
    source.write_bytes(b"no weights")
    assert convert_inception.main([str(source), str(tmp_path / "out.npz")]) == 2
    assert "is not a PyTorch state dict" in capsys.readouterr().err
    assert convert_inception.main([str(source), str(tmp_path / "out.txt")]) == 2
    assert "must end in .npz" in capsys.readouterr().err


def test_stored_weights_that_do_not_fit_are_refused(tmp_path):
    with pytest.raises(UserError, match="no Inception weights there"):
        load_inception(tmp_path / "missing.npz")
    file = tmp_path / "file.npz"
    file.write_bytes(b"text")
    with pytest.raises(UserError, match="is not a file of Inception weights"):
        load_inception(file)
    convert_inception.write(file, {"other": np.zeros(3)})
    with pytest.raises(UserError, match="fc/kernel is missing"):
        load_inception(file)
    convert_inception.write(file, {"fc/kernel": np.zeros((2048, 8))})
    with pytest.raises(UserError, match="188 arrays are missing, first Conv2d_1a_3x3/bias"):
        load_inception(file)


def test_without_torch_the_way_out_is_told(monkeypatch, tmp_path, capsys):
    monkeypatch.setitem(sys.modules, "torch", None)
    code = convert_inception.main([str(tmp_path / "in.pth"), str(tmp_path / "out.npz")])
    assert code == 2
    assert "pip install torch" in capsys.readouterr().err
