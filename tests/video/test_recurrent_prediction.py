"""Roll-outs of recurrent predictors against their equations in float64, and published counts."""

import autograd
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from genjax.flops import count_flops
from genjax.video.recurrent_prediction import ConvLSTMPredictor, PredRNNPredictor
from tests.image.gan_reference import greatest_error, relative_error
from tests.nn.convolutional_recurrence_reference import both_parts, spatio_temporal_weights
from tests.video import prediction_reference as reference

B, H, W, C, P = 2, 8, 12, 1, 4
PAST, FUTURE = 10, 10
T = PAST + FUTURE


def make(kind, known, **options):
    options = {"kernel_size": 3, "patch_size": P, "dtype": jnp.float64} | options
    if kind == "convlstm":
        return ConvLSTMPredictor(known, features=(3, 4), **options)
    return PredRNNPredictor(known, features=3, num_layers=2, **options)


def predict(past, future):
    return (True,) * past + (False,) * future


def randomized(module, *arguments, scale=1.0):
    """Random parameters, of `scale` over the root of how many inputs each sums up."""
    with jax.enable_x64(True):
        tree = jax.eval_shape(module.init, jax.random.key(0), *arguments)["params"]
    rng = np.random.default_rng(1)
    return jax.tree.map(
        lambda a: scale / np.sqrt(np.prod(a.shape[:-1])) * rng.normal(size=a.shape), tree
    )


def run(module, params, *arguments):
    with jax.enable_x64(True):
        return np.asarray(jax.jit(module.apply)({"params": params}, *arguments))


def expected(kind, params, frames, feed, hints=None):
    """The reference's predictions with the same parameters."""
    output, count = params["output_kernel"], 0
    layers = []
    if kind == "convlstm":
        while (name := f"layers_{count}_kernel") in params:
            layers.append(both_parts(params[name], 4))
            count += 1
        return reference.conv_lstm_predictor(layers, output, frames, feed, P, hints)
    while f"layers_{count}_temporal_kernel" in params:
        names = [f"layers_{count}_{n}_kernel" for n in ("temporal", "spatial", "output", "merge")]
        layers.append(spatio_temporal_weights(*(params[name] for name in names)))
        count += 1
    return reference.predrnn(layers, output, frames, feed, P, hints)


def clips_and_feed(past=PAST, future=FUTURE, drawn=0):
    """Random clips, which of the last inputs is the truth, and the same for all inputs."""
    rng = np.random.default_rng(0)
    clips = rng.random((B, past + future, H, W, C))
    every = np.repeat([[1.0] * past + [0.0] * (future - 1)], B, axis=0)
    if not drawn:
        return clips, None, every
    feed = rng.random((B, drawn)) < 0.5
    every[:, -drawn:] = feed
    return clips, feed, every


@pytest.mark.parametrize(
    "kind,drawn,remat",
    [
        ("convlstm", 0, False),
        ("predrnn", 9, False),
        ("convlstm", 18, True),
        pytest.param("predrnn", 0, False, marks=pytest.mark.slow),
        pytest.param("convlstm", 9, False, marks=pytest.mark.slow),
        pytest.param("predrnn", 18, True, marks=pytest.mark.slow),
    ],
)
def test_twenty_frames(kind, drawn, remat):
    """The future unseen; scheduled sampling of the future; reverse scheduled of both halves."""
    clips, feed, every = clips_and_feed(drawn=drawn)
    module = make(kind, predict(PAST, FUTURE), remat=remat)
    program = jax.jit(module.apply)
    for scale in (1.0, 3.0):
        params = randomized(module, clips, scale=scale)
        with jax.enable_x64(True):
            ours = np.asarray(program({"params": params}, clips, None, feed))
        np.testing.assert_array_equal(ours[:, 0], clips[:, 0])
        theirs = expected(kind, params, clips, every)
        # Not a silent net: what it says of the last frame differs from place to place.
        assert theirs[:, -1].std() > 1e-4 * scale
        assert relative_error(ours[:, 1:], theirs) <= 1e-12


@pytest.mark.parametrize(
    "kind,remat",
    [
        ("convlstm", False),
        ("predrnn", True),
        pytest.param("convlstm", True, marks=pytest.mark.slow),
    ],
)
def test_gradients_of_a_roll_out(kind, remat):
    clips, feed, every = clips_and_feed(3, 3, drawn=2)
    module = make(kind, predict(3, 3), remat=remat)
    params = randomized(module, clips, scale=2.0)

    def theirs(params):
        return ((expected(kind, params, clips, every) - clips[:, 1:]) ** 2).mean()

    gradients = autograd.grad(theirs)(params)
    with jax.enable_x64(True):

        @jax.jit
        @jax.grad
        def ours(params, clips, feed):
            predictions = module.apply({"params": params}, clips, None, feed)
            return jnp.mean((predictions - clips)[:, 1:] ** 2)

        assert greatest_error(ours(params, clips, feed), gradients) <= 1e-11


