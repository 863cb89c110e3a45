"""I3D against a reference that is written from the paper's table of layers, over the names of a
PyTorch port: with float64 numpy operations, and with those of PyTorch where it is installed."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from genjax.errors import UserError
from genjax.video.i3d import I3D, fvd_input, load_i3d, parameter_shapes
from tools import convert_i3d

# Windows in time to average over, and borders that are uneven at every stride.
SHAPE = (1, 17, 36, 33, 3)

BLOCKS = {
    "3b": (192, 64, 96, 128, 16, 32, 32),
    "3c": (256, 128, 128, 192, 32, 96, 64),
    "4b": (480, 192, 96, 208, 16, 48, 64),
    "4c": (512, 160, 112, 224, 24, 64, 64),
    "4d": (512, 128, 128, 256, 24, 64, 64),
    "4e": (512, 112, 144, 288, 32, 64, 64),
    "4f": (528, 256, 160, 320, 32, 128, 128),
    "5b": (832, 256, 160, 320, 32, 128, 128),
    "5c": (832, 384, 192, 384, 48, 128, 128),
}


def i3d_units():
    """Name, input and output channels and kernel size of everything with a normalisation."""
    units = [("Conv3d_1a_7x7", 3, 64, 7), ("Conv3d_2b_1x1", 64, 64, 1)]
    units.append(("Conv3d_2c_3x3", 64, 192, 3))
    for block, (inputs, direct, narrow1, wide1, narrow2, wide2, pooled) in BLOCKS.items():
        units += [
            (f"Mixed_{block}.b0", inputs, direct, 1),
            (f"Mixed_{block}.b1a", inputs, narrow1, 1),
            (f"Mixed_{block}.b1b", narrow1, wide1, 3),
            (f"Mixed_{block}.b2a", inputs, narrow2, 1),
            (f"Mixed_{block}.b2b", narrow2, wide2, 3),
            (f"Mixed_{block}.b3b", inputs, pooled, 1),
        ]
    return units


def i3d_state(scales=True):
    """A state dict with a PyTorch port's names and shapes, and random values."""
    rng = np.random.default_rng(0)
    state = {
        "logits.conv3d.weight": rng.normal(0, 0.05, (400, 1024, 1, 1, 1)),
        "logits.conv3d.bias": rng.normal(size=400),
    }
    for name, inputs, outputs, size in i3d_units():
        kernel = rng.standard_normal((outputs, inputs, size, size, size), np.float32)
        state[f"{name}.conv3d.weight"] = kernel * np.sqrt(2 / (size**3 * inputs))
        scale = rng.uniform(0.7, 1.3, outputs) if scales else np.ones(outputs)
        state[f"{name}.bn.weight"] = scale
        state[f"{name}.bn.bias"] = rng.normal(0, 0.2, outputs)
        state[f"{name}.bn.running_mean"] = rng.normal(0, 0.2, outputs)
        # Small enough that epsilon counts.
        state[f"{name}.bn.running_var"] = rng.uniform(0.05, 1.5, outputs)
    return {name: np.asarray(array, np.float32) for name, array in state.items()}


# ---- the reference ----------------------------------------------------------------------------


def network(operations, clips):
    """Logits of clips [B, 3, T, H, W]; `operations` hold the state dict."""
    unit, pool = operations.unit, operations.pool
    x = unit("Conv3d_1a_7x7", clips, 2)
    x = pool(x, (1, 3, 3), (1, 2, 2))
    x = unit("Conv3d_2b_1x1", x)
    x = unit("Conv3d_2c_3x3", x)
    x = pool(x, (1, 3, 3), (1, 2, 2))
    for block in BLOCKS:
        if block == "4b":
            x = pool(x, (3, 3, 3), (2, 2, 2))
        if block == "5b":
            x = pool(x, (2, 2, 2), (2, 2, 2))
        name = f"Mixed_{block}"
        x = operations.cat(
            unit(f"{name}.b0", x),
            unit(f"{name}.b1b", unit(f"{name}.b1a", x)),
            unit(f"{name}.b2b", unit(f"{name}.b2a", x)),
            unit(f"{name}.b3b", pool(x, (3, 3, 3), (1, 1, 1))),
        )
    return operations.logits(x)


