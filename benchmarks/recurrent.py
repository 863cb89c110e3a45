"""One recurrent layer, forward and backward, in genjax and in PyTorch.

Gradients are taken with respect to the inputs, the initial states and all parameters, in float32.
"""

import os
import time
from typing import Any, NamedTuple

from benchmarks.harness import Call, program_memory


class Shape(NamedTuple):
    """Sizes of one layer's work; inputs are as wide as the hidden state."""

    batch_size: int
    length: int
    hidden_size: int


def genjax_pass(cell: str, shape: Shape) -> tuple[Call, dict[str, Any]]:
    """A forward and backward pass of the layer in genjax."""
    import jax
    import jax.numpy as jnp

    from genjax.nn.recurrent import elman, gru, lstm
    from genjax.parallel import platform

    platform.start(platform.PlatformConfig(compilation_cache=""))
    layer: Any = {"lstm": lstm, "gru": gru, "elman": elman}[cell]
    batch, length, size = shape
    gates = {"lstm": 4, "gru": 3, "elman": 1}[cell]
    state_shapes = [(batch, size)] * (2 if cell == "lstm" else 1)
    weight_shapes = [(size, gates * size), (size, gates * size), (gates * size,)]
    if cell == "gru":
        weight_shapes.append((size,))
    keys = jax.random.split(jax.random.key(0), 1 + len(weight_shapes))
    arguments = [jax.random.normal(keys[0], (length, batch, size))]
    arguments += [jnp.zeros(s) for s in state_shapes]
    arguments += [
        jax.random.uniform(k, s, minval=-(size**-0.5), maxval=size**-0.5)
        for k, s in zip(keys[1:], weight_shapes, strict=True)
    ]
    gradient = jax.jit(
        jax.grad(lambda *a: layer(*a)[0].sum(), argnums=tuple(range(len(arguments))))
    )
    began = time.perf_counter()
    compiled = gradient.lower(*arguments).compile()
    seconds = time.perf_counter() - began
    # Input and recurrent products, forward and twice that backward, two operations each.
    flops = 3 * 2 * length * batch * 2 * size * gates * size
    facts = {"flops": flops, "memory": program_memory(compiled), "compile_seconds": seconds}
    return lambda: jax.block_until_ready(compiled(*arguments)), facts


def torch_pass(cell: str, shape: Shape) -> tuple[Call, dict[str, Any]]:
    """The same pass in PyTorch."""
    import torch

    torch.set_num_threads(len(os.sched_getaffinity(0)))
    batch, length, size = shape
    module = {"lstm": torch.nn.LSTM, "gru": torch.nn.GRU, "elman": torch.nn.RNN}[cell](size, size)
    x = torch.randn(length, batch, size, requires_grad=True)
    states = [
        torch.zeros(1, batch, size, requires_grad=True) for _ in range(2 if cell == "lstm" else 1)
    ]

    def call() -> None:
        for tensor in (x, *states, *module.parameters()):
            tensor.grad = None
        y, _ = module(x, tuple(states) if cell == "lstm" else states[0])
        y.sum().backward()

    return call, {}