@pytest.mark.parametrize("kind", ["convlstm", "predrnn"])
def test_between_frames_it_sees_the_end_of_the_gap(kind):
    """Steps also read the known frame that ends the gap, and how near it is."""
    known = (True, True, False, False, True)
    clips = np.random.default_rng(0).random((B, 5, H, W, C))
    module = make(kind, known)
    params = randomized(module, clips, scale=2.0)
    feed = np.repeat([[1.0, 1.0, 0.0]], B, axis=0)
    near = [1 / (1 + 4 - target) for target in (1, 2, 3)]
    hints = np.stack([np.concatenate([clips[:, 4], np.full((B, H, W, 1), n)], -1) for n in near], 1)
    ours = run(module, params, clips)
    np.testing.assert_array_equal(ours[:, [0, 4]], clips[:, [0, 4]])
    theirs = expected(kind, params, clips, feed, hints)
    assert relative_error(ours[:, 1:4], theirs) <= 1e-12


def test_of_frames_with_holes_it_predicts_all_of_each():
    """Each step sees the frame before with its holes filled, and this one with its holes black."""
    rng = np.random.default_rng(0)
    clips = rng.random((B, 3, H, W, C))
    mask = (rng.random((B, 3, H, W, 1)) < 0.6).astype(np.float64)
    module = make("convlstm", (True,) * 3, partial=True)
    params = randomized(module, clips, mask, scale=2.0)
    before = np.concatenate([np.zeros((B, 1, H, W, C)), clips[:, :2]], axis=1)
    feed = np.concatenate([np.ones((B, 1, H, W, 1)), mask[:, :2]], axis=1)
    hints = np.concatenate([clips * mask, mask, np.ones((B, 3, H, W, 1))], axis=-1)
    theirs = expected("convlstm", params, before, feed, hints)
    assert relative_error(run(module, params, clips, mask), theirs) <= 1e-12


@pytest.mark.parametrize("known", [predict(2, 3), (True, False, False, True, False)])
def test_unknown_frames_are_not_looked_at(known):
    clips = np.random.default_rng(0).random((B, 5, H, W, C))
    module = make("convlstm", known)
    params = randomized(module, clips)
    hidden = np.where(np.array(known)[:, None, None, None], clips, np.nan)
    ours = run(module, params, clips)
    assert np.isfinite(ours).all()
    np.testing.assert_array_equal(run(module, params, hidden), ours)


def test_a_longer_roll_out_begins_the_same():
    clips = np.random.default_rng(0).random((B, 12, H, W, C))
    short, long = make("predrnn", predict(3, 2)), make("predrnn", predict(3, 9))
    params = randomized(short, clips[:, :5])
    ours = run(long, params, clips)
    np.testing.assert_allclose(ours[:, 3:5], run(short, params, clips[:, :5])[:, 3:], rtol=1e-12)
    assert ours[:, 5:].std() > 1e-3


@pytest.mark.fast
def test_a_clip_that_does_not_fit_is_refused():
    clips = np.zeros((B, 5, H, W, C))
    module = make("convlstm", predict(3, 3))
    with pytest.raises(ValueError, match=r"5 frames.*known.*6"):
        jax.eval_shape(module.init, jax.random.key(0), clips)
    with pytest.raises(ValueError, match="mask"):
        jax.eval_shape(make("convlstm", predict(3, 2)).init, jax.random.key(0), clips, clips)


@pytest.mark.fast
@pytest.mark.parametrize(
    "model,parameters,giga",
    [
        (ConvLSTMPredictor, 25 * 128 * 4 * (16 + 128 + 3 * 256) + 128 * 16, 56.8),
        (
            PredRNNPredictor,
            25 * 128 * (7 * (16 + 3 * 128) + 4 * (4 + 3 + 2) * 128) + 4 * 2 * 128 * 128 + 128 * 16,
            116.0,
        ),
    ],
    ids=["ConvLSTM-S", "PredRNN"],
)
def test_published_counts(model, parameters, giga):
    """OpenSTL's Moving MNIST rows: 11.67 M that are used and 56.8 G, 23.84 M and 116.0 G."""
    module = model(predict(10, 10))
    clips = jax.ShapeDtypeStruct((1, 20, 64, 64, 1), jnp.float32)
    params = jax.eval_shape(module.init, jax.random.key(0), clips)
    count = sum(leaf.size for leaf in jax.tree.leaves(params))
    assert count == parameters
    # Each weight meets every patch of 16 x 16 at each of 19 steps.
    multiply_adds = count_flops(module.apply, params, clips) / 2
    assert multiply_adds == count * 16 * 16 * 19
    assert round(multiply_adds / 1e9, 1) == giga
    assert round(count / 1e6, 2) == {56.8: 11.68, 116.0: 23.84}[giga]


@pytest.mark.slow
def test_steps_computed_again_take_less_than_a_third_of_the_memory():
    """Compiled, not run: ConvLSTM-S with 16 clips of 20 frames."""
    clips = jax.ShapeDtypeStruct((16, 20, 64, 64, 1), jnp.float32)

    def temporary(remat):
        module = ConvLSTMPredictor(predict(10, 10), remat=remat)
        params = jax.eval_shape(module.init, jax.random.key(0), clips)
        loss = lambda params, clips: jnp.mean((module.apply(params, clips) - clips)[:, 1:] ** 2)  # noqa: E731
        compiled = jax.jit(jax.grad(loss)).lower(params, clips).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    assert temporary(True) <= 0.3 * temporary(False)
