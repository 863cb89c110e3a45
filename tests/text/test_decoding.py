import functools
import itertools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from genjax.errors import UserError
from genjax.text import decoding_loop
from genjax.text.decoding import generate, generate_text
from genjax.text.logits import Sampling, draw, transform
from genjax.text.tokenizers import ByteTokenizer, CharacterTokenizer
from genjax.text.transformer import Transformer

VOCAB_SIZE = 29
KEY = jax.random.key(11)
GREEDY = Sampling(temperature=0.0)


class Elman(nn.Module):
    """The smallest recurrent language model: h' = tanh(W h + e(x))."""

    vocab_size: int = VOCAB_SIZE
    hidden_size: int = 24
    context_length: int | None = None

    def setup(self):
        self.embedding = nn.Embed(self.vocab_size, self.hidden_size)
        shape = (self.hidden_size, self.hidden_size)
        self.recurrent = self.param("recurrent", nn.initializers.normal(0.1), shape)
        self.output = nn.Dense(self.vocab_size)

    def initial_carry(self, batch_size, length):
        return jnp.zeros((batch_size, self.hidden_size))

    def hidden(self, tokens, carry=None):
        if carry is None:
            carry = self.initial_carry(tokens.shape[0], tokens.shape[1])

        def step(state, x):
            state = jnp.tanh(state @ self.recurrent + x)
            return state, state

        carry, states = jax.lax.scan(step, carry, self.embedding(tokens).swapaxes(0, 1))
        return states.swapaxes(0, 1), carry

    def logits(self, hidden):
        return self.output(hidden)

    def __call__(self, tokens, carry=None):
        hidden, carry = self.hidden(tokens, carry)
        return self.logits(hidden), carry


def transformer(context_length=64, **fields):
    return Transformer(
        vocab_size=fields.pop("vocab_size", VOCAB_SIZE),
        context_length=context_length,
        num_layers=2 if fields.get("scan_layers") else 1,
        num_heads=4,
        hidden_size=16,
        **fields,
    )


def initialise(model):
    params = model.init(jax.random.key(0), jnp.zeros((1, 4), jnp.int32))["params"]
    # Far from a fresh model's almost even distribution, so that every logit matters.
    return jax.tree.map(lambda x: 8 * x if x.ndim > 1 else x, params)


MODELS = {
    "learned": transformer(),
    "short": transformer(context_length=20),
    "odd": transformer(context_length=17, position="rope", num_kv_heads=2, norm="rms_norm"),
    "scanned": transformer(context_length=24, scan_layers=True),
    "recurrent": Elman(),
}
PARAMS = {name: initialise(model) for name, model in MODELS.items()}


def prompt(length, seed=0):
    return np.random.default_rng(seed).integers(0, VOCAB_SIZE, size=length).astype(np.int32)


def collect(model, params, prompts, chunk=16, **options):
    options = {"key": KEY, "max_tokens": 12, "sampling": Sampling(), **options}
    rows = [[] for _ in prompts]
    scores = [[] for _ in prompts]
    reasons = []
    for part in generate(model, params, prompts, chunk=chunk, **options):
        assert len(part.tokens) == len(prompts)
        for row, new in zip(rows, part.tokens, strict=True):
            assert len(new) <= chunk or len({len(p) for p in prompts}) > 1
            row.extend(new.tolist())
        for row, new in zip(scores, part.log_probs or [], strict=False):
            row.extend(new.tolist())
        reasons = part.reasons
    return rows, reasons, scores


LONGEST = 96


@functools.cache
def uncached_step(name, sampling):
    """One token without a cache: reads the window whole, chooses as the definition says."""
    model = MODELS[name]

    @jax.jit
    def step(window, last, history, length, key):
        logits = model.apply({"params": PARAMS[name]}, window[None])[0][:, last]
        chosen = draw(key[None], transform(logits, history[None], length, sampling), sampling)[0]
        return chosen, jax.nn.log_softmax(logits)[0, chosen]

    return step


