"""The language-modelling task: gradients, figures, protocols, carried state, learning."""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from genjax.config import check
from genjax.errors import UserError
from genjax.task import Shard
from genjax.text.language_modeling import NETWORK
from genjax.text.language_modeling_config import LanguageModelingConfig

TEXT = "the cat sat on the mat, and the dog sat on the cat. " * 40


@pytest.fixture(scope="module")
def text_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text(TEXT)
    return path


def make(text_file, model="transformer", batching="windows", **tables):
    models = {
        "transformer": {"kind": "transformer", "num_layers": 1, "num_heads": 2, "hidden_size": 32},
        "lstm": {"kind": "lstm", "num_layers": 1, "hidden_size": 32},
        "gru": {"kind": "gru", "num_layers": 1, "hidden_size": 32},
        "rnn": {"kind": "rnn", "num_layers": 1, "hidden_size": 32},
    }
    tree = {
        "kind": "language_modeling",
        "steps": 100,
        "data": {
            "source": {"kind": "files", "path": str(text_file)},
            "tokenizer": {"kind": "characters"},
            "batching": {"kind": batching, "batch_size": 4, "sequence_length": 16},
        },
        "model": models[model] | tables.pop("model_fields", {}),
        "optimizer": {"kind": "adamw", "learning_rate": 0.02, "schedule": {"kind": "constant"}},
    }
    for table, values in tables.items():
        tree[table] = tree.get(table, {}) | values
    return check(tree, LanguageModelingConfig).make_task()


@functools.cache
def compiled(task):
    """One program a task and function, however often a test calls it."""
    return jax.jit(task.init), jax.jit(task.train_step), jax.jit(task.eval_step)


def evaluate(task, state):
    evaluation = task.evaluation(Shard())
    _, _, step = compiled(task)
    state = dataclasses.replace(state, carry=evaluation.carry)
    totals = None
    for number in range(len(evaluation.batches)):
        carry, sums = step(state, evaluation.batches[number])
        state = dataclasses.replace(state, carry=carry)
        totals = sums if totals is None else jax.tree.map(jnp.add, totals, sums)
    return task.figures(totals)


def train(task, steps, state=None):
    init, step, _ = compiled(task)
    state = init(jax.random.key(0)) if state is None else state
    batches = task.dataset("train", Shard())
    for number in range(steps):
        state, metrics = step(state, batches[number])
    return state, metrics


@pytest.mark.parametrize(
    ("model", "batching"),
    [
        ("transformer", "windows"),
        ("transformer", "documents"),
        ("lstm", "streams"),
        ("gru", "streams"),
        ("rnn", "windows"),
        ("lstm", "documents"),
    ],
)
def test_learns_a_repeating_text(text_file, model, batching):
    task = make(text_file, model, batching)
    untrained = evaluate(task, compiled(task)[0](jax.random.key(0)))
    assert abs(untrained["nats_per_token"] - math.log(task.data.tokenizer.vocab_size)) < 0.3
    state, metrics = train(task, 150)
    assert float(metrics["loss"]) < 0.6
    trained = evaluate(task, state)
    assert trained["nats_per_token"] < 0.6
    figures = {row["name"]: row["nats_per_token"] for row in task.baselines()}
    assert trained["nats_per_token"] < figures["bigram"] < figures["unigram"] < figures["uniform"]


def test_figures_are_what_they_say(text_file):
    task = make(text_file)
    figures = task.figures({"nats": 20.0, "tokens": 10.0, "bytes": 40.0, "characters": 16.0})
    assert figures["nats_per_token"] == 2.0
    assert figures["perplexity"] == pytest.approx(math.exp(2.0))
    assert figures["bits_per_byte"] == pytest.approx(20 / math.log(2) / 40)
    assert figures["bits_per_character"] == pytest.approx(20 / math.log(2) / 16)


