"""Pure transforms of next-token logits, and the draw of a token from them.

Every transform maps logits `[B, V]` to logits `[B, V]`, where a token that may not be drawn gets
-inf. Each leaves at least one token in every row. Shape letters: B batch, L length of the token
buffer, V vocabulary.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from genjax.errors import UserError


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen from the logits; None turns a transform off.

    The transforms work in the order of `transform`, whatever the order of the arguments.

    Attributes:
        temperature: Divides the logits, >= 0. 0 takes the most likely token, the lowest id of
            equals; the truncations then have nothing to do.
        top_k: Keep the k most likely tokens, >= 1.
        top_p: Keep the smallest set of most likely tokens with this probability, in (0, 1].
        min_p: Keep tokens at least this many times as likely as the most likely one, in [0, 1].
        typical: Keep the smallest set of most typical tokens with this probability, in (0, 1].
        repetition_penalty: Penalty on tokens already in the text, > 0; 1 changes nothing.
        block_repeated_ngrams: Length n, >= 1, of the n-grams that may occur only once in the text.
    """

    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    typical: float | None = None
    repetition_penalty: float | None = None
    block_repeated_ngrams: int | None = None

    def __post_init__(self) -> None:
        """Check every range.

        Raises:
            UserError: A value is out of its range.
        """
        ranges = {
            "temperature": (0 <= self.temperature < float("inf"), ">= 0"),
            "top_k": (self.top_k is None or self.top_k >= 1, ">= 1"),
            "top_p": (self.top_p is None or 0 < self.top_p <= 1, "in (0, 1]"),
            "min_p": (self.min_p is None or 0 <= self.min_p <= 1, "in [0, 1]"),
            "typical": (self.typical is None or 0 < self.typical <= 1, "in (0, 1]"),
            "repetition_penalty": (
                self.repetition_penalty is None or 0 < self.repetition_penalty < float("inf"),
                "> 0",
            ),
            "block_repeated_ngrams": (
                self.block_repeated_ngrams is None or self.block_repeated_ngrams >= 1,
                ">= 1",
            ),
        }
        for field, (holds, allowed) in ranges.items():
            if not holds:
                raise UserError(f"{field} = {getattr(self, field)}: must be {allowed}")


def _seen(
    tokens: Int[Array, "B N"], valid: Bool[Array, "B N"], vocab_size: int
) -> Bool[Array, "B V"]:
    rows = jnp.arange(tokens.shape[0])[:, None]
    # Entries that do not count go to an index past the end, where the scatter drops them.
    places = jnp.where(valid, tokens, vocab_size)
    seen = jnp.zeros((tokens.shape[0], vocab_size), bool)
    return seen.at[rows, places].set(True, mode="drop")


def _keep_first(
    logits: Float[Array, "B V"], order: Int[Array, "B V"], keep: Bool[Array, "B V"]
) -> Float[Array, "B V"]:
    kept = jnp.put_along_axis(jnp.zeros_like(keep), order, keep, axis=-1, inplace=False)
    return jnp.where(kept, logits, -jnp.inf)


def repetition_penalty(
    logits: Float[Array, "B V"],
    tokens: Int[Array, "B L"],
    length: Int[Array, ""] | int,
    penalty: float,
) -> Float[Array, "B V"]:
    """Divide positive and multiply negative logits of tokens already in the text (CTRL).

    Keskar et al. 2019, section 4.1, with the sign rule that keeps a penalty above 1 a penalty for
    negative logits. The first `length` entries of each row of `tokens` are the text.
    """
    text = jnp.broadcast_to(jnp.arange(tokens.shape[1]) < length, tokens.shape)
    penalised = jnp.where(logits > 0, logits / penalty, logits * penalty)
    return jnp.where(_seen(tokens, text, logits.shape[1]), penalised, logits)


def block_repeated_ngrams(
    logits: Float[Array, "B V"],
    tokens: Int[Array, "B L"],
    length: Int[Array, ""] | int,
    n: int,
) -> Float[Array, "B V"]:
    """Forbid every token that would complete an n-gram the text already holds.

    The first `length` entries of each row of `tokens` are the text. A row in which this would
    forbid every token is left as it is.
    """
    windows = tokens.shape[1] - n + 1
    if windows < 1:
        return logits
    ending = jax.lax.dynamic_slice_in_dim(tokens, length - (n - 1), n - 1, axis=1)
    match = jnp.broadcast_to(jnp.arange(windows) + n - 1 < length, (tokens.shape[0], windows))
    for offset in range(n - 1):
        match &= tokens[:, offset : offset + windows] == ending[:, offset, None]
    blocked = jnp.where(_seen(tokens[:, n - 1 :], match, logits.shape[1]), -jnp.inf, logits)
    possible = jnp.any(blocked > -jnp.inf, axis=-1, keepdims=True)
    return jnp.where(possible, blocked, logits)


