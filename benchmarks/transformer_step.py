"""Time one training step of the transformer against PyTorch, on a CPU.

    python -m benchmarks.transformer_step [--threads 1] [--torch-compile]

The shape is nanoGPT's recipe for a CPU. A step is forward, backward, clipping by global norm and
AdamW with weight decay on matrices, in float32. Each framework runs in a process of its own, so
that neither thread pool nor allocator of one disturbs the other; blocks of steps alternate, each
after an untimed step, and every timed step waits for its loss.
"""

import argparse
import multiprocessing
import os
import statistics
import time
from collections.abc import Callable
from importlib.metadata import version
from multiprocessing.connection import Connection
from typing import Any

import numpy as np

SHAPE = {
    "vocab_size": 65,
    "context_length": 64,
    "num_layers": 4,
    "num_heads": 4,
    "hidden_size": 128,
}
BATCH_SIZE = 12


def make_jax_step(**model_fields: Any) -> Callable[[np.ndarray, np.ndarray], float]:
    """The training step in JAX, with nanoGPT's choices unless `model_fields` says otherwise."""
    import jax
    import optax

    from genjax.optim import AdamWConfig, ScheduleConfig, make_optimizer
    from genjax.parallel.allocator import keep_freed_memory
    from genjax.text.transformer import Transformer

    keep_freed_memory()

    model = Transformer(**{**SHAPE, "use_bias": False, "activation": "gelu_exact"} | model_fields)
    optimizer = make_optimizer(
        AdamWConfig(
            learning_rate=1e-3,
            beta2=0.99,
            weight_decay=0.1,
            clip_norm=1.0,
            schedule=ScheduleConfig(kind="constant"),
        ),
        steps=1000,
    )
    tokens = np.zeros((BATCH_SIZE, SHAPE["context_length"]), np.int32)
    params = jax.jit(model.init)(jax.random.key(0), tokens)["params"]
    state = (params, jax.jit(optimizer.init)(params))

    def train_step(state: Any, inputs: Any, targets: Any) -> tuple[Any, dict[str, Any]]:
        params, opt_state = state

        def loss(params: Any) -> Any:
            variables = {"params": params}
            hidden, _ = model.apply(variables, inputs, method="hidden", train=True)
            losses: Any = model.apply(variables, hidden, targets, method="losses")
            return losses.mean()

        value, gradients = jax.value_and_grad(loss)(params)
        updates, opt_state = optimizer.update(gradients, opt_state, params)
        metrics = {"loss": value, "grad_norm": optax.tree.norm(gradients)}
        return (optax.apply_updates(params, updates), opt_state), metrics

    compiled = jax.jit(train_step, donate_argnums=0)

    def step(inputs: np.ndarray, targets: np.ndarray) -> float:
        nonlocal state
        state, metrics = compiled(state, inputs, targets)
        return float(metrics["loss"])

    return step


def make_torch_step(compile: bool) -> Callable[[np.ndarray, np.ndarray], float]:
    """The training step in PyTorch."""
    import torch

    from benchmarks.peers import nanogpt_torch

    torch.set_num_threads(len(os.sched_getaffinity(0)))
    step = nanogpt_torch.make_step(**SHAPE, compile=compile)
    return lambda inputs, targets: step(
        torch.from_numpy(inputs).long(), torch.from_numpy(targets).long()
    )


STEPS = {
    "genjax": make_jax_step,
    "torch eager": lambda: make_torch_step(compile=False),
    "torch compiled": lambda: make_torch_step(compile=True),
}


def _serve(name: str, connection: Connection) -> None:
    """Time blocks of steps of one framework, as many as are asked for, until asked for none."""
    step = STEPS[name]()
    rng = np.random.default_rng(0)
    while block_size := connection.recv():
        times = []
        for _ in range(block_size + 1):
            inputs, targets = rng.integers(
                SHAPE["vocab_size"],
                size=(2, BATCH_SIZE, SHAPE["context_length"]),
                dtype=np.int32,
            )
            start = time.perf_counter()
            step(inputs, targets)
            times.append(1e3 * (time.perf_counter() - start))
        connection.send(times[1:])


def time_interleaved(names: list[str], blocks: int, block_size: int) -> dict[str, list[float]]:
    """Milliseconds of every timed step, by name; the first block of each is not counted."""
    context = multiprocessing.get_context("spawn")
    connections = {}
    workers = []
    for name in names:
        connections[name], other = context.Pipe()
        workers.append(context.Process(target=_serve, args=(name, other), daemon=True))
        workers[-1].start()
    times: dict[str, list[float]] = {name: [] for name in names}
    for block in range(blocks + 1):
        for name, connection in connections.items():
            connection.send(block_size)
            values = connection.recv()
            if block:
                times[name] += values
    for connection, worker in zip(connections.values(), workers, strict=True):
        connection.send(0)
        worker.join()
    return times


def main() -> None:
    """Print the median step time of each and the ratio to PyTorch."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--threads", type=int, help="processor cores to use; all by default")
    parser.add_argument("--blocks", type=int, default=15, help="blocks of steps of each")
    parser.add_argument("--block-size", type=int, default=20, help="timed steps in a block")
    parser.add_argument("--torch-compile", action="store_true", help="also time torch.compile")
    arguments = parser.parse_args()
    if arguments.threads:
        # The workers inherit it, and both frameworks size their thread pools by it.
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: arguments.threads])
    names = [name for name in STEPS if name != "torch compiled" or arguments.torch_compile]
    times = time_interleaved(names, arguments.blocks, arguments.block_size)
    print(
        f"jax {version('jax')}, torch {version('torch')}, "
        f"{len(os.sched_getaffinity(0))} cores, XLA_FLAGS={os.environ.get('XLA_FLAGS', '')!r}"
    )
    reference = statistics.median(times["torch eager"])
    for name, values in times.items():
        median = statistics.median(values)
        low, high = np.quantile(values, [0.1, 0.9])
        print(
            f"{name:15s} {median:7.2f} ms a step (10-90%: {low:.2f}-{high:.2f}), "
            f"{median / reference:.2f}x torch eager"
        )


if __name__ == "__main__":
    main()
