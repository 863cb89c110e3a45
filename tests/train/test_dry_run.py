"""What a dry run prints is what the task is, and it costs no memory."""

import io
import re

import jax
import pytest
from rich.console import Console

from genjax.config import check
from genjax.errors import UserError
from genjax.families import FAMILIES
from train.dry_run import dry_run

pytestmark = pytest.mark.fast

MODEL = {"kind": "transformer", "num_layers": 3, "num_heads": 2, "hidden_size": 64}
VOCABULARY, LENGTH, BATCH = 256, 32, 8


def make_config(**tables):
    tree = {
        "kind": "language_modeling",
        "steps": 1234,
        "data": {"batching": {"kind": "windows", "batch_size": BATCH, "sequence_length": LENGTH}},
        "model": MODEL,
        "optimizer": {"kind": "adamw"},
    }
    for name, values in tables.items():
        tree[name] = tree.get(name, {}) | values
    return check(tree, FAMILIES)


def printed(config, task=None):
    text = io.StringIO()
    dry_run(task or config.make_task(), config, Console(file=text, width=200))
    return text.getvalue()


def row(text, name):
    line = next(line for line in text.splitlines() if line.strip().startswith(name))
    return re.split(r"\s{2,}", line.strip())[1:]


def gpt2_parameters(vocabulary, length, layers, size):
    """Two embeddings; in a layer 12 D^2 of kernels, 9 D of their biases, 4 D of norms."""
    return (vocabulary + length + 2) * size + layers * (12 * size**2 + 13 * size)


@pytest.fixture(scope="module")
def count():
    return gpt2_parameters(VOCABULARY, LENGTH, 3, 64)


def test_the_formula_of_this_file_gives_the_published_size_of_gpt2():
    assert gpt2_parameters(50257, 1024, 12, 768) == 124_439_808


def test_parameters_and_their_bytes_are_those_of_the_formula(count):
    text = printed(make_config())
    assert row(text, "parameters of language_model") == [
        f"{count:,}",
        f"{4 * count / 1024:.2f} KiB",
    ]
    # Adam's two moments and two counters: its own, and the schedule's.
    assert row(text, "optimizer state") == [f"{8 * (count + 1) / 1024**2:.2f} MiB"]
    assert row(text, "averages") == row(text, "carry") == ["0 B"]


def test_an_average_is_as_large_as_the_parameters(count):
    text = printed(make_config(optimizer={"kind": "adamw", "ema_decay": 0.99}))
    assert row(text, "averages") == [f"{4 * count / 1024:.2f} KiB"]


def test_work_is_the_formula_of_the_task():
    config = make_config()
    task = config.make_task()
    per_token = 3 * (12 * 64**2 + 2 * LENGTH * 64) + 64 * VOCABULARY
    expected = 3 * 2 * per_token * BATCH * LENGTH
    assert task.flops_per_step() == expected
    text = printed(config, task)
    assert row(text, "work of a step") == [f"{expected / 1e6:.2f} MFLOP"]
    assert row(text, "tokens a step") == [str(BATCH * LENGTH)]
    assert row(text, "steps") == ["1,234"]


def test_an_unknown_amount_of_work_is_said_to_be_unknown(monkeypatch):
    config = make_config()
    task = config.make_task()
    monkeypatch.setattr(task, "flops_per_step", lambda: None)
    assert row(printed(config, task), "work of a step") == ["not known"]


def test_a_mesh_divides_what_each_device_holds(count):
    text = printed(make_config())
    assert row(text, "mesh") == ["data 8 x fsdp 1 x tensor 1 x sequence 1", "8 cpu device(s)"]
    assert row(text, "parameters on each device") == [f"{4 * count / 1024:.2f} KiB"]
    assert "not sharded" not in text

    text = printed(make_config(mesh={"fsdp": 4}))
    assert row(text, "mesh") == ["data 2 x fsdp 4 x tensor 1 x sequence 1", "8 cpu device(s)"]
    number, unit = row(text, "parameters on each device")[0].split()
    assert unit == "KiB"
    assert count / 1024 < float(number) < 1.05 * count / 1024
    # Norms and biases: 3 layers of 13 D, and the last norm.
    whole = (3 * 13 * 64 + 2 * 64) / count
    assert row(text, "parameters not sharded") == [f"{100 * whole:.1f}%"]


def test_a_model_far_beyond_the_memory_here_allocates_nothing():
    sizes = {"num_layers": 96, "num_heads": 96, "hidden_size": 12288, "scan_layers": True}
    config = make_config(model=MODEL | sizes)
    task = config.make_task()
    seen = []

    class Watching(io.StringIO):
        def write(self, text):
            seen.append(len(jax.live_arrays()))
            return super().write(text)

    before = len(jax.live_arrays())
    file = Watching()
    dry_run(task, config, Console(file=file, width=200))
    assert seen
    assert max(seen) <= before
    assert len(jax.live_arrays()) <= before
    count = gpt2_parameters(VOCABULARY, LENGTH, 96, 12288)
    assert row(file.getvalue(), "parameters of language_model")[0] == f"{count:,}"
    assert count > 170e9


def test_the_batch_is_shown_and_must_split_over_the_mesh():
    assert row(printed(make_config(mesh={"data": 8})), "batch: inputs") == ["int32 [8, 32]"]
    with pytest.raises(UserError, match="batch of 6 examples does not split over 8 devices"):
        batching = {"kind": "windows", "batch_size": 6, "sequence_length": LENGTH}
        printed(make_config(data={"batching": batching}, mesh={"data": 8}))


def test_what_the_first_step_would_refuse_is_refused():
    with pytest.raises(UserError, match="accumulate"):
        printed(make_config(optimizer={"accumulate": 3}))
