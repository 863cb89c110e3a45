"""Three-dimensional convolutions in float64 numpy, from their definition.

Letters: B batch, T time, H height, W width, C input channels, F output channels; J, K, L frames,
rows and columns of a kernel.
"""

import itertools

import numpy as np


def padded(clips, padding):
    (time, space) = padding
    return np.pad(clips, ((0, 0), (time, time), (space, space), (space, space), (0, 0)))


def places(counts, stride, offset):
    """For each axis the places that one number of the kernel reads."""
    steps = (stride[0], stride[1], stride[1])
    return np.ix_(*(o + s * np.arange(n) for o, s, n in zip(offset, steps, counts, strict=True)))


def conv3d(clips, kernel, stride, padding):
    """[B, T, H, W, C] with [J, K, L, C, F] to [B, T2, H2, W2, F]."""
    clips = padded(np.asarray(clips, np.float64), padding)
    steps = (stride[0], stride[1], stride[1])
    counts = [
        (n - k) // s + 1 for n, k, s in zip(clips.shape[1:4], kernel.shape, steps, strict=False)
    ]
    outputs = np.zeros((len(clips), *counts, kernel.shape[4]))
    for offset in itertools.product(*map(range, kernel.shape[:3])):
        outputs += clips[:, *places(counts, stride, offset)] @ kernel[offset]
    return outputs


def conv_transpose3d(clips, kernel, stride, padding):
    """[B, T, H, W, F] with [J, K, L, C, F] to [B, T2, H2, W2, C]: every input adds its kernel."""
    steps = (stride[0], stride[1], stride[1])
    counts = clips.shape[1:4]
    full = [s * (n - 1) + k for s, n, k in zip(steps, counts, kernel.shape, strict=False)]
    outputs = np.zeros((len(clips), *full, kernel.shape[3]))
    for offset in itertools.product(*map(range, kernel.shape[:3])):
        outputs[:, *places(counts, stride, offset)] += clips @ kernel[offset].T
    (time, space) = padding
    t, h, w = full
    return outputs[:, time : t - time, space : h - space, space : w - space]
