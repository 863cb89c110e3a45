import jax
import jax.numpy as jnp
import numpy as np
import pytest

from genjax.errors import UserError
from genjax.text import logits as lt
from genjax.text.logits import Sampling, draw, transform

EMPTY = jnp.zeros((1, 4), jnp.int32)


def softmax(x):
    e = np.exp(x - x.max())
    return e / e.sum()


def kept(logits):
    return [set(np.flatnonzero(row > -np.inf).tolist()) for row in np.asarray(logits)]


def random_logits(rows=6, vocab_size=23, seed=0):
    return np.random.default_rng(seed).normal(size=(rows, vocab_size)).astype(np.float32) * 2


# References: the sets and rules as the papers word them, one row and one token at a time.


def reference_top_p(row, p):
    probabilities = softmax(row.astype(np.float64))
    chosen, total = set(), 0.0
    for token in sorted(range(len(row)), key=lambda t: -probabilities[t]):
        if total >= p:
            break
        chosen.add(token)
        total += probabilities[token]
    return chosen


def reference_typical(row, mass):
    probabilities = softmax(row.astype(np.float64))
    entropy = -sum(p * np.log(p) for p in probabilities if p > 0)
    chosen, total = set(), 0.0
    possible = [t for t in range(len(row)) if probabilities[t] > 0]
    for token in sorted(possible, key=lambda t: abs(-np.log(probabilities[t]) - entropy)):
        if total >= mass:
            break
        chosen.add(token)
        total += probabilities[token]
    return chosen


def reference_blocked(text, n):
    grams = {tuple(text[i : i + n]) for i in range(len(text) - n + 1)}
    ending = tuple(text[len(text) - n + 1 :])
    return {gram[-1] for gram in grams if len(text) >= n and gram[:-1] == ending}


@pytest.mark.parametrize("p", [0.05, 0.3, 0.75, 0.95])
def test_top_p_keeps_the_nucleus(p):
    logits = random_logits()
    result = np.asarray(lt.top_p(jnp.asarray(logits), p))
    assert kept(result) == [reference_top_p(row, p) for row in logits]
    np.testing.assert_array_equal(result[result > -np.inf], logits[result > -np.inf])


def test_top_p_keeps_the_token_that_reaches_p():
    logits = jnp.log(jnp.asarray([[0.5, 0.25, 0.125, 0.125]]))
    assert kept(lt.top_p(logits, 0.5)) == [{0}]
    assert kept(lt.top_p(logits, 0.51)) == [{0, 1}]
    assert kept(lt.top_p(logits, 1e-9)) == [{0}]
    assert kept(lt.top_p(logits, 1.0)) == [{0, 1, 2, 3}]


@pytest.mark.parametrize("mass", [0.05, 0.3, 0.75, 0.95])
def test_typical_follows_its_definition(mass):
    logits = random_logits(seed=1)
    assert kept(lt.typical(jnp.asarray(logits), mass)) == [
        reference_typical(row, mass) for row in logits
    ]


def test_typical_can_drop_the_most_likely_token_and_ignores_dropped_ones():
    probabilities = np.asarray([0.4] + [0.03] * 20)
    result = kept(lt.typical(jnp.log(jnp.asarray([probabilities], jnp.float32)), 0.2))
    assert 0 not in result[0]
    assert len(result[0]) == 7
    masked = jnp.asarray([[0.0, -jnp.inf, 1.0, -jnp.inf]])
    assert kept(lt.typical(masked, 0.999)) == [{0, 2}]


@pytest.mark.parametrize("p", [0.0, 0.02, 0.2, 1.0])
def test_min_p_keeps_a_fraction_of_the_best(p):
    logits = random_logits(seed=2)
    expected = []
    for row in logits:
        probabilities = softmax(row.astype(np.float64))
        expected.append(set(np.flatnonzero(probabilities >= p * probabilities.max()).tolist()))
    assert kept(lt.min_p(jnp.asarray(logits), p)) == expected


@pytest.mark.parametrize("k", [1, 5, 22, 23, 100])
def test_top_k_keeps_k(k):
    logits = random_logits(seed=3)
    expected = [set(np.argsort(-row)[:k].tolist()) for row in logits]
    assert kept(lt.top_k(jnp.asarray(logits), k)) == expected


def test_ties_go_to_the_lower_id():
    tied = jnp.zeros((2, 8))
    assert kept(lt.top_k(tied, 3)) == [{0, 1, 2}] * 2
    assert kept(lt.top_p(tied, 0.25)) == [{0, 1}] * 2
    assert kept(lt.typical(tied, 0.25)) == [{0, 1}] * 2
    assert kept(lt.min_p(tied, 1.0)) == [set(range(8))] * 2
    keys = jax.random.split(jax.random.key(0), 2)
    assert draw(keys, tied, Sampling(temperature=0.0)).tolist() == [0, 0]


def test_repetition_penalty_divides_positive_and_multiplies_negative():
    logits = jnp.asarray([[2.0, -2.0, 3.0, -3.0, 0.0], [2.0, -2.0, 3.0, -3.0, 0.0]])
    tokens = jnp.asarray([[0, 1, 1, 2], [4, 3, 3, 0]], jnp.int32)
    result = jax.jit(lt.repetition_penalty, static_argnums=3)(logits, tokens, 3, 2.0)
    np.testing.assert_array_equal(
        result, [[1.0, -4.0, 3.0, -3.0, 0.0], [2.0, -2.0, 3.0, -6.0, 0.0]]
    )


