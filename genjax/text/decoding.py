"""Generating text from a language model, streamed: for token ids, and for strings.

`decoding_loop` holds the jitted loop; here the host calls it for a few tokens at a time, looks at
what it wrote, and gives it out.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int, Key

from genjax.errors import UserError
from genjax.task import TextSample
from genjax.text import decoding_loop
from genjax.text.decoding_loop import LanguageModel
from genjax.text.logits import Sampling
from genjax.text.tokenizers import StreamDecoder, Tokenizer

Reason = Literal["length", "stop_token", "stop_string"]

# Buffers are rounded up to this, so that requests of similar length share a compiled program.
BUFFER_BLOCK = 64


@dataclass(frozen=True)
class Chunk:
    """What one stretch of the loop added to each row of the batch.

    Attributes:
        tokens: New token ids of each row, a stop token included.
        reasons: Why each row is done; None while it is not.
        log_probs: Natural logarithm of the probability of each new token under the model's own
            distribution, before any transform; None unless asked for.
    """

    tokens: list[np.ndarray]
    reasons: list[Reason | None]
    log_probs: list[np.ndarray] | None


def _checked(
    prompts: Sequence[Int[np.ndarray, " _"]], start: int | None, vocab_size: int
) -> list[Int[np.ndarray, " _"]]:
    """Prompts as int32 with at least one token each."""
    rows = []
    for index, prompt in enumerate(prompts):
        row = np.asarray(prompt, np.int32)
        if not row.size:
            if start is None:
                raise UserError(
                    f"prompt {index} is empty and there is no start token: give it some text"
                )
            row = np.asarray([start], np.int32)
        wrong = row[(row < 0) | (row >= vocab_size)]
        if wrong.size:
            raise UserError(
                f"prompt {index} holds token id {wrong[0]}: the model has ids 0 to "
                f"{vocab_size - 1}.\nEncode it with the tokenizer that the model was trained with."
            )
        rows.append(row)
    return rows


def generate(
    model: LanguageModel,
    params: Any,
    prompts: Sequence[Int[np.ndarray, " _"]],
    *,
    key: Key[Array, ""],
    max_tokens: int | Sequence[int],
    sampling: Sampling,
    start: int | None = None,
    stop_tokens: Sequence[int] = (),
    should_stop: Callable[[int, np.ndarray], bool] | None = None,
    sample_ids: Sequence[int] | None = None,
    score: bool = False,
    chunk: int = 16,
) -> Iterator[Chunk]:
    """Continue a batch of prompts, a few tokens at a time.

    A row's tokens depend on its prompt, `key` and its sample id: not on the other rows, and not on
    `chunk`.

    Args:
        model: A Linen module with the interface of `LanguageModel`.
        params: Its parameters.
        prompts: Token ids of each row; lengths may differ.
        key: Source of all randomness, together with sample id and position.
        max_tokens: The most tokens to add, >= 1, for all rows or for each.
        sampling: How tokens are chosen.
        start: Token that stands for an empty prompt. It is not part of the output.
        stop_tokens: A row is done once it has produced one of these.
        should_stop: Asked between chunks, with a row's number and all its new tokens, whether the
            row is done.
        sample_ids: Number of each row, mixed into its key; 0, 1, 2, ... by default.
        score: Whether to return log-probabilities.
        chunk: Tokens a row between two looks at the output.

    Returns:
        An iterator that ends when every row is done.

    Raises:
        UserError: A prompt is empty and there is no `start`, a token id is outside of the
            vocabulary, or `max_tokens` < 1.
    """
    assert chunk >= 1 and prompts
    rows = _checked(prompts, start, model.vocab_size)
    prompt_lengths = np.asarray([row.size for row in rows], np.int32)
    new_tokens = np.broadcast_to(np.asarray(max_tokens, np.int32), prompt_lengths.shape)
    if new_tokens.min() < 1:
        raise UserError(f"max_tokens = {new_tokens.min()}: must be >= 1")
    limits = prompt_lengths + new_tokens
    buffer_length = -(-int(limits.max()) // BUFFER_BLOCK) * BUFFER_BLOCK
    tokens = np.stack([np.pad(row, (0, buffer_length - row.size)) for row in rows])
    ids = jnp.asarray(range(len(rows)) if sample_ids is None else sample_ids, jnp.int32)
    assert ids.shape == prompt_lengths.shape
    request = decoding_loop.Request(
        prompt_lengths=jnp.asarray(prompt_lengths),
        limits=jnp.asarray(limits),
        stop_tokens=jnp.asarray(stop_tokens, jnp.int32),
        row_keys=jax.vmap(jax.random.fold_in, in_axes=(None, 0))(key, ids),
    )

    def chunks() -> Iterator[Chunk]:
        shortest = int(prompt_lengths.min())
        state = decoding_loop.start(model, params, tokens, prompt_lengths, score)
        seen = prompt_lengths
        reasons: list[Reason | None] = [None] * len(rows)
        until = shortest - 1
        while None in reasons:
            until += chunk
            state = decoding_loop.advance(
                model, params, request, sampling, state, jnp.asarray(until, jnp.int32)
            )
            # Copies: a view of a buffer would keep it from being donated.
            text, done, ends = (np.array(part) for part in (state.tokens, state.done, state.ends))
            spans = [slice(*span) for span in zip(seen, ends, strict=True)]
            seen = ends
            for row in np.flatnonzero(done):
                if reasons[row] is None:
                    stopped = text[row, ends[row] - 1] in stop_tokens
                    reasons[row] = "stop_token" if stopped else "length"
            log_probs = None
            if state.log_probs is not None:
                scores = np.array(state.log_probs)
                log_probs = [scores[row, span] for row, span in enumerate(spans)]
            new = [text[row, span] for row, span in enumerate(spans)]
            yield Chunk(new, list(reasons), log_probs)
            if should_stop is not None:
                for row in np.flatnonzero(~done):
                    if should_stop(int(row), text[row, prompt_lengths[row] : ends[row]]):
                        reasons[row] = "stop_string"
                        done[row] = True
                state = state._replace(done=jnp.asarray(done))

    return chunks()


class _StopFilter:
    """Lets text through up to a stop string, holding back what may turn out to begin one."""

    def __init__(self, stop: Sequence[str]) -> None:
        self._stop = stop
        self._held = ""
        self.stopped = False

    def feed(self, text: str) -> str:
        """Return what can be shown after this text; nothing more once stopped."""
        if self.stopped:
            return ""
        self._held += text
        found = [
            (start + len(stop), start)
            for stop in self._stop
            if (start := self._held.find(stop)) >= 0
        ]
        if found:
            # The one that is complete first, so that the result does not depend on the pieces.
            _, show = min(found)
            self.stopped = True
        else:
            show = len(self._held) - max(map(self._beginning, self._stop), default=0)
        shown, self._held = self._held[:show], self._held[show:]
        return shown

    def finish(self) -> str:
        """Return what was held back, now that no more text comes."""
        return "" if self.stopped else self._held

    def _beginning(self, stop: str) -> int:
        longest = min(len(stop) - 1, len(self._held))
        return next((n for n in range(longest, 0, -1) if self._held.endswith(stop[:n])), 0)


def generate_text(
    model: LanguageModel,
    params: Any,
    tokenizer: Tokenizer,
    prompts: Sequence[str],
    *,
    key: Key[Array, ""],
    max_tokens: int | Sequence[int],
    sampling: Sampling,
    start: int | None = None,
    stop: Sequence[str] = (),
    sample_ids: Sequence[int] | None = None,
    chunk: int = 16,
) -> Iterator[TextSample]:
    """Continue texts, giving out the new text as it comes; `generate` for strings.

    A row ends at the tokenizer's end of text, before the first of the `stop` strings, or after
    `max_tokens`. No part of a stop string is ever given out, even where it spans tokens or pieces.

    Args:
        model: A Linen module with the interface of `LanguageModel`.
        params: Its parameters.
        tokenizer: The one that the model was trained with.
        prompts: The texts to continue; they are not repeated in the output.
        key: Source of all randomness.
        max_tokens: The most tokens to add, >= 1, for all rows or for each.
        sampling: How tokens are chosen.
        start: Token that stands for an empty prompt; by default the end of text, a new line, or
            token 0, whichever the tokenizer has.
        stop: Strings that end a row, not empty.
        sample_ids: Number of each row, mixed into its key; 0, 1, 2, ... by default.
        chunk: Tokens a row between two pieces.

    Returns:
        An iterator over pieces of all rows; each row's last piece has `done` set.

    Raises:
        UserError: A stop string is empty, or as `generate` does.
    """
    if "" in stop:
        raise UserError("a stop string is empty: give at least one character, or none at all")
    end_of_text = tokenizer.end_of_text
    if start is None:
        newline = next((i for i, piece in enumerate(tokenizer.pieces) if piece == b"\n"), 0)
        start = newline if end_of_text is None else end_of_text
    filters = [_StopFilter(stop) for _ in prompts]
    chunks = generate(
        model,
        params,
        [tokenizer.encode(prompt) for prompt in prompts],
        key=key,
        max_tokens=max_tokens,
        sampling=sampling,
        start=start,
        stop_tokens=() if end_of_text is None else (end_of_text,),
        should_stop=lambda row, _: filters[row].stopped,
        sample_ids=sample_ids,
        chunk=chunk,
    )

    def pieces() -> Iterator[TextSample]:
        decoders = [StreamDecoder(tokenizer) for _ in prompts]
        waiting = set(range(len(prompts)))
        for part in chunks:
            for row in sorted(waiting):
                text = "".join(decoders[row].feed(int(token)) for token in part.tokens[row])
                reason = part.reasons[row]
                if reason is not None:
                    text += decoders[row].finish()
                shown = filters[row].feed(text)
                if filters[row].stopped:
                    reason = "stop_string"
                elif reason is not None:
                    shown += filters[row].finish()
                if reason is not None:
                    waiting.discard(row)
                if shown or reason is not None:
                    yield TextSample(index=row, text=shown, done=reason is not None, reason=reason)

    return pieces()
