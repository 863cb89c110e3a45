import collections
import itertools
import math

import numpy as np
import pytest

from genjax.text.ngram import NGramModel, baselines


def slow_model(tokens, order, vocab_size):
    """Interpolated Kneser-Ney by dictionaries: a function from (token, context) to probability."""
    tokens = tuple(tokens)
    grams = {
        k: collections.Counter(tokens[i : i + k] for i in range(len(tokens) - k + 1))
        for k in range(1, order + 1)
    }
    counts = {order: grams[order]}
    for k in range(1, order):
        counts[k] = collections.Counter(gram[1:] for gram in grams[k + 1])

    def discount(k):
        ones = sum(count == 1 for count in counts[k].values())
        twos = sum(count == 2 for count in counts[k].values())
        return ones / (ones + 2 * twos) if ones and twos else 0.5

    discounts = {k: discount(k) for k in range(1, order + 1)}

    def probability(token, context):
        value = 1 / vocab_size
        for k in range(1, min(order, len(context) + 1) + 1):
            h = tuple(context[len(context) - k + 1 :])
            following = {g[-1]: c for g, c in counts[k].items() if g[:-1] == h}
            total = sum(following.values())
            if total:
                backoff = discounts[k] * len(following) / total
                first = max(following.get(token, 0) - discounts[k], 0) / total
                value = first + backoff * value
        return value

    return probability


def zipf_text(length, vocab_size, seed):
    """Tokens with rare and frequent ones, and repetitions."""
    rng = np.random.default_rng(seed)
    text = np.minimum(rng.zipf(1.5, length) - 1, vocab_size - 1)
    return np.where(rng.random(length) < 0.4, np.roll(text, 2), text).astype(np.int32)


@pytest.mark.parametrize("order", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("dtype", [np.int32, np.uint16])
def test_scores_follow_the_equations(order, dtype):
    train, test = zipf_text(120, 9, 0).astype(dtype), zipf_text(60, 10, 1).astype(dtype)
    model = NGramModel.fit(train, order, 10)
    assert model.order == order
    reference = slow_model(train.tolist(), order, 10)
    expected = [
        math.log(reference(test[i], test[max(0, i - order + 1) : i].tolist()))
        for i in range(1, len(test))
    ]
    np.testing.assert_allclose(model.log_probabilities(test), expected, rtol=1e-12)


@pytest.mark.parametrize("order", [1, 2, 3, 4, 5])
def test_distributions_sum_to_one_and_agree_with_the_scores(order):
    train, test = zipf_text(400, 20, 2), zipf_text(50, 24, 3)
    model = NGramModel.fit(train, order, 24)
    scores = model.log_probabilities(test)
    for place in range(1, len(test)):
        distribution = model.distribution(test[:place].tolist())
        assert abs(distribution.sum() - 1) < 1e-9 and distribution.min() > 0
        assert math.isclose(math.log(distribution[test[place]]), scores[place - 1], rel_tol=1e-12)


@pytest.mark.parametrize("length", [0, 1, 2, 3])
def test_tiny_texts_still_give_distributions(length):
    model = NGramModel.fit(np.arange(length, dtype=np.int32), 3, 4)
    for context in ([], [0], [0, 1], [3, 3, 3]):
        distribution = model.distribution(context)
        assert abs(distribution.sum() - 1) < 1e-9 and distribution.min() > 0
    scores = model.log_probabilities(np.array([0, 3, 1, 2]))
    assert scores.shape == (3,) and np.isfinite(scores).all()
    assert model.log_probabilities(np.array([0])).shape == (0,)


def test_known_value():
    # a a b: unigram counts 2 and 1, n1 = n2 = 1, D = 1/3; P(a) = (2 - D)/3 + 2D/3 / 2 = 2/3.
    model = NGramModel.fit(np.array([0, 0, 1]), 1, 2)
    np.testing.assert_allclose(model.distribution([]), [2 / 3, 1 / 3], rtol=1e-15)


def test_sampling_follows_the_model():
    train = zipf_text(300, 6, 4)
    model = NGramModel.fit(train, 3, 6)
    drawn = model.sample(np.random.default_rng(0), [0, 1], 6000)
    assert drawn.dtype == np.int32 and drawn.shape == (6000,)
    text = [0, 1, *drawn.tolist()]
    context = collections.Counter(itertools.pairwise(text)).most_common(1)[0][0]
    after = [text[i + 2] for i in range(len(text) - 2) if (text[i], text[i + 1]) == context]
    expected = model.distribution(context)
    observed = np.bincount(after, minlength=6) / len(after)
    assert np.abs(observed - expected).max() < 5 * 0.5 / math.sqrt(len(after))
    again = model.sample(np.random.default_rng(0), [0, 1], 20)
    np.testing.assert_array_equal(again, drawn[:20])


@pytest.mark.parametrize("order", [1, 3, 5])
@pytest.mark.parametrize("length", [0, 1, 2, 3, 4, 5, 9])
def test_sampling_uses_as_much_of_the_prompt_as_there_is(order, length):
    text = zipf_text(400, 20, 7)
    model = NGramModel.fit(text, order, 20)
    prompt = text[100 : 100 + length].tolist()
    cumulative = np.cumsum(model.distribution(prompt))
    for seed in range(60):
        drawn = model.sample(np.random.default_rng(seed), prompt, 1)
        assert drawn[0] == (cumulative <= np.random.default_rng(seed).random()).sum()


def test_sampling_without_a_prompt():
    model = NGramModel.fit(np.tile([0, 1, 2, 0, 2, 1], 200), 5, 3)
    drawn = model.sample(np.random.default_rng(0), [], 300)
    assert np.bincount(drawn, minlength=3).min() > 50


def test_baselines_are_in_order():
    rng = np.random.default_rng(5)
    text = np.minimum(rng.zipf(1.5, 6000) - 1, 10)
    for place in np.flatnonzero(rng.random(6000) < 0.7):
        if place > 1:
            text[place] = (3 * text[place - 1] + (text[place - 2] > 2)) % 11
    train, test = text[:5000], text[5000:]
    results = dict(baselines(train, test, 11))
    assert list(results) == ["uniform", "unigram", "bigram", "trigram"]
    assert results["uniform"] == math.log(11)
    assert sorted(results.values(), reverse=True) == list(results.values())
    expected = -NGramModel.fit(train, 2, 11).log_probabilities(test).mean()
    assert results["bigram"] == expected
    scored = np.arange(len(test) - 1) % 3 > 0
    some = dict(baselines(train, test, 11, scored))
    scores = NGramModel.fit(train, 3, 11).log_probabilities(test)
    assert some["trigram"] == -scores[scored].mean()


def test_tiny_shakespeare(test_data):
    path = test_data / "tiny_shakespeare" / "input.txt"
    text = np.frombuffer(path.read_bytes(), np.uint8)
    ids = np.searchsorted(np.unique(text), text)
    results = baselines(ids[:1_003_854], ids[1_003_854:], 65)
    bits = [round(nats / math.log(2), 4) for _, nats in results]
    assert bits == [6.0224, 4.8291, 3.5842, 2.9501]