@pytest.mark.parametrize(
    ("model", "batching"),
    [("transformer", "documents"), pytest.param("lstm", "windows", marks=pytest.mark.slow)],
)
def test_accumulation_changes_nothing_but_memory(text_file, model, batching):
    """With SGD, so that rounding is not blown up by Adam's division."""
    results = []
    for parts in (1, 4):
        optimizer = {"kind": "sgd", "learning_rate": 0.5, "accumulate": parts}
        task = make(text_file, model, batching, optimizer=optimizer)
        state, metrics = train(task, 2)
        results.append((state.params, metrics))
    for params, metrics in results[1:]:
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, atol=2e-6), params, results[0][0]
        )
        np.testing.assert_allclose(metrics["loss"], results[0][1]["loss"], rtol=1e-5)


def test_accumulation_keeps_the_rows_of_carried_state(text_file):
    carries = []
    for parts in (1, 2):
        optimizer = {"kind": "sgd", "learning_rate": 0.1, "accumulate": parts}
        state, _ = train(make(text_file, "lstm", "streams", optimizer=optimizer), 3)
        carries.append(state.carry)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), *carries)


def test_state_is_carried_from_batch_to_batch(text_file):
    """Two batches of 8 tokens in a row see what one batch of 16 sees."""
    frozen = {"kind": "sgd", "learning_rate": 1e-30}
    short = {"kind": "streams", "batch_size": 4, "sequence_length": 8}
    task = make(text_file, "lstm", "streams", optimizer=frozen, data={})
    tree = task.config.model_dump(mode="json")
    tree["data"]["batching"] = short
    halves = check(tree, LanguageModelingConfig).make_task()
    whole_state, whole = train(task, 1)
    half_state, _ = train(halves, 1)
    first_loss = train(halves, 1)[1]["loss"]
    second_state, second = compiled(halves)[1](half_state, halves.dataset("train", Shard())[1])
    np.testing.assert_allclose((first_loss + second["loss"]) / 2, whole["loss"], rtol=1e-5)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6),
        second_state.carry,
        whole_state.carry,
    )


def test_reset_begins_from_zero(text_file):
    task = make(text_file, "gru", "streams")
    state, _ = train(task, 3)
    batch = dict(task.dataset("train", Shard())[0])
    assert batch["reset"].all()
    carried, _ = compiled(task)[1](state, batch)
    fresh = dataclasses.replace(state, carry=compiled(task)[0](jax.random.key(0)).carry)
    zeroed, _ = compiled(task)[1](fresh, batch)
    jax.tree.map(np.testing.assert_array_equal, carried.carry, zeroed.carry)


@pytest.mark.parametrize("batch_size", [1, 3, 8])
def test_figures_do_not_depend_on_the_batch_size(text_file, batch_size):
    reference = make(text_file)
    state, _ = train(reference, 5)
    task = make(text_file, evaluation={"batch_size": batch_size})
    expected, found = evaluate(reference, state), evaluate(task, state)
    assert found["tokens"] == expected["tokens"] == len(task.data.corpus("validation").tokens) - 1
    assert found["nats_per_token"] == pytest.approx(expected["nats_per_token"], rel=1e-5)


def test_sliding_windows_score_each_token_from_its_own_window(text_file):
    """With stride 1 each target is predicted from the 16 tokens before it, or all there are."""
    reference = make(text_file)
    state, _ = train(reference, 20)
    params = {"params": state.params[NETWORK]}
    tokens = jnp.asarray(reference.data.corpus("validation").tokens, jnp.int32)
    windows = jnp.stack([tokens[first : first + 17] for first in range(len(tokens) - 16)])
    hidden, _ = reference.model.apply(params, windows[:, :-1], method="hidden")
    nats = reference.model.apply(params, hidden, windows[:, 1:], None, method="losses")
    expected = float((nats[0].sum() + nats[1:, -1].sum()) / (len(tokens) - 1))
    sliding = make(text_file, evaluation={"protocol": "sliding", "stride": 1})
    assert evaluate(sliding, state)["nats_per_token"] == pytest.approx(expected, rel=1e-5)
    chunks = evaluate(reference, state)
    beside = evaluate(make(text_file, evaluation={"protocol": "sliding", "stride": 16}), state)
    assert beside["nats_per_token"] == pytest.approx(chunks["nats_per_token"], rel=1e-6)


