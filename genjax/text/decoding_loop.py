"""The jitted loop that writes text: one token a step, with a preallocated cache, for any model.

A transformer's key-value cache and a recurrent model's state are the same thing here: a carry that
`hidden` takes and returns. All rows of a batch stand at the same position. A row whose prompt is
longer than the others' is fed its prompt while they already write, so no padding is ever read.

A model that sees at most C positions (`context_length`) reads them in windows: when the cache is
full, the last C // 2 tokens are read into a fresh one and the text goes on. Where windows begin
depends on the position in the text alone, never on the batch or on chunks.

Shape letters: B batch, T time, L length of the token buffer, V vocabulary, S stop tokens.
"""

from functools import partial
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key

from genjax.text.logits import Sampling, draw, transform

# Prefills are rounded down to this, so that prompts of similar length share a compiled program.
# What is left over of the prompt is fed token by token.
PREFILL_BLOCK = 16


@runtime_checkable
class LanguageModel(Protocol):
    """What decoding asks of a Linen module, whose fields must be hashable.

    Reached through `apply`: `hidden(tokens, carry) -> (hidden, carry)` appends tokens `[B, T]`,
    `logits(hidden) -> [..., V]`, and `initial_carry(batch_size, length)`.
    """

    @property
    def vocab_size(self) -> int:
        """Number of token ids."""
        ...

    @property
    def context_length(self) -> int | None:
        """The most positions a carry can hold; None if there is no bound."""
        ...

    def apply(self, variables: Any, *args: Any, method: str, **kwargs: Any) -> Any:
        """Call a method of the module with its parameters."""
        ...


class Request(NamedTuple):
    """What stays fixed while a batch is written."""

    prompt_lengths: Int[Array, " B"]
    limits: Int[Array, " B"]  # length of prompt and output at which a row is done
    stop_tokens: Int[Array, " S"]
    row_keys: Key[Array, " B"]


class State(NamedTuple):
    """What the loop carries: `position` tokens are in the carry, the next one is in the buffer."""

    position: Int[Array, ""]
    tokens: Int[Array, "B L"]
    carry: Any
    done: Bool[Array, " B"]
    ends: Int[Array, " B"]  # length of prompt and output so far
    log_probs: Float[Array, "B L"] | None


def _read(model: LanguageModel, params: Any, tokens: Int[Array, "B T"], length: int) -> Any:
    """Return a fresh carry with room for a text of `length`, after reading `tokens`."""
    if model.context_length is not None:
        length = min(model.context_length, length)
    variables = {"params": params}
    carry = model.apply(variables, tokens.shape[0], length, method="initial_carry")
    if tokens.shape[1]:
        _, carry = model.apply(variables, tokens, carry, method="hidden")
    return carry


@partial(jax.jit, static_argnames=("model", "length"))
def _prefill(model: LanguageModel, params: Any, tokens: Int[Array, "B T"], length: int) -> Any:
    return _read(model, params, tokens, length)


def _next_refill(context_length: int, position: Any) -> Any:
    """The first position after `position` that finds the cache full, for numbers and arrays."""
    stride = context_length - context_length // 2
    windows = (position - context_length) // stride + 1
    return context_length + stride * (windows * (windows > 0))


def _step(
    model: LanguageModel, params: Any, request: Request, sampling: Sampling, state: State
) -> State:
    """Read one token a row and write the next one."""
    variables = {"params": params}
    position = state.position
    current = jax.lax.dynamic_slice_in_dim(state.tokens, position, 1, axis=1)
    hidden, carry = model.apply(variables, current, state.carry, method="hidden")
    logits = model.apply(variables, hidden[:, 0], method="logits")

    length = position + 1
    keys = jax.vmap(jax.random.fold_in, in_axes=(0, None))(request.row_keys, length)
    chosen = draw(keys, transform(logits, state.tokens, length, sampling), sampling)
    writes = (length >= request.prompt_lengths) & ~state.done
    known = jax.lax.dynamic_index_in_dim(state.tokens, length, axis=1, keepdims=False)
    following = jnp.where(writes, chosen.astype(known.dtype), known)

    log_probs = state.log_probs
    if log_probs is not None:
        score = jnp.take_along_axis(jax.nn.log_softmax(logits), following[:, None], axis=-1)
        log_probs = jax.lax.dynamic_update_slice_in_dim(log_probs, score, length, axis=1)
    ends = jnp.where(writes, length + 1, state.ends)
    last = jnp.isin(following, request.stop_tokens) | (ends >= request.limits)
    return State(
        position=length,
        tokens=jax.lax.dynamic_update_slice_in_dim(
            state.tokens, following[:, None], length, axis=1
        ),
        carry=carry,
        done=state.done | (writes & last),
        ends=ends,
        log_probs=log_probs,
    )


@partial(jax.jit, static_argnames=("model", "sampling"), donate_argnames=("state",))
def advance(
    model: LanguageModel,
    params: Any,
    request: Request,
    sampling: Sampling,
    state: State,
    until: Int[Array, ""],
) -> State:
    """Run the loop until `until` tokens are read or every row is done."""
    context_length = model.context_length
    buffer_length = state.tokens.shape[1]

    def unfinished(state: State, until: Int[Array, ""]) -> Bool[Array, ""]:
        return (state.position < until) & ~jnp.all(state.done)

    def run(state: State, until: Int[Array, ""]) -> State:
        return jax.lax.while_loop(
            lambda state: unfinished(state, until),
            partial(_step, model, params, request, sampling),
            state,
        )

    if context_length is None or buffer_length <= context_length:
        return run(state, until)

    def refill(state: State) -> Any:
        kept = context_length // 2
        recent = jax.lax.dynamic_slice_in_dim(state.tokens, state.position - kept, kept, axis=1)
        return _read(model, params, recent, buffer_length)

    # The refill stands in an outer loop over windows: a conditional beside every step would keep
    # the compiler from updating the cache in place.
    def run_window(state: State) -> State:
        full = state.position == _next_refill(context_length, state.position - 1)
        carry = jax.lax.cond(full, refill, lambda state: state.carry, state)
        end = jnp.minimum(until, _next_refill(context_length, state.position))
        return run(state._replace(carry=carry), end)

    return jax.lax.while_loop(lambda state: unfinished(state, until), run_window, state)


def start(
    model: LanguageModel,
    params: Any,
    tokens: Int[np.ndarray, "B L"],
    prompt_lengths: Int[np.ndarray, " B"],
    score: bool,
) -> State:
    """Read as much as all prompts have, less the last token and rounded down, in one call."""
    count = (int(prompt_lengths.min()) - 1) // PREFILL_BLOCK * PREFILL_BLOCK
    begin = 0
    if model.context_length is not None and count > model.context_length:
        # The window that reading token by token would have arrived at.
        begin = _next_refill(model.context_length, count - 1) - model.context_length
    return State(
        position=jnp.asarray(count, jnp.int32),
        tokens=jnp.asarray(tokens),
        carry=_prefill(model, params, jnp.asarray(tokens[:, begin:count]), tokens.shape[1]),
        done=jnp.zeros(tokens.shape[0], bool),
        ends=jnp.asarray(prompt_lengths),
        log_probs=jnp.zeros(tokens.shape, jnp.float32) if score else None,
    )
