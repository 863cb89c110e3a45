"""N-gram language models by counting: the baselines that a trained network has to beat.

Interpolated Kneser-Ney smoothing (Kneser & Ney, 1995; in the interpolated form of Chen & Goodman,
1998, section 4.1.6). With w a token, h a context of k - 1 tokens, h' the same without its first:

    p_k(w | h) = max(c(hw) - D_k, 0) / c(h)  +  D_k N(h) / c(h) * p_{k-1}(w | h')
    p_0(w)     = 1 / V

c(hw) is the count of hw at the highest order, and below it the number of distinct tokens that
precede hw in the text; c(h) is the sum of c(hw) over w; N(h) the number of w with c(hw) > 0. The
discount is D_k = n1 / (n1 + 2 n2), with n1, n2 the number of k-grams of count 1 and 2 (Ney, Essen &
Kneser, 1994), and 1/2 where either is zero. Where c(h) = 0, p_k = p_{k-1}. So every token has a
positive probability in every context, and the probabilities sum to one.

The text is one sequence, without marks for sentences. N tokens, V vocabulary, G distinct k-grams.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float64, Int32, Integer

_NAMES = ("uniform", "unigram", "bigram", "trigram")


@dataclass(frozen=True)
class _Order:
    """All k-grams of one length k.

    A k-gram is known by its place in `keys`; its key is the place of its first k - 1 tokens among
    the (k-1)-grams, times V, plus its last token. The empty context has place 0.

    Attributes:
        keys: [G] ascending.
        probabilities: [G] the first term of the equation, max(c(hw) - D, 0) / c(h).
        backoff: [(k-1)-grams] the factor of the second, D N(h) / c(h).
    """

    keys: np.ndarray
    probabilities: np.ndarray
    backoff: np.ndarray


@dataclass(frozen=True)
class NGramModel:
    """Counts of n-grams up to an order, smoothed as the module says."""

    vocab_size: int
    orders: tuple[_Order, ...]

    @property
    def order(self) -> int:
        """The longest n-gram; contexts have one token less."""
        return len(self.orders)

    @staticmethod
    def fit(tokens: Integer[np.ndarray, " N"], order: int, vocab_size: int) -> "NGramModel":
        """Counts the n-grams of a text.

        Args:
            tokens: [N] ids below `vocab_size`.
            order: Longest n-gram, at least 1.
            vocab_size: V.
        """
        assert order >= 1 and (len(tokens) == 0 or int(tokens.max()) < vocab_size)
        tokens = tokens.astype(np.int64)
        places = np.zeros(len(tokens) + 1, dtype=np.int64)
        keys: list[np.ndarray] = []
        counts: list[np.ndarray] = []
        for k in range(1, order + 1):
            gram = places[: max(len(tokens) - k + 1, 0)] * vocab_size + tokens[k - 1 :]
            unique, first, inverse, count = np.unique(
                gram, return_index=True, return_inverse=True, return_counts=True
            )
            if k > 1:
                # A k-gram is one distinct left extension of its last k - 1 tokens.
                counts[-1] = np.bincount(places[first + 1], minlength=len(keys[-1]))
            keys.append(unique)
            counts.append(count)
            places = inverse
        contexts = [1, *map(len, keys)]
        orders = [
            _smooth(unique, count, vocab_size, num_contexts)
            for unique, count, num_contexts in zip(keys, counts, contexts, strict=False)
        ]
        return NGramModel(vocab_size, tuple(orders))

    def log_probabilities(self, tokens: Integer[np.ndarray, " N"]) -> Float64[np.ndarray, " M"]:
        """Scores a text, each token from up to `order - 1` tokens before it in this text.

        Args:
            tokens: [N] ids below V.

        Returns:
            [N - 1] natural logarithms of the probabilities of all tokens but the first.
        """
        assert len(tokens) == 0 or int(tokens.max()) < self.vocab_size
        tokens = tokens.astype(np.int64)
        probability = np.full(len(tokens), 1.0 / self.vocab_size)
        places = np.zeros(len(tokens) + 1, dtype=np.int64)
        for k, table in enumerate(self.orders, start=1):
            contexts = places[: max(len(tokens) - k + 1, 0)]
            places = _find(table.keys, contexts, tokens[k - 1 :], self.vocab_size)
            scored = probability[k - 1 :]
            known = contexts >= 0
            scored[known] *= table.backoff[contexts[known]]
            seen = places >= 0
            scored[seen] += table.probabilities[places[seen]]
        return np.log(probability[1:])

    def distribution(self, context: Sequence[int]) -> Float64[np.ndarray, " V"]:
        """Probabilities of the next token after a context, of which the last tokens count."""
        probability = np.full(self.vocab_size, 1.0 / self.vocab_size)
        for k, table in enumerate(self.orders, start=1):
            place = self._place(context[len(context) - k + 1 :]) if k - 1 <= len(context) else -1
            if place < 0:
                break
            children = slice(
                *np.searchsorted(
                    table.keys, [place * self.vocab_size, (place + 1) * self.vocab_size]
                )
            )
            probability *= table.backoff[place]
            following = table.keys[children] - place * self.vocab_size
            probability[following] += table.probabilities[children]
        return probability

    def sample(
        self, rng: np.random.Generator, prompt: Sequence[int], count: int
    ) -> Int32[np.ndarray, " count"]:
        """Continues a prompt by `count` tokens drawn from the model."""
        text = list(prompt)
        for _ in range(count):
            cumulative = np.cumsum(self.distribution(text[max(len(text) - self.order + 1, 0) :]))
            drawn = np.searchsorted(cumulative, rng.random() * cumulative[-1], side="right")
            text.append(int(drawn))
        return np.array(text[len(prompt) :], dtype=np.int32)

    def _place(self, gram: Sequence[int]) -> int:
        place = np.zeros(1, dtype=np.int64)
        for table, token in zip(self.orders, gram, strict=False):
            place = _find(table.keys, place, np.array([token]), self.vocab_size)
        return int(place[0])


def baselines(
    train_tokens: Integer[np.ndarray, " N"],
    validation_tokens: Integer[np.ndarray, " M"],
    vocab_size: int,
    scored: Bool[np.ndarray, " M1"] | None = None,
) -> list[tuple[str, float]]:
    """What counting reaches on the tokens that a model is evaluated on.

    Args:
        train_tokens: [N] the text to count.
        validation_tokens: [M] the text to score.
        vocab_size: V.
        scored: [M - 1] which tokens after the first count; all by default.

    Returns:
        (name, nats per token) of uniform, unigram, bigram and trigram; the first validation token
        is not scored, as it is by no model.
    """
    results = [(_NAMES[0], float(np.log(vocab_size)))]
    for order, name in enumerate(_NAMES[1:], start=1):
        model = NGramModel.fit(train_tokens, order, vocab_size)
        nats = -model.log_probabilities(validation_tokens)
        results.append((name, float(nats.mean() if scored is None else nats[scored].mean())))
    return results


def _find(
    keys: np.ndarray, contexts: np.ndarray, tokens: np.ndarray, vocab_size: int
) -> np.ndarray:
    """Places of context + token among `keys`, or -1 where the context or the pair is not there."""
    if len(keys) == 0:
        return np.full(len(tokens), -1, dtype=np.int64)
    wanted = contexts * vocab_size + tokens
    place = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
    return np.where((contexts >= 0) & (keys[place] == wanted), place, -1)


def _smooth(keys: np.ndarray, counts: np.ndarray, vocab_size: int, num_contexts: int) -> _Order:
    ones, twos = int((counts == 1).sum()), int((counts == 2).sum())
    discount = ones / (ones + 2 * twos) if ones and twos else 0.5
    contexts = keys // vocab_size
    totals = np.bincount(contexts, weights=counts, minlength=num_contexts)
    kinds = np.bincount(contexts, weights=counts > 0, minlength=num_contexts)
    backoff = np.ones(num_contexts)
    np.divide(discount * kinds, totals, out=backoff, where=totals > 0)
    probabilities = np.maximum(counts - discount, 0.0)
    np.divide(probabilities, totals[contexts], out=probabilities, where=counts > 0)
    return _Order(keys, probabilities, backoff)