def test_one_carried_stream_equals_one_long_sequence(text_file):
    evaluation = {"protocol": "streams", "batch_size": 1, "sequence_length": 7}
    task = make(text_file, "lstm", "streams", evaluation=evaluation)
    state, _ = train(task, 20)
    tokens = jnp.asarray(task.data.corpus("validation").tokens, jnp.int32)
    hidden, _ = task.model.apply(
        {"params": state.params[NETWORK]}, tokens[None, :-1], method="hidden"
    )
    nats = task.model.apply(
        {"params": state.params[NETWORK]}, hidden, tokens[None, 1:], None, method="losses"
    )
    assert evaluate(task, state)["nats_per_token"] == pytest.approx(float(nats.mean()), rel=1e-5)


def test_the_average_is_what_is_evaluated(text_file):
    optimizer = {"kind": "adamw", "learning_rate": 0.02, "ema_decay": 0.9}
    task = make(text_file, optimizer=optimizer)
    state, _ = train(task, 4)
    expected = compiled(task)[0](jax.random.key(0)).params[NETWORK]
    init, step, _ = compiled(task)
    running, batches = init(jax.random.key(0)), task.dataset("train", Shard())
    for number in range(4):
        running, _ = step(running, batches[number])
        params = running.params[NETWORK]
        expected = jax.tree.map(lambda a, p: 0.9 * a + 0.1 * p, expected, params)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), state.ema[NETWORK], expected
    )
    plain = dataclasses.replace(state, params=state.ema, ema={})
    assert evaluate(task, state) == evaluate(task, plain)
    assert evaluate(task, state) != evaluate(task, dataclasses.replace(state, ema={}))


def test_dropout_depends_on_the_step_and_the_seed_alone(text_file):
    task = make(text_file, model_fields={"dropout": 0.5})
    state = compiled(task)[0](jax.random.key(0))
    batch = task.dataset("train", Shard())[0]

    def loss(state):
        return float(compiled(task)[1](state, batch)[1]["loss"])

    assert loss(state) == loss(state)
    assert loss(state) != loss(dataclasses.replace(state, step=state.step + 1))


def test_padding_and_other_documents_do_not_count(tmp_path):
    path = tmp_path / "documents.txt"
    path.write_text("abcdefgh|" * 30)
    tree = {
        "data": {
            "source": {"kind": "files", "path": str(path), "document_separator": "|"},
            "tokenizer": {"kind": "characters"},
            "batching": {"kind": "documents", "batch_size": 2, "sequence_length": 16},
        },
        "model": {"kind": "transformer", "num_layers": 1, "num_heads": 2, "hidden_size": 32},
        "optimizer": {"kind": "adamw", "learning_rate": 0.02, "schedule": {"kind": "constant"}},
    }
    task = check(tree, LanguageModelingConfig).make_task()
    state, _ = train(task, 150)
    # Every counted token follows from the one before it, the first of a document alone does not.
    assert evaluate(task, state)["nats_per_token"] < 0.02


def test_generates_what_it_learned(tmp_path):
    path = tmp_path / "letters.txt"
    path.write_text("abcdefghij" * 100)
    task = make(path, "gru", "streams")
    state, _ = train(task, 100)
    schema = task.config.generation_schema()
    request = schema(prompt=("abc", "h"), max_tokens=20, temperature=0.0, stop=("ef",))
    pieces = list(task.generate(state, jax.random.key(0), request))
    texts = ["".join(piece.text for piece in pieces if piece.index == row) for row in (0, 1)]
    assert texts == ["abcd", "hijabcd"]
    assert [piece.reason for piece in pieces if piece.done] == ["stop_string"] * 2


@pytest.mark.parametrize(
    ("tables", "message"),
    [
        ({"evaluation": {"protocol": "streams"}}, "carries a recurrent state"),
        ({"model_fields": {"context_length": 8}}, "16 tokens is longer than .* 8"),
        ({"evaluation": {"sequence_length": 99}}, "99 tokens is longer than .* 16"),
        ({"evaluation": {"split": "nowhere"}}, "no split 'nowhere'"),
    ],
)
def test_what_does_not_fit_is_refused(text_file, tables, message):
    with pytest.raises(UserError, match=message):
        make(text_file, **tables).evaluation(Shard())


