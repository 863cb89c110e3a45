"""SimVP against float64 numpy, the published sizes, and what must not be read."""

import math
import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from genjax.errors import UserError
from genjax.flops import count_flops
from genjax.video.simvp import SimVP
from genjax.video.simvp_layers import StochasticDepth
from tests.image.gan_reference import randomized, relative_error
from tests.video import simvp_reference

TINY = {"spatial_features": 8, "spatial_layers": 2, "temporal_features": 16, "temporal_layers": 2}
NEXT, BETWEEN = (True, True, False, False), (True, False, False, True, False)


def count(tree):
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(tree))


def started(model, *inputs):
    """Random variables, of which none is 0 or 1 by its start."""
    variables = randomized(jax.eval_shape(model.init, jax.random.key(0), *inputs))
    return jax.tree.map(lambda leaf: jnp.asarray(leaf.astype(np.float32)), variables)


def data(known, height=4, width=6, channels=1, batch=2):
    rng = np.random.default_rng(1)
    clips = rng.random((batch, len(known), height, width, channels))
    return clips, (rng.random((batch, len(known), height, width, 1)) > 0.4).astype(np.float64)


# ---- the model --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "train"),
    [
        ({"known": NEXT, "spatial_layers": 3, "temporal_layers": 3}, True),
        ({"known": BETWEEN, "partial": True, "channels": 2, "mlp_ratio": 3}, False),
        (
            {
                "known": BETWEEN,
                "translator": "inception",
                "inception_kernel_sizes": (3, 5),
                "temporal_layers": 3,
            },
            False,
        ),
        pytest.param({"known": NEXT, "translator": "inception"}, True, marks=pytest.mark.slow),
    ],
)
def test_the_model_equals_the_reference(settings, train):
    model = SimVP(**{**TINY, **settings}, dtype=jnp.float64)
    clips, mask = data(model.known, channels=model.channels)
    given = mask if model.partial else None
    with jax.enable_x64(True):
        variables = randomized(jax.eval_shape(model.init, jax.random.key(0), clips, given))
        found = jax.jit(
            lambda variables, *inputs: model.apply(
                variables, *inputs, train=train, mutable=["statistics"]
            )[0]
        )(jax.tree.map(jnp.asarray, variables), clips, given)
        assert found.dtype == jnp.float64
    expected = simvp_reference.simvp(variables, clips, given, model, train)
    assert relative_error(found, expected) < 1e-12


@pytest.mark.parametrize(
    ("translator", "parameters", "multiply_adds", "published"),
    [("gsta", 46_769_665, 16_468_475_904, 16.5), ("inception", 57_946_113, 19_334_692_864, 19.4)],
)
def test_the_published_sizes(translator, parameters, multiply_adds, published):
    """46.8 M and 58.0 M parameters, 16.5 G and 19.4 G: Moving MNIST, 10 frames to 10.

    The published figures of cost count five more for each pixel and channel that group
    normalisation sees, which the second one is not reached without.
    """
    model = SimVP(known=(True,) * 10 + (False,) * 10, translator=translator)
    clips = jax.ShapeDtypeStruct((1, 20, 64, 64, 1), jnp.float32)
    found, normalized = [], []

    def predicted(key, clips):
        predictions, variables = model.init_with_output(key, clips)
        found.append(count(variables["params"]))
        return predictions

    def watch(method, arguments, options, context):
        if isinstance(context.module, nn.GroupNorm):
            normalized.append(arguments[0].size)
        return method(*arguments, **options)

    with nn.intercept_methods(watch):
        assert count_flops(predicted, jax.random.key(0), clips) == 2 * multiply_adds
    assert found == [parameters]
    assert round((multiply_adds + 5 * sum(normalized)) / 1e9, 1) == published


@pytest.mark.parametrize("translator", ["gsta", "inception"])
def test_unknown_frames_are_not_read_and_known_ones_are_returned(translator):
    model = SimVP(known=BETWEEN, translator=translator, **TINY, inception_kernel_sizes=(3,))
    clips = data(BETWEEN)[0].astype(np.float32)
    variables = started(model, clips)
    hidden = np.where(np.array(BETWEEN)[:, None, None, None], clips, np.nan)
    program = jax.jit(model.apply)
    apply = lambda clips: np.asarray(program(variables, clips))  # noqa: E731
    predictions = apply(clips)
    np.testing.assert_array_equal(predictions, apply(hidden))
    for frame, known in enumerate(BETWEEN):
        assert np.array_equal(predictions[:, frame], clips[:, frame]) == known
        # Each prediction depends on each known frame.
        changed = clips.copy()
        changed[:, frame] = 1 - changed[:, frame]
        moved = np.abs(apply(changed) - predictions)[:, 1] > 0
        assert moved.any() == known