@pytest.mark.parametrize("n", [1, 2, 3, 4])
def test_block_repeated_ngrams_against_a_set_of_ngrams(n):
    generator = np.random.default_rng(n)
    tokens = generator.integers(0, 4, size=(16, 30)).astype(np.int32)
    logits = generator.normal(size=(16, 6)).astype(np.float32)
    block = jax.jit(lt.block_repeated_ngrams, static_argnums=3)
    for length in (1, 2, 3, 4, 7, 30):
        result = block(jnp.asarray(logits), jnp.asarray(tokens), jnp.int32(length), n)
        for text, allowed in zip(tokens[:, :length].tolist(), kept(result), strict=True):
            assert allowed == set(range(6)) - reference_blocked(text, n)


def test_block_repeated_ngrams_never_blocks_everything():
    tokens = jnp.asarray([[0, 1, 2]], jnp.int32)
    logits = jnp.asarray([[1.0, 2.0, 3.0]])
    np.testing.assert_array_equal(lt.block_repeated_ngrams(logits, tokens, 3, 1), logits)
    assert lt.block_repeated_ngrams(logits, tokens, 3, 9) is logits


def test_temperature_scales_differences_and_survives_extremes():
    logits = jnp.asarray([[3.0, 1.0, -jnp.inf]])
    result = np.asarray(lt.temperature(logits, 0.5))
    assert result[0, 0] - result[0, 1] == 4.0
    assert result[0, 2] == -np.inf
    assert not np.isnan(np.asarray(lt.temperature(logits * 1e30, 1e-30))).any()
    assert kept(lt.temperature(logits, 1e-40))[0] >= {0}


def test_transform_applies_in_the_documented_order():
    logits = jnp.asarray(random_logits(seed=4))
    tokens = jnp.asarray(np.random.default_rng(0).integers(0, 23, size=(6, 12)), jnp.int32)
    sampling = Sampling(
        temperature=0.7,
        top_k=12,
        top_p=0.9,
        min_p=0.03,
        typical=0.8,
        repetition_penalty=1.3,
        block_repeated_ngrams=1,
    )
    expected = lt.repetition_penalty(logits, tokens, 9, 1.3)
    expected = lt.block_repeated_ngrams(expected, tokens, 9, 1)
    expected = lt.temperature(expected, 0.7)
    expected = lt.top_k(expected, 12)
    expected = lt.top_p(expected, 0.9)
    expected = lt.min_p(expected, 0.03)
    expected = lt.typical(expected, 0.8)
    result = transform(logits, tokens, 9, sampling)
    np.testing.assert_array_equal(result, expected)
    assert all(0 < len(row) < 12 for row in kept(result))


def test_penalties_reach_greedy_and_truncations_do_not():
    logits = jnp.asarray([[3.0, 2.0, 1.0, 0.0]])
    tokens = jnp.asarray([[0, 0]], jnp.int32)
    greedy = Sampling(temperature=0.0, typical=0.1, repetition_penalty=2.0)
    np.testing.assert_array_equal(transform(logits, tokens, 2, greedy), [[1.5, 2.0, 1.0, 0.0]])


def test_disabled_transforms_leave_no_trace():
    sampling = Sampling(top_p=1.0, typical=1.0, min_p=0.0, repetition_penalty=1.0)
    trace = jax.make_jaxpr(lambda x: transform(x, EMPTY, 1, sampling))(jnp.zeros((1, 5)))
    assert not trace.eqns


def test_at_least_one_token_remains_under_the_harshest_settings():
    logits = jnp.asarray(random_logits(rows=30, vocab_size=3) * 100)
    tokens = jnp.asarray(np.random.default_rng(0).integers(0, 3, size=(30, 40)), jnp.int32)
    sampling = Sampling(
        temperature=1e-3,
        top_k=1,
        top_p=1e-6,
        min_p=1.0,
        typical=1e-6,
        repetition_penalty=9.0,
        block_repeated_ngrams=2,
    )
    assert [len(row) for row in kept(transform(logits, tokens, 40, sampling))] == [1] * 30


@pytest.mark.parametrize(
    ("sampling", "expected"),
    [
        (Sampling(), [0.4, 0.3, 0.2, 0.1]),
        (Sampling(top_k=2), [4 / 7, 3 / 7, 0, 0]),
        (Sampling(top_p=0.65), [4 / 7, 3 / 7, 0, 0]),
        (Sampling(min_p=0.5), [4 / 9, 3 / 9, 2 / 9, 0]),
        (Sampling(temperature=0.5), [16 / 30, 9 / 30, 4 / 30, 1 / 30]),
        (Sampling(temperature=0.0), [1, 0, 0, 0]),
    ],
)
def test_frequencies_of_draws(sampling, expected):
    count = 20_000
    keys = jax.random.split(jax.random.key(7), count)
    logits = jnp.broadcast_to(jnp.log(jnp.asarray([0.4, 0.3, 0.2, 0.1])), (count, 4))
    tokens = jnp.zeros((count, 1), jnp.int32)
    drawn = np.asarray(draw(keys, transform(logits, tokens, 0, sampling), sampling))
    frequencies = np.bincount(drawn, minlength=4) / count
    # Five standard deviations of a binomial proportion.
    np.testing.assert_allclose(frequencies, expected, atol=5 * 0.5 / np.sqrt(count))
    np.testing.assert_array_equal(frequencies[np.asarray(expected) == 0], 0)


@pytest.mark.parametrize(
    "wrong",
    [
        {"temperature": -0.1},
        {"temperature": float("nan")},
        {"top_k": 0},
        {"top_p": 0.0},
        {"top_p": 1.1},
        {"min_p": -0.1},
        {"typical": 0.0},
        {"repetition_penalty": 0.0},
        {"block_repeated_ngrams": 0},
    ],
)
def test_a_value_out_of_range_is_named(wrong):
    with pytest.raises(UserError, match=next(iter(wrong))):
        Sampling(**wrong)
