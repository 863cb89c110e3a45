"""A training step of a GPT, in genjax and in PyTorch."""

import time
from typing import Any, NamedTuple

import numpy as np

from benchmarks.harness import Call, program_memory


class Shape(NamedTuple):
    """Sizes of a GPT and its batch."""

    batch_size: int
    context_length: int
    num_layers: int
    num_heads: int
    hidden_size: int
    vocab_size: int = 65


def _batch(shape: Shape) -> tuple[np.ndarray, np.ndarray]:
    tokens = np.random.default_rng(0).integers(
        shape.vocab_size, size=(2, shape.batch_size, shape.context_length), dtype=np.int32
    )
    return tokens[0], tokens[1]


def genjax_step(shape: Shape) -> tuple[Call, dict[str, Any]]:
    """The training step of the language-modelling task, as the loop compiles it."""
    import jax

    from genjax.config import check
    from genjax.parallel import platform
    from genjax.text.language_modeling_config import LanguageModelingConfig

    platform.start(platform.PlatformConfig(compilation_cache=""))
    tree = {
        "data": {
            "tokenizer": {"kind": "bytes"},
            "batching": {
                "batch_size": shape.batch_size,
                "sequence_length": shape.context_length,
            },
        },
        "model": {
            "num_layers": shape.num_layers,
            "num_heads": shape.num_heads,
            "hidden_size": shape.hidden_size,
            "activation": "gelu_exact",
            "use_bias": False,
        },
        "optimizer": {"beta2": 0.99, "weight_decay": 0.1},
    }
    task: Any = check(tree, LanguageModelingConfig).make_task()
    task.model = task.model.clone(vocab_size=shape.vocab_size)
    state = jax.jit(task.init)(jax.random.key(0))
    inputs, targets = _batch(shape)
    batch = {"inputs": inputs, "targets": targets}
    began = time.perf_counter()
    compiled = jax.jit(task.train_step, donate_argnums=0).lower(state, batch).compile()
    seconds = time.perf_counter() - began

    def call() -> float:
        nonlocal state
        state, metrics = compiled(state, batch)
        return float(metrics["loss"])

    tokens = shape.batch_size * shape.context_length
    flops = 3 * task.model.flops_per_token(shape.context_length) * tokens
    facts = {"flops": flops, "memory": program_memory(compiled), "compile_seconds": seconds}
    return call, facts


def torch_step(shape: Shape, compile: bool = False) -> tuple[Call, dict[str, Any]]:
    """The same step in PyTorch, eager or compiled."""
    import os

    import torch

    from benchmarks.peers import nanogpt_torch

    torch.set_num_threads(len(os.sched_getaffinity(0)))
    _, context_length, num_layers, num_heads, hidden_size, vocab_size = shape
    step = nanogpt_torch.make_step(
        vocab_size, context_length, num_layers, num_heads, hidden_size, compile=compile
    )
    inputs, targets = (torch.from_numpy(array).long() for array in _batch(shape))
    return lambda: step(inputs, targets), {}