def test_unknown_pixels_are_not_read():
    model = SimVP(known=NEXT, partial=True, **TINY)
    clips, mask = (part.astype(np.float32) for part in data(NEXT))
    variables = started(model, clips, mask)
    program = jax.jit(model.apply)
    apply = lambda *inputs: np.asarray(program(variables, *inputs))  # noqa: E731
    readable = (mask > 0) & np.array(NEXT)[:, None, None, None]
    predictions = apply(clips, mask)
    hidden = np.where(readable, clips, np.float32(np.nan))
    np.testing.assert_array_equal(predictions, apply(hidden, mask))
    # Black is not the same as unknown.
    black, lit = np.where(mask > 0, clips, np.float32(0)), np.ones_like(mask)
    assert np.abs(apply(black, lit) - predictions).max() > 1e-3
    # All frames are the model's.
    assert not (predictions == clips).any(axis=(0, 2, 3, 4)).all()


@pytest.mark.slow
def test_statistics_move_only_in_training_and_gradients_reach_every_parameter():
    model = SimVP(known=BETWEEN, drop_path=0.5, **TINY)
    clips = jnp.asarray(data(BETWEEN, batch=8)[0].astype(np.float32))
    variables = started(model, clips)

    def loss(params, key):
        predictions, changed = model.apply(
            {**variables, "params": params},
            clips,
            train=True,
            mutable=["statistics"],
            rngs={"dropout": key},
        )
        return jnp.square(predictions - clips).mean(), changed

    differentiate = jax.jit(jax.value_and_grad(loss, has_aux=True))
    run = lambda seed: jax.device_get(differentiate(variables["params"], jax.random.key(seed)))  # noqa: E731
    (one, changed), gradients = run(1)
    (other, _), _ = run(2)
    assert one != other  # other branches were dropped
    for before, after in zip(
        jax.tree.leaves(variables["statistics"]), jax.tree.leaves(changed), strict=True
    ):
        assert np.abs(after - np.asarray(before)).max() > 0
    for path, gradient in jax.tree_util.tree_leaves_with_path(gradients):
        assert np.isfinite(gradient).all() and np.abs(gradient).max() > 0, path


@pytest.mark.fast
def test_bfloat16_computes_and_float32_comes_out():
    model = SimVP(known=BETWEEN, dtype=jnp.bfloat16, **TINY)
    clips = jax.ShapeDtypeStruct((2, 5, 4, 6, 1), jnp.float32)
    variables = jax.eval_shape(model.init, jax.random.key(0), clips)
    assert {leaf.dtype.name for leaf in jax.tree.leaves(variables)} == {"float32"}

    def loss(variables, clips):
        predictions, _ = model.apply(variables, clips, train=True, mutable=["statistics"])
        assert predictions.dtype == jnp.float32
        return predictions.sum()

    program = str(jax.make_jaxpr(jax.grad(loss))(variables, clips))
    assert set(re.findall(r":(\w+)\[[\d,]*\] = conv_general_dilated", program)) == {"bf16"}


@pytest.mark.fast
def test_stochastic_depth_drops_whole_examples():
    branch = np.float32(np.arange(1, 65).reshape(64, 1, 1, 1) * np.ones((1, 2, 2, 3)))
    depth = StochasticDepth(0.75)
    drop = jax.jit(lambda key, x: depth.apply({}, x, True, rngs={"dropout": key}))
    kept = np.asarray(drop(jax.random.key(0), branch)) / branch
    assert set(np.unique(np.round(kept, 5))) == {0.0, 4.0}
    assert (kept == kept[:, :1, :1, :1]).all()
    assert 6 <= int((kept[:, 0, 0, 0] > 0).sum()) <= 26  # 16 expected, 3.5 the deviation
    branch = jnp.asarray(branch)
    assert depth.apply({}, branch, False) is branch


@pytest.mark.fast
@pytest.mark.parametrize(
    ("settings", "shape", "masked", "message"),
    [
        ({"known": (True, True)}, (1, 2, 4, 4, 1), False, "known = .*mark some frames"),
        ({"known": (False, False)}, (1, 2, 4, 4, 1), False, "known = .*mark some frames"),
        ({}, (1, 5, 4, 4, 1), False, "clips of 5 frames of 1 channels .* known, of 4 frames"),
        ({}, (1, 4, 4, 4, 3), False, "3 channels do not fit .*channels = 1"),
        ({}, (1, 4, 4, 4, 1), True, "partial = false takes no mask"),
        ({"partial": True}, (1, 4, 4, 4, 1), False, "partial = true needs a mask"),
        ({"spatial_layers": 1}, (1, 4, 4, 4, 1), False, "spatial_layers = 1 .*at least 2"),
        ({"spatial_layers": 4}, (1, 4, 8, 6, 1), False, "8 x 6 pixels .* multiples of 4"),
        ({"spatial_features": 3}, (1, 4, 4, 4, 1), False, "spatial_features = 3 must be even"),
        (
            {"translator": "inception", "temporal_features": 24},
            (1, 4, 4, 4, 1),
            False,
            "temporal_features = 24 .* multiple of 16",
        ),
        (
            {"translator": "inception", "spatial_features": 2},
            (1, 4, 4, 4, 1),
            False,
            "spatial_features = 2 times 2 predicted frames",
        ),
    ],
)
def test_what_does_not_fit_is_named(settings, shape, masked, message):
    model = SimVP(**{"known": NEXT, **TINY, **settings})
    mask = jnp.ones((*shape[:4], 1)) if masked else None
    with pytest.raises(UserError, match=message):
        jax.eval_shape(model.init, jax.random.key(0), jnp.zeros(shape), mask)