def same(shape, size, stride):
    """What TensorFlow's "SAME" adds before and after each axis."""
    pads = []
    for length, k, s in zip(shape, size, stride, strict=True):
        total = max((-(-length // s) - 1) * s + k - length, 0)
        pads.append((total // 2, total - total // 2))
    return pads


class Numpy:
    def __init__(self, state):
        self.state = {name: value.astype(np.float64) for name, value in state.items()}

    def windows(self, x, size, stride, value):
        pads = same(x.shape[2:], size, stride)
        x = np.pad(x, [(0, 0), (0, 0), *pads], constant_values=value)
        view = np.lib.stride_tricks.sliding_window_view(x, size, axis=(2, 3, 4))
        return view[:, :, :: stride[0], :: stride[1], :: stride[2]]

    def unit(self, name, x, stride=1):
        kernel = self.state[f"{name}.conv3d.weight"]
        columns = self.windows(x, kernel.shape[2:], (stride,) * 3, 0.0)
        x = np.tensordot(kernel, columns, ((1, 2, 3, 4), (1, 5, 6, 7))).swapaxes(0, 1)
        mean, variance, weight, bias = (
            self.state[f"{name}.bn.{part}"][:, None, None, None]
            for part in ("running_mean", "running_var", "weight", "bias")
        )
        return np.maximum((x - mean) / np.sqrt(variance + 1e-3) * weight + bias, 0)

    def pool(self, x, size, stride):
        return self.windows(x, size, stride, -np.inf).max((5, 6, 7))

    def cat(self, *parts):
        return np.concatenate(parts, 1)

    def logits(self, x):
        windows = [x[:, :, t : t + 2].mean((2, 3, 4)) for t in range(x.shape[2] - 1)]
        kernel = self.state["logits.conv3d.weight"][:, :, 0, 0, 0]
        return np.mean([w @ kernel.T + self.state["logits.conv3d.bias"] for w in windows], 0)


class Torch:
    def __init__(self, torch, state):
        self.torch = torch
        self.state = {name: torch.from_numpy(value) for name, value in state.items()}

    def padded(self, x, size, stride):
        pads = same(x.shape[2:], size, stride)
        # Zeros before a maximum as well: what comes in is never negative.
        return self.torch.nn.functional.pad(x, [n for pair in reversed(pads) for n in pair])

    def unit(self, name, x, stride=1):
        functional = self.torch.nn.functional
        kernel = self.state[f"{name}.conv3d.weight"]
        x = self.padded(x, kernel.shape[2:], (stride,) * 3)
        x = functional.conv3d(x, kernel, None, stride)
        mean, variance, weight, bias = (
            self.state[f"{name}.bn.{part}"]
            for part in ("running_mean", "running_var", "weight", "bias")
        )
        return functional.relu(functional.batch_norm(x, mean, variance, weight, bias, eps=1e-3))

    def pool(self, x, size, stride):
        return self.torch.nn.functional.max_pool3d(self.padded(x, size, stride), size, stride)

    def cat(self, *parts):
        return self.torch.cat(parts, 1)

    def logits(self, x):
        functional = self.torch.nn.functional
        x = functional.avg_pool3d(x, (2, 7, 7), 1)
        names = ("logits.conv3d.weight", "logits.conv3d.bias")
        x = functional.conv3d(x, *(self.state[name] for name in names))
        return x.squeeze(4).squeeze(3).mean(2)


# ---- the network ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def state():
    return i3d_state()


@pytest.fixture(scope="module")
def params(state, tmp_path_factory):
    """The converted and stored weights."""
    folder = tmp_path_factory.mktemp("i3d")
    (folder / "source.pt").write_bytes(b"weights")
    convert_i3d.write_weights(
        folder / "i3d.npz", convert_i3d.convert(state), [folder / "source.pt"]
    )
    return load_i3d(folder / "i3d.npz").params


def test_matches_float64_numpy(state, params):
    clips = np.random.default_rng(1).uniform(-1, 1, SHAPE).astype(np.float32)
    expected = network(Numpy(state), clips.astype(np.float64).transpose(0, 4, 1, 2, 3))
    logits = jax.jit(I3D().apply)({"params": params}, clips)
    assert logits.shape == (1, 400) and logits.dtype == jnp.float32
    scale = np.abs(expected).max()
    # The clip matters, not the biases alone.
    assert np.abs(expected - state["logits.conv3d.bias"]).mean() > 0.05 * scale
    np.testing.assert_allclose(logits, expected, atol=1e-5 * scale, rtol=0)


@pytest.mark.slow
def test_matches_torch_at_full_size(state, params):
    torch = pytest.importorskip("torch")
    clips = np.random.default_rng(2).uniform(-1, 1, (1, 10, 224, 224, 3)).astype(np.float32)
    with torch.no_grad():
        expected = network(Torch(torch, state), torch.from_numpy(clips.transpose(0, 4, 1, 2, 3)))
    logits = jax.jit(I3D().apply)({"params": params}, clips)
    scale = float(expected.abs().max())
    np.testing.assert_allclose(logits, expected.numpy(), atol=2e-5 * scale, rtol=0)


@pytest.mark.fast
def test_published_size():
    shapes = parameter_shapes()
    total = sum(int(np.prod(shape)) for shape in shapes.values())
    folded = sum(outputs for _, _, outputs, _ in i3d_units())
    # PyTorch's ports and GluonCV's count 12,697,264: each normalisation's scale is one more.
    assert total + folded == 12_697_264
    assert len(shapes) == 2 * (len(i3d_units()) + 1) == 2 * 58


@pytest.mark.fast
def test_frames_that_leave_nothing_to_average_are_refused():
    def trace(frames):
        clips = jax.ShapeDtypeStruct((2, frames, 32, 32, 3), jnp.float32)
        return jax.eval_shape(lambda x: I3D().init_with_output(jax.random.key(0), x)[0], clips)

    assert trace(9).shape == (2, 400)
    with pytest.raises(ValueError, match="9 frames or more, not 8"):
        trace(8)


# ---- what it sees -----------------------------------------------------------------------------

resized = jax.jit(fvd_input, static_argnums=1)


@pytest.mark.fast
@pytest.mark.parametrize("size", [(5, 64), (224, 300)])
@pytest.mark.parametrize("resize", ["tensorflow1", "half_pixel"])
def test_slopes_are_resized_by_the_formula(size, resize):
    height, width = size
    slope = 0.4 * np.arange(height)[:, None] + 0.3 * np.arange(width)
    clips = np.float32(slope + np.array([0.0, 10.0])[:, None, None])[None, ..., None]

    def places(length):
        place = np.arange(224) * length / 224
        if resize == "half_pixel":
            place = (np.arange(224) + 0.5) * length / 224 - 0.5
        return np.clip(place, 0, length - 1)

    expected = 0.4 * places(height)[:, None] + 0.3 * places(width)
    expected = (expected + np.array([0.0, 10.0])[:, None, None]) / 127.5 - 1
    found = np.asarray(resized(clips, resize))
    assert found.shape == (1, 2, 224, 224, 3)
    for channel in range(3):
        np.testing.assert_allclose(found[0, ..., channel], expected, atol=2e-6)


@pytest.mark.fast
def test_colours_keep_their_order_and_levels_their_ends():
    clips = np.tile(np.float32([0.0, 127.5, 255.0]), (2, 1, 4, 4, 1))
    for resize in ("tensorflow1", "half_pixel"):
        found = np.asarray(resized(clips, resize))
        np.testing.assert_allclose(found[1, 0, 100, 3], [-1, 0, 1], atol=1e-6)


# ---- files ------------------------------------------------------------------------------------


@pytest.mark.fast
def test_wrong_files_are_refused(tmp_path):
    file = tmp_path / "i3d.npz"
    with pytest.raises(UserError, match="no I3D weights there"):
        load_i3d(file)
    file.write_bytes(b"text")
    with pytest.raises(UserError, match="is not a file of I3D weights"):
        load_i3d(file)
    np.savez(file, other=np.zeros(3))
    with pytest.raises(UserError, match=r"116 arrays are missing.*tools\.convert_i3d"):
        load_i3d(file)
