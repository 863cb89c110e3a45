"""Recurrent frame prediction in float64 numpy, from the papers' equations, frame by frame.

A roll-out of S steps may read the frames [B, S, H, W, C], each where `feed`, [B, S] or
[B, S, H, W, 1], is 1, and what the step before predicted where it is 0. With each frame it may
read hints [B, S, H, W, Q]. It predicts frames [B, S, H, W, C].
"""

import autograd.numpy as anp
import numpy as np

from tests.nn.convolutional_recurrence_reference import conv, conv_lstm, spatio_temporal_lstm


def patchify(images, patch):
    """[B, H, W, C] to [B, H / p, W / p, p p C]; channels by row, column, channel."""
    batch, height, width, channels = images.shape
    shape = (batch, height // patch, patch, width // patch, patch, channels)
    images = anp.transpose(anp.reshape(images, shape), (0, 1, 3, 2, 4, 5))
    return anp.reshape(images, (*images.shape[:3], patch * patch * channels))


def unpatchify(patches, patch):
    batch, rows, columns, depth = patches.shape
    shape = (batch, rows, columns, patch, patch, depth // patch**2)
    patches = anp.transpose(anp.reshape(patches, shape), (0, 1, 3, 2, 4, 5))
    return anp.reshape(patches, (batch, rows * patch, columns * patch, -1))


def roll_out(step, state, frames, feed, patch, hints=None):
    """What `step(state, patches) -> (state, patches)` predicts, one frame after the other."""
    feed = feed[:, :, None, None, None] if feed.ndim == 2 else feed
    prediction, predictions = np.zeros(frames[:, 0].shape), []
    for t in range(feed.shape[1]):
        seen = feed[:, t] * frames[:, t] + (1 - feed[:, t]) * prediction
        x = patchify(seen, patch)
        if hints is not None:
            x = anp.concatenate([x, patchify(hints[:, t], patch)], axis=-1)
        state, patches = step(state, x)
        prediction = unpatchify(patches, patch)
        predictions.append(prediction)
    return anp.stack(predictions, axis=1)


def zeros(frames, patch, features):
    batch, _, height, width, _ = frames.shape
    return np.zeros((batch, height // patch, width // patch, features))


def conv_lstm_predictor(layers, output, frames, feed, patch, hints=None, forget_bias=0):
    """A stack of ConvLSTMs, a 1x1 convolution of the top layer's h to the next frame.

    Args:
        layers: for each layer the kernels of its inputs and of its state, for i, f, g and o.
        output: the last kernel, [1, 1, F, p p C].
        frames: what steps may read.
        feed: where they read it.
        patch: height and width p of patches.
        hints: what they also read.
        forget_bias: added to the forget gates.
    """
    blank = [zeros(frames, patch, states[0].shape[-1]) for _, states in layers]

    def step(state, x):
        after = []
        for (h, c), (inputs, states) in zip(state, layers, strict=True):
            x, c = conv_lstm(x, h, c, inputs, states, forget_bias=forget_bias)
            after.append((x, c))
        return after, conv(x, output)

    return roll_out(step, [(h, h) for h in blank], frames, feed, patch, hints)


def predrnn(layers, output, frames, feed, patch, hints=None, forget_bias=1):
    """A stack of ST-LSTMs; the memory climbs it, and goes on at the bottom in the next step.

    Args:
        layers: the weights of each layer, as `spatio_temporal_lstm` takes them.
        output: the last kernel, [1, 1, F, p p C].
        frames: what steps may read.
        feed: where they read it.
        patch: height and width p of patches.
        hints: what they also read.
        forget_bias: added to both forget gates.
    """

    def step(state, x):
        (pairs, m), after = state, []
        for (h, c), weights in zip(pairs, layers, strict=True):
            x, c, m = spatio_temporal_lstm(x, h, c, m, weights, forget_bias)
            after.append((x, c))
        return (after, m), conv(x, output)

    blank = [zeros(frames, patch, weights["h"][0].shape[-1]) for weights in layers]
    state = ([(h, h) for h in blank], blank[0])
    return roll_out(step, state, frames, feed, patch, hints)
