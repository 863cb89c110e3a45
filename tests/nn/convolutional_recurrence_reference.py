"""Recurrent cells whose products are convolutions, in float64 numpy that autograd differentiates.

Each is one step, written equation by equation with a kernel for each gate. Kernels are
[K, K, in, out] with odd K, images [B, H, W, C]; biases are numbers or [F].
"""

import autograd.numpy as anp


def conv(images, kernel):
    """Cross-correlation with zeros around the images, as large as they are."""
    size = kernel.shape[0]
    assert size == kernel.shape[1]
    assert size % 2 == 1
    height, width = images.shape[1:3]
    half = size // 2
    padded = anp.pad(images, ((0, 0), (half, half), (half, half), (0, 0)), "constant")
    return sum(
        anp.dot(padded[:, i : i + height, j : j + width], kernel[i, j])
        for i in range(size)
        for j in range(size)
    )


def sigmoid(x):
    return 1 / (1 + anp.exp(-x))


def conv_lstm(x, h, c, inputs, states, biases=(0, 0, 0, 0), forget_bias=0):
    """Shi et al. 2015 without peepholes.

    `inputs` and `states` are the kernels of x and of h for i, f, g and o.
    """
    i, f, g, o = (
        conv(x, w) + conv(h, u) + b for w, u, b in zip(inputs, states, biases, strict=True)
    )
    c = sigmoid(f + forget_bias) * c + sigmoid(i) * anp.tanh(g)
    return sigmoid(o) * anp.tanh(c), c


def conv_gru(x, h, inputs, states, biases=(0, 0, 0)):
    """Ballas et al. 2016: `inputs` and `states` are for update, reset and candidate."""
    update = sigmoid(conv(x, inputs[0]) + conv(h, states[0]) + biases[0])
    reset = sigmoid(conv(x, inputs[1]) + conv(h, states[1]) + biases[1])
    candidate = anp.tanh(conv(x, inputs[2]) + conv(reset * h, states[2]) + biases[2])
    return (1 - update) * h + update * candidate


def spatio_temporal_lstm(x, h, c, m, weights, forget_bias=1):
    """Wang et al. 2017 (PredRNN).

    `weights` has "x": 7 kernels for i, f, g, i', f', g', o; "h": 4 for i, f, g, o; "m": 3 for
    i', f', g'; "o" of the two memories side by side; "last" of the same, a single pixel; and
    optionally "biases": 7 as "x" has.
    """
    biases = weights.get("biases", (0,) * 7)
    i, f, g, i2, f2, g2, o = (conv(x, w) + b for w, b in zip(weights["x"], biases, strict=True))
    hi, hf, hg, ho = (conv(h, w) for w in weights["h"])
    mi, mf, mg = (conv(m, w) for w in weights["m"])
    c = sigmoid(f + hf + forget_bias) * c + sigmoid(i + hi) * anp.tanh(g + hg)
    m = sigmoid(f2 + mf + forget_bias) * m + sigmoid(i2 + mi) * anp.tanh(g2 + mg)
    memories = anp.concatenate([c, m], axis=-1)
    o = sigmoid(o + ho + conv(memories, weights["o"]))
    return o * anp.tanh(conv(memories, weights["last"])), c, m


def parts(kernel, count):
    """A fused kernel's last axis in `count` equal parts."""
    return anp.split(kernel, count, axis=-1)


def both_parts(kernel, count):
    """A kernel of inputs and then states in its third axis: `count` kernels of either."""
    channels = kernel.shape[2] - kernel.shape[3] // count
    return parts(kernel[:, :, :channels], count), parts(kernel[:, :, channels:], count)


def spatio_temporal_weights(temporal, spatial, output, merge):
    """Of fused kernels of [x, h] for i, f, g, o and of [x, m] for i', f', g'."""
    (i, f, g, o), states = both_parts(temporal, 4)
    primed, memories = both_parts(spatial, 3)
    return {"x": [i, f, g, *primed, o], "h": states, "m": memories, "o": output, "last": merge}