def temperature(logits: Float[Array, "B V"], value: float) -> Float[Array, "B V"]:
    """Divide the logits by `value` > 0: below 1 sharper, above 1 flatter."""
    # Subtracting the maximum first keeps a tiny temperature from overflowing to +inf; one below
    # the normal range would count as 0.
    value = max(value, float(jnp.finfo(jnp.float32).tiny))
    return (logits - jnp.max(logits, axis=-1, keepdims=True)) / value


def top_k(logits: Float[Array, "B V"], k: int) -> Float[Array, "B V"]:
    """Keep the k most likely tokens, of equals those with the lower id; all if k >= V."""
    if k >= logits.shape[-1]:
        return logits
    values, places = jax.lax.top_k(logits, k)
    rest = jnp.full_like(logits, -jnp.inf)
    return jnp.put_along_axis(rest, places, values, axis=-1, inplace=False)


def top_p(logits: Float[Array, "B V"], p: float) -> Float[Array, "B V"]:
    """Keep the smallest set of most likely tokens whose probabilities sum to at least p.

    Nucleus sampling, Holtzman et al. 2020. Of equally likely tokens those with the lower id are
    taken first; the token that reaches p is kept.
    """
    order = jnp.argsort(logits, axis=-1, descending=True)
    probabilities = jax.nn.softmax(jnp.take_along_axis(logits, order, axis=-1), axis=-1)
    before = jnp.cumsum(probabilities, axis=-1) - probabilities
    # The first entry of `before` may be a rounding error away from 0.
    return _keep_first(logits, order, (before < p).at[:, 0].set(True))


def min_p(logits: Float[Array, "B V"], p: float) -> Float[Array, "B V"]:
    """Keep tokens whose probability is at least p times that of the most likely one.

    Nguyen et al. 2024, "Turning up the heat".
    """
    if p == 0:
        return logits
    best = jnp.max(logits, axis=-1, keepdims=True)
    return jnp.where(logits >= best + jnp.log(p), logits, -jnp.inf)


def typical(logits: Float[Array, "B V"], mass: float) -> Float[Array, "B V"]:
    """Keep the tokens whose surprise is closest to the entropy, up to probability `mass`.

    Locally typical sampling, Meister et al. 2022: tokens in order of |-log p - H|, the smallest
    such set whose probabilities sum to at least `mass`; of equals the lower id first. The most
    likely token may be dropped.
    """
    log_probabilities = jax.nn.log_softmax(logits, axis=-1)
    probabilities = jnp.exp(log_probabilities)
    # 0 log 0 = 0: tokens already dropped bear no entropy.
    surprise = jnp.where(probabilities > 0, -log_probabilities, 0)
    entropy = jnp.sum(probabilities * surprise, axis=-1, keepdims=True)
    distance = jnp.abs(-log_probabilities - entropy)
    order = jnp.argsort(distance, axis=-1)
    sorted_probabilities = jnp.take_along_axis(probabilities, order, axis=-1)
    before = jnp.cumsum(sorted_probabilities, axis=-1) - sorted_probabilities
    return _keep_first(logits, order, (before < mass).at[:, 0].set(True))


def transform(
    logits: Float[Array, "B V"],
    tokens: Int[Array, "B L"],
    length: Int[Array, ""] | int,
    sampling: Sampling,
) -> Float[Array, "B V"]:
    """Apply the transforms that `sampling` asks for; the others cost nothing.

    The one order: the penalties on the raw logits (`repetition_penalty`, then
    `block_repeated_ngrams`), then `temperature`, then the truncations (`top_k`, `top_p`, `min_p`,
    `typical`), each on the distribution that the one before left, renormalised. At temperature 0
    only the penalties apply.

    Args:
        logits: The model's logits for the next token.
        tokens: Buffer that holds prompt and output.
        length: How many entries of each row of `tokens` are filled.
        sampling: What to apply.
    """
    if sampling.repetition_penalty is not None and sampling.repetition_penalty != 1:
        logits = repetition_penalty(logits, tokens, length, sampling.repetition_penalty)
    if sampling.block_repeated_ngrams is not None:
        logits = block_repeated_ngrams(logits, tokens, length, sampling.block_repeated_ngrams)
    if sampling.temperature == 0:
        return logits
    if sampling.temperature != 1:
        logits = temperature(logits, sampling.temperature)
    if sampling.top_k is not None:
        logits = top_k(logits, sampling.top_k)
    if sampling.top_p is not None and sampling.top_p < 1:
        logits = top_p(logits, sampling.top_p)
    if sampling.min_p is not None:
        logits = min_p(logits, sampling.min_p)
    if sampling.typical is not None and sampling.typical < 1:
        logits = typical(logits, sampling.typical)
    return logits


def draw(
    keys: Key[Array, " B"], logits: Float[Array, "B V"], sampling: Sampling
) -> Int[Array, " B"]:
    """Take one token a row from transformed logits: at temperature 0 the most likely one.

    Each row has its own key, so that it does not depend on the other rows.
    """
    if sampling.temperature == 0:
        return jnp.argmax(logits, axis=-1)
    return jax.vmap(jax.random.categorical)(keys, logits)
