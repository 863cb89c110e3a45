"""Time one recurrent layer, forward and backward, against PyTorch on a CPU.

    python -m benchmarks.recurrent_layers [--threads 2] [--repeats 20]

Gradients are taken with respect to the inputs, the initial states and all parameters, in float32.
Both run in one process, one call each in turn, with a pause between them for the other's idle
threads to fall asleep. A ratio below 1 means that genjax is faster.
"""

import argparse
import os
import statistics
import time
from collections.abc import Callable
from typing import Any, NamedTuple


class Shape(NamedTuple):
    """Sizes of one layer's work; inputs are as wide as the hidden state."""

    batch_size: int
    length: int
    hidden_size: int


class Result(NamedTuple):
    """Seconds of one forward and backward pass; medians, and the median of paired ratios."""

    cell: str
    shape: Shape
    genjax: float
    torch: float
    ratio: float


SHAPES = (Shape(20, 35, 650), Shape(32, 128, 512))
CELLS = ("lstm", "gru", "elman")
PAUSE = 0.01
"""Seconds for which the threads of both libraries are left to go idle between calls."""


def make_jax_pass(cell: str, shape: Shape) -> Callable[[], object]:
    """A forward and backward pass of the layer in genjax."""
    import jax
    import jax.numpy as jnp

    from genjax.nn.recurrent import elman, gru, lstm

    layer: Any = {"lstm": lstm, "gru": gru, "elman": elman}[cell]
    batch, length, size = shape
    width = {"lstm": 4, "gru": 3, "elman": 1}[cell] * size
    state_shapes = [(batch, size)] * (2 if cell == "lstm" else 1)
    weight_shapes = [(size, width), (size, width), (width,)]
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
    return lambda: jax.block_until_ready(gradient(*arguments))


def make_torch_pass(cell: str, shape: Shape) -> Callable[[], object]:
    """The same pass in PyTorch."""
    import torch

    batch, length, size = shape
    module = {"lstm": torch.nn.LSTM, "gru": torch.nn.GRU, "elman": torch.nn.RNN}[cell](size, size)
    x = torch.randn(length, batch, size, requires_grad=True)
    states = [
        torch.zeros(1, batch, size, requires_grad=True) for _ in range(2 if cell == "lstm" else 1)
    ]

    def run() -> None:
        for tensor in (x, *states, *module.parameters()):
            tensor.grad = None
        y, _ = module(x, tuple(states) if cell == "lstm" else states[0])
        y.sum().backward()

    return run


def measure(cell: str, shape: Shape, repeats: int = 20) -> Result:
    """Times both libraries in turn; the ratio is the median over pairs of neighbouring calls."""
    passes = [make_jax_pass(cell, shape), make_torch_pass(cell, shape)]
    seconds: list[list[float]] = [[], []]
    for repeat in range(-2, repeats):
        for run, times in zip(passes, seconds, strict=True):
            time.sleep(PAUSE)
            start = time.perf_counter()
            run()
            if repeat >= 0:
                times.append(time.perf_counter() - start)
    ratio = statistics.median(a / b for a, b in zip(*seconds, strict=True))
    return Result(cell, shape, statistics.median(seconds[0]), statistics.median(seconds[1]), ratio)


def main() -> None:
    """Print a table of all cells and shapes."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="of PyTorch")
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--cell", choices=CELLS, action="append", help="all if not given")
    options = parser.parse_args()

    import torch

    torch.set_num_threads(options.threads)
    print("layer  batch steps hidden  genjax ms  torch ms ratio")
    for shape in SHAPES:
        for cell in options.cell or CELLS:
            r = measure(cell, shape, options.repeats)
            sizes = f"{shape.batch_size:5} {shape.length:5} {shape.hidden_size:6}"
            print(f"{cell:6} {sizes} {r.genjax * 1e3:10.1f} {r.torch * 1e3:9.1f} {r.ratio:5.2f}")


if __name__ == "__main__":
    main()