def reference(name, tokens, count, sampling, sample_id=0):
    context = MODELS[name].context_length or LONGEST
    step = uncached_step(name, sampling)
    text, scores, window = list(map(int, tokens)), [], []
    for token in text[:-1]:
        window = (window[-(context // 2) :] if len(window) == context else window) + [token]
    row_key = jax.random.fold_in(KEY, sample_id)
    for _ in range(count):
        window = (window[-(context // 2) :] if len(window) == context else window) + [text[-1]]
        chosen, score = step(
            np.pad(np.asarray(window, np.int32), (0, context - len(window))),
            len(window) - 1,
            np.pad(np.asarray(text, np.int32), (0, LONGEST - len(text))),
            len(text),
            jax.random.fold_in(row_key, len(text)),
        )
        text.append(int(chosen))
        scores.append(float(score))
    return text[len(tokens) :], scores


@pytest.mark.parametrize("name", MODELS)
def test_logits_with_a_cache_equal_those_without(name):
    model, params = MODELS[name], PARAMS[name]
    tokens = jnp.asarray(np.stack([prompt(16, 1), prompt(16, 2)]))
    apply = jax.jit(lambda tokens, carry: model.apply({"params": params}, tokens, carry))
    expected, _ = apply(tokens, None)
    carry = decoding_loop._prefill(model, params, tokens[:, :9], 16)
    for time in range(9, 16):
        step = tokens[:, time : time + 1]
        logits, carry = apply(step, carry)
        np.testing.assert_allclose(logits[:, 0], expected[:, time], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("name", "lengths"),
    [
        ("learned", [1, 17]),
        ("short", [1, 20, 34]),  # shorter and longer than the context
        ("odd", [16, 17, 34]),  # at the edges of prefill and window
        ("scanned", [34]),
        ("recurrent", [1, 34]),
    ],
)
def test_greedy_output_and_scores_equal_those_without_a_cache(name, lengths):
    for length in lengths:
        row = prompt(length)
        text, scores = reference(name, row, 30, GREEDY)
        rows, reasons, log_probs = collect(
            MODELS[name], PARAMS[name], [row], max_tokens=30, sampling=GREEDY, score=True
        )
        assert rows == [text]
        assert reasons == ["length"]
        np.testing.assert_allclose(log_probs[0], scores, atol=1e-5)


@pytest.mark.parametrize("name", ["short", "recurrent"])
def test_sampled_output_with_every_transform_equals_that_without_a_cache(name):
    sampling = Sampling(
        temperature=1.5,
        top_k=20,
        top_p=0.95,
        min_p=0.01,
        typical=0.9,
        repetition_penalty=1.2,
        block_repeated_ngrams=2,
    )
    row = prompt(18)
    text, scores = reference(name, row, 60, sampling, sample_id=5)
    rows, _, log_probs = collect(
        MODELS[name],
        PARAMS[name],
        [row],
        max_tokens=60,
        sampling=sampling,
        score=True,
        sample_ids=[5],
    )
    assert rows == [text]
    np.testing.assert_allclose(log_probs[0], scores, atol=1e-5)
    pairs = list(itertools.pairwise(text))
    assert len(pairs) == len(set(pairs))


@pytest.mark.parametrize("name", ["odd", "recurrent"])
def test_chunks_do_not_change_the_text(name):
    prompts = [prompt(5), prompt(19, 1), prompt(1, 2)]
    model, params = MODELS[name], PARAMS[name]
    expected = collect(model, params, prompts, chunk=1000, max_tokens=25, score=True)
    for chunk in (1, 5, 16):
        assert collect(model, params, prompts, chunk=chunk, max_tokens=25, score=True) == expected


@pytest.mark.parametrize("name", ["short", "recurrent"])
def test_a_row_does_not_depend_on_the_others(name):
    prompts = [prompt(23), prompt(2, 1), prompt(40, 2), prompt(2, 1)]
    model, params = MODELS[name], PARAMS[name]
    together, reasons, _ = collect(model, params, prompts, max_tokens=[30, 5, 9, 33])
    assert [len(row) for row in together] == [30, 5, 9, 33]
    assert reasons == ["length"] * 4
    for index, (row, limit) in enumerate(zip(prompts, [30, 5, 9, 33], strict=True)):
        alone, _, _ = collect(model, params, [row], max_tokens=limit, sample_ids=[index])
        assert alone == [together[index]]
    assert together[1] != together[3][:5]


def test_different_keys_and_sample_ids_give_different_texts():
    model, params = MODELS["learned"], PARAMS["learned"]
    rows, _, _ = collect(model, params, [prompt(4)] * 3, sample_ids=[0, 1, 0])
    assert rows[0] == rows[2] != rows[1]
    other, _, _ = collect(model, params, [prompt(4)], key=jax.random.key(12))
    assert other[0] != rows[0]


def test_stop_tokens_end_a_row_and_are_part_of_it():
    model, params = MODELS["learned"], PARAMS["learned"]
    prompts = [prompt(6), prompt(3, 1)]
    free, _, _ = collect(model, params, prompts, max_tokens=20)
    stop = (free[0][7], VOCAB_SIZE - 1)
    rows, reasons, _ = collect(model, params, prompts, max_tokens=20, stop_tokens=stop)
    for row, reason, whole in zip(rows, reasons, free, strict=True):
        end = next((i + 1 for i, token in enumerate(whole) if token in stop), 20)
        assert row == whole[:end]
        assert reason == ("stop_token" if whole[end - 1] in stop else "length")
    assert reasons[0] == "stop_token"


def test_a_stop_token_in_a_prompt_does_not_end_the_row():
    model, params = MODELS["learned"], PARAMS["learned"]
    prompts = [prompt(6), prompt(30, 1)]
    rows, _, _ = collect(model, params, prompts, max_tokens=4)
    stop = tuple(sorted(set(prompts[1].tolist()) - set(rows[1])))[:2]
    again, reasons, _ = collect(model, params, prompts, max_tokens=4, stop_tokens=stop)
    assert again[1] == rows[1]
    assert reasons[1] == "length"


def test_the_loop_ends_early_and_rows_can_be_stopped_between_chunks():
    model, params = MODELS["learned"], PARAMS["learned"]
    asked = []

    def should_stop(row, tokens):
        asked.append((row, len(tokens)))
        return row == 0 or len(tokens) >= 12

    parts = list(
        generate(
            model,
            params,
            [prompt(3), prompt(3, 1)],
            key=KEY,
            max_tokens=50,
            sampling=Sampling(),
            should_stop=should_stop,
            chunk=4,
        )
    )
    assert [[len(new) for new in part.tokens] for part in parts] == [[4, 4], [0, 4], [0, 4]]
    assert asked == [(0, 4), (1, 4), (1, 8), (1, 12)]
    assert parts[1].reasons == ["stop_string", None]


def test_an_empty_prompt_begins_with_the_start_token():
    model, params = MODELS["learned"], PARAMS["learned"]
    empty = np.zeros(0, np.int32)
    rows, _, _ = collect(model, params, [empty, prompt(9)], start=4)
    expected, _, _ = collect(model, params, [np.asarray([4], np.int32)])
    assert rows[0] == expected[0]


def test_requests_of_one_shape_share_compiled_programs():
    model, params = MODELS["learned"], PARAMS["learned"]
    collect(model, params, [prompt(17)], max_tokens=20)
    before = decoding_loop.advance._cache_size(), decoding_loop._prefill._cache_size()
    collect(model, params, [prompt(30)], max_tokens=31, chunk=3, key=jax.random.key(3))
    collect(transformer(), params, [prompt(17)], max_tokens=1)
    assert (decoding_loop.advance._cache_size(), decoding_loop._prefill._cache_size()) == before


def test_the_cache_is_donated():
    model, params = MODELS["learned"], PARAMS["learned"]
    state = decoding_loop.start(
        model, params, np.zeros((1, 64), np.int32), np.asarray([4], np.int32), False
    )
    request = decoding_loop.Request(
        prompt_lengths=jnp.asarray([4], jnp.int32),
        limits=jnp.asarray([60], jnp.int32),
        stop_tokens=jnp.zeros(0, jnp.int32),
        row_keys=KEY[None],
    )
    decoding_loop.advance(model, params, request, GREEDY, state, jnp.int32(8))
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(state.carry))


@pytest.mark.parametrize(
    ("prompts", "options", "message"),
    [
        ([[]], {}, "prompt 0 is empty"),
        ([[1], [VOCAB_SIZE]], {}, "prompt 1 holds token id 29"),
        ([[-1]], {}, "token id -1"),
        ([[1]], {"max_tokens": 0}, "max_tokens = 0"),
        ([[1], [2]], {"max_tokens": [3, -1]}, "max_tokens = -1"),
    ],
)
def test_mistakes_are_told_at_once(prompts, options, message):
    options = {"key": KEY, "max_tokens": 3, "sampling": GREEDY, **options}
    arrays = [np.asarray(tokens, np.int32) for tokens in prompts]
    with pytest.raises(UserError, match=message):
        generate(MODELS["learned"], PARAMS["learned"], arrays, **options)


class Scripted(nn.Module):
    """Writes a given text whatever it reads: the state counts the tokens."""

    script: tuple[int, ...]
    vocab_size: int = 257
    context_length: int | None = None

    def initial_carry(self, batch_size, length):
        return jnp.zeros(batch_size, jnp.int32)

    def hidden(self, tokens, carry):
        counts = carry[:, None] + jnp.arange(tokens.shape[1])
        script = jnp.asarray(self.script)
        return jax.nn.one_hot(script[counts % len(self.script)], self.vocab_size), counts[:, -1] + 1

    def logits(self, hidden):
        return hidden


def say(text, stop=(), chunk=16, max_tokens=None, tokenizer=None):
    tokenizer = tokenizer or ByteTokenizer(with_end_of_text=True)
    script = (*text.encode(), 256) if isinstance(text, str) else text
    pieces = list(
        generate_text(
            Scripted(script),
            {},
            tokenizer,
            [""],
            key=KEY,
            max_tokens=max_tokens or len(script),
            sampling=GREEDY,
            stop=stop,
            chunk=chunk,
        )
    )
    assert [piece.done for piece in pieces] == [False] * (len(pieces) - 1) + [True]
    assert all(piece.text for piece in pieces[:-1])
    assert all(piece.reason is None for piece in pieces[:-1])
    return "".join(piece.text for piece in pieces), pieces[-1].reason


@pytest.mark.parametrize("chunk", [1, 2, 3, 7, 50])
def test_stop_strings_are_never_given_out(chunk):
    assert say("to be or not", stop=("or n",), chunk=chunk) == ("to be ", "stop_string")
    assert say("aaab", stop=("aab",), chunk=chunk) == ("a", "stop_string")
    assert say("xabcd", stop=("abcd", "bc"), chunk=chunk) == ("xa", "stop_string")
    assert say("xab", stop=("b", "ab"), chunk=chunk) == ("x", "stop_string")
    assert say("abab", stop=("abc", "zz"), chunk=chunk) == ("abab", "stop_token")
    assert say("abab", stop=("abc",), chunk=chunk, max_tokens=3) == ("aba", "length")
    assert say("naïve ß ja", stop=("ß j",), chunk=chunk) == ("naïve ", "stop_string")


@pytest.mark.parametrize("chunk", [1, 2, 5])
def test_unfinished_characters_are_held_back(chunk):
    assert say("éß😀", chunk=chunk) == ("éß😀", "stop_token")
    assert say("é😀", chunk=chunk, max_tokens=4) == ("é\ufffd", "length")


def test_text_that_may_begin_a_stop_string_is_held_back():
    model = Scripted(tuple(b"one EN two END"))
    pieces = generate_text(
        model,
        {},
        ByteTokenizer(),
        [""],
        key=KEY,
        max_tokens=14,
        sampling=GREEDY,
        stop=("END",),
        chunk=2,
    )
    shown = [piece.text for piece in pieces]
    assert shown == ["on", "e ", "EN t", "wo", " ", ""]


def test_text_of_a_batch_arrives_by_row():
    model = transformer(vocab_size=256, context_length=32)
    tokenizer = ByteTokenizer()
    options = {"key": KEY, "max_tokens": [9, 40], "sampling": Sampling(top_k=5)}
    pieces = list(
        generate_text(model, initialise(model), tokenizer, ["To be", ""], chunk=8, **options)
    )
    encoded = [tokenizer.encode("To be"), np.asarray([10], np.int32)]
    expected, _, _ = collect(model, initialise(model), encoded, **options)
    for row, tokens in enumerate(expected):
        own = [piece for piece in pieces if piece.index == row]
        assert "".join(piece.text for piece in own) == tokenizer.decode(tokens)
        assert [piece.reason for piece in own if piece.done] == ["length"]


@pytest.mark.parametrize(
    ("tokenizer", "start"),
    [
        (ByteTokenizer(with_end_of_text=True), 256),
        (ByteTokenizer(), 10),
        (CharacterTokenizer("ab\n"), 0),
        (CharacterTokenizer("\tab"), 0),
        (CharacterTokenizer("\tab\n"), 1),
    ],
)
def test_what_stands_for_an_empty_prompt(tokenizer, start):
    model = Elman(vocab_size=tokenizer.vocab_size)
    params = initialise(model)
    options = {"key": KEY, "max_tokens": 8, "sampling": Sampling()}
    default = list(generate_text(model, params, tokenizer, [""], **options))
    explicit = list(generate_text(model, params, tokenizer, [""], start=start, **options))
    assert default == explicit
    other = list(generate_text(model, params, tokenizer, [""], start=2, **options))
    assert other != default


def test_an_empty_stop_string_is_refused():
    with pytest.raises(UserError, match="stop string is empty"):
        say("abc", stop=("",))
