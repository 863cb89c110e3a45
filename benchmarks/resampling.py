"""Resampling on a CPU: genjax's form for it, and the depthwise convolution that is usual."""

import time
from typing import Any

import numpy as np

from benchmarks.harness import Call, program_memory

SHAPE = (16, 32, 32, 64)
"""Batch, height, width and channels of the images that double in size."""

TAPS = (0.125, 0.375, 0.375, 0.125)


def upsampling(form: str, gradient: bool) -> tuple[Call, dict[str, Any]]:
    """Double the size of images through a filter of four taps.

    Args:
        form: "genjax" or "depthwise".
        gradient: whether the pass back is timed too.
    """
    import jax
    import jax.numpy as jnp

    from genjax.nn.resample import upsample2d
    from genjax.parallel import platform

    platform.start(platform.PlatformConfig(compilation_cache=""))

    def forward(images: Any) -> Any:
        return depthwise(images) if form == "depthwise" else upsample2d(images, TAPS)

    images = jnp.asarray(np.random.default_rng(0).normal(size=SHAPE), jnp.float32)
    cotangent = jnp.asarray(np.random.default_rng(1).normal(size=forward(images).shape), "float32")

    def both(images: Any, cotangent: Any) -> Any:
        outputs, pullback = jax.vjp(forward, images)
        return outputs, pullback(cotangent)

    began = time.perf_counter()
    function, arguments = (both, (images, cotangent)) if gradient else (forward, (images,))
    compiled = jax.jit(function).lower(*arguments).compile()
    facts = {"compile_seconds": time.perf_counter() - began, "memory": program_memory(compiled)}
    return lambda: jax.block_until_ready(compiled(*arguments)), facts


def depthwise(images: Any) -> Any:
    """`upsample2d` in one convolution: zeros inserted by dilation, one group a channel."""
    import jax.numpy as jnp
    from jax import lax

    channels = images.shape[-1]
    taps = 4.0 * np.outer(TAPS, TAPS)[:, :, None, None]
    return lax.conv_general_dilated(
        images,
        jnp.asarray(np.tile(taps, (1, 1, 1, channels)), images.dtype),
        window_strides=(1, 1),
        padding=((2, 2), (2, 2)),
        lhs_dilation=(2, 2),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=channels,
    )
