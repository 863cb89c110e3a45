"""Decoding one text: tokens a second with the cache, beside the same loop without one.

Both write greedily from a one-token prompt with the same
parameters and must write the same tokens. Without a cache every token costs a forward pass over the
text so far, rounded up to 32 tokens (one compiled program per length), with the logits of the last
position alone: the work of a loop that calls the model anew for each token, without its overhead.
The runs are interleaved; compilation is left out; the medians are compared.
"""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int

from genjax.text.decoding import generate
from genjax.text.decoding_loop import LanguageModel
from genjax.text.logits import Sampling
from genjax.text.transformer import Transformer

GREEDY = Sampling(temperature=0.0)
WINDOW_BLOCK = 32


@dataclass(frozen=True)
class DecodingSpeed:
    """Median speeds of decoding a batch of one.

    Attributes:
        num_tokens: Tokens written in each run.
        cached: Tokens a second with the cache.
        uncached: Tokens a second without it.
        same_text: Whether both wrote the same tokens.
    """

    num_tokens: int
    cached: float
    uncached: float
    same_text: bool

    @property
    def ratio(self) -> float:
        """How many times faster decoding is with the cache."""
        return self.cached / self.uncached


@partial(jax.jit, static_argnames=("model", "window"), donate_argnames=("tokens",))
def _extend(
    model: LanguageModel, params: Any, tokens: Int[Array, "B L"], begin: Array, window: int
) -> Int[Array, "B L"]:
    """Write the tokens from `begin` + 1 to `window`, reading the first `window` for each."""

    def step(position: Array, tokens: Array) -> Array:
        variables = {"params": params}
        hidden, _ = model.apply(variables, tokens[:, :window], None, method="hidden")
        last = jax.lax.dynamic_index_in_dim(hidden, position, axis=1, keepdims=False)
        following = jnp.argmax(model.apply(variables, last, method="logits"), axis=-1)
        return jax.lax.dynamic_update_slice(
            tokens, following[:, None].astype(tokens.dtype), (0, position + 1)
        )

    return jax.lax.fori_loop(begin, window, step, tokens)


def _without_cache(model: LanguageModel, params: Any, num_tokens: int) -> np.ndarray:
    tokens = jnp.zeros((1, num_tokens + 1), jnp.int32)
    for begin in range(0, num_tokens, WINDOW_BLOCK):
        window = min(begin + WINDOW_BLOCK, num_tokens)
        tokens = _extend(model, params, tokens, jnp.asarray(begin), window)
    return np.asarray(tokens)[0, 1:]


def _with_cache(model: LanguageModel, params: Any, num_tokens: int) -> np.ndarray:
    chunks = generate(
        model,
        params,
        [np.zeros(1, np.int32)],
        key=jax.random.key(0),
        max_tokens=num_tokens,
        sampling=GREEDY,
        chunk=num_tokens,
    )
    return np.concatenate([chunk.tokens[0] for chunk in chunks])


def measure_decoding(
    model: LanguageModel, params: Any, num_tokens: int = 256, repetitions: int = 5
) -> DecodingSpeed:
    """Time decoding with and without the cache, interleaved.

    Args:
        model: Reads at least `num_tokens` positions.
        params: Its parameters.
        num_tokens: Tokens to write in each run.
        repetitions: Timed runs of each; one more of each, untimed, compiles.
    """
    runs: dict[str, Callable[[], np.ndarray]] = {
        "cached": partial(_with_cache, model, params, num_tokens),
        "uncached": partial(_without_cache, model, params, num_tokens),
    }
    texts = {name: run() for name, run in runs.items()}
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(repetitions):
        for name, run in runs.items():
            begin = time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - begin)
    speed = {name: num_tokens / statistics.median(times) for name, times in seconds.items()}
    same_text = bool(np.array_equal(texts["cached"], texts["uncached"]))
    return DecodingSpeed(num_tokens, speed["cached"], speed["uncached"], same_text)


def decoding_speed(num_tokens: int = 256, repetitions: int = 5) -> DecodingSpeed:
    """The speed of a byte-level GPT of 4 layers of width 128, in float32."""
    model = Transformer(
        vocab_size=256,
        context_length=num_tokens,
        num_layers=4,
        num_heads=4,
        hidden_size=128,
    )
    params = jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, 8), jnp.int32))["params"]
    return measure_decoding(model, params, num_tokens, repetitions)