def test_changed_text_is_refused_when_a_run_goes_on(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text(TEXT)
    task = make(path)
    task.save_assets(tmp_path)
    again = task.config.make_task(tmp_path)
    assert again.data.tokenizer.vocab_size == task.data.tokenizer.vocab_size
    path.write_text(TEXT + "éé")
    changed = task.config.make_task(tmp_path)
    with pytest.raises(UserError, match="changed since the run began"):
        changed.dataset("train", Shard())


def test_another_text_on_purpose_is_read(tmp_path):
    path, other = tmp_path / "text.txt", tmp_path / "other.txt"
    path.write_text(TEXT)
    other.write_text("the mat sat on the dog. " * 40)
    task = make(path)
    task.save_assets(tmp_path)
    tree = task.config.model_dump(mode="json")
    tree["data"]["source"]["path"] = str(other)
    tree = {key: tree[key] for key in ("kind", "data", "model")}
    tree["model"] = {"kind": "transformer", "num_layers": 1, "num_heads": 2, "hidden_size": 32}
    moved = check(tree, LanguageModelingConfig).make_task(tmp_path)
    assert moved.evaluation(Shard()).batches.targets == 24 * 4 - 1


def test_a_missing_fingerprint_is_told(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text(TEXT)
    task = make(path)
    task.save_assets(tmp_path)
    (tmp_path / "text.json").unlink()
    with pytest.raises(UserError, match="FileNotFoundError"):
        task.config.make_task(tmp_path)


@pytest.mark.parametrize(
    ("model", "fields"),
    [
        ("transformer", {"attention": "splash"}),
        ("transformer", {"attention": "cudnn", "dtype": "bfloat16"}),
        ("lstm", {"implementation": "cudnn"}),
    ],
)
def test_kernels_of_other_machines_leave_the_state_as_it_is(text_file, model, fields):
    task = make(text_file, model, model_fields=fields)
    plain = make(text_file, model)
    shapes, expected = (jax.eval_shape(t.init, jax.random.key(0)) for t in (task, plain))
    assert jax.tree.all(jax.tree.map(lambda a, b: a.shape == b.shape, shapes, expected))


def test_the_protocol_tells_of_averages(text_file):
    task = make(text_file, optimizer={"ema_decay": 0.9})
    assert task.evaluation(Shard()).protocol.endswith(", parameters averaged by 0.9")
    assert "averaged" not in make(text_file).evaluation(Shard()).protocol


def test_measuring_the_training_text_does_not_pass_for_training(text_file):
    task = make(text_file, evaluation={"split": "train"})
    assert task.evaluation(Shard()).name == "training_text"


def test_baselines_score_what_the_evaluation_scores(tmp_path):
    path = tmp_path / "documents.txt"
    path.write_text("|".join(["ab", "cdé", "efgh"] * 40))
    source = {"kind": "files", "path": str(path), "document_separator": "|"}
    for batching in ("documents", "windows"):
        task = make(
            path,
            batching=batching,
            data={
                "source": source,
                "tokenizer": {"kind": "bytes"},
                "batching": {"kind": batching, "batch_size": 4, "sequence_length": 16},
            },
        )
        state = compiled(task)[0](jax.random.key(0))
        figures = evaluate(task, state)
        for baseline in task.baselines():
            assert baseline["tokens"] == figures["tokens"]
            nats = baseline["bits_per_byte"] / baseline["nats_per_token"]
            assert nats == pytest.approx(figures["bits_per_byte"] / figures["nats_per_token"])


def test_prompts_that_cannot_be_written_are_told_before_training(text_file):
    task = make(text_file, samples={"prompts": ["the Q"]})
    with pytest.raises(UserError, match=r"samples\.prompts: .* did not have: 'Q'"):
        task.dataset("train", Shard())
