"""What a dry run prints is what the task is, and it costs no memory."""

import io
import re

import jax
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from rich.console import Console

from genjax.config import check
from genjax.errors import UserError
from genjax.families import FAMILIES
from genjax.parallel.mesh import MeshConfig, abstract_mesh
from train.__main__ import main
from train.dry_run import dry_run
from train.layout_table import layout_lines

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


def printed(config, task=None, devices=None):
    text = io.StringIO()
    dry_run(task or config.make_task(), config, Console(file=text, width=200), devices)
    return text.getvalue()


def row(text, name):
    """The cells beside a name; the last such line, for a title may be as the row of its sum."""
    line = [line for line in text.splitlines() if line.strip().startswith(name)][-1]
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
    size = f"{4 * count / 1024:.2f} KiB"
    # On each of eight devices that are copies of each other.
    assert row(text, "parameters of language_model") == [f"{count:,}", size, size, "100.0%"]
    # Adam's two moments and two counters: its own, and the schedule's.
    state = f"{8 * (count + 1) / 1024**2:.2f} MiB"
    assert row(text, "optimizer state") == [f"{2 * count + 2:,}", state, state, "100.0%"]
    assert row(text, "averages") == row(text, "carry") == ["0", "0 B", "0 B"]
    # Inputs and targets.
    tokens = 2 * BATCH * LENGTH
    whole, part = f"{4 * tokens / 1024:.2f} KiB", f"{4 * tokens // 8} B"
    assert row(text, "batch ") == [f"{tokens:,}", whole, part, "0.0%"]


def test_an_average_is_as_large_as_the_parameters(count):
    text = printed(make_config(optimizer={"kind": "adamw", "ema_decay": 0.99}))
    assert row(text, "averages")[:2] == [f"{count:,}", f"{4 * count / 1024:.2f} KiB"]


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
    assert "the largest that every device holds whole" not in text
    assert "note:" not in text

    text = printed(make_config(mesh={"fsdp": 4}))
    assert row(text, "mesh") == ["data 2 x fsdp 4 x tensor 1 x sequence 1", "8 cpu device(s)"]
    _, _, own, share = row(text, "parameters of language_model")
    # Norms and biases: 3 layers of 13 D, and the last norm.
    whole = 3 * 13 * 64 + 2 * 64
    assert own == f"{4 * (whole + (count - whole) / 4) / 1024:.2f} KiB"
    assert share == f"{100 * whole / count:.1f}%"


def test_each_parameter_is_shown_with_its_layout_and_layers_that_are_alike_together():
    text = printed(make_config(mesh={"data": 2, "fsdp": 2, "tensor": 2}))
    kernel = "3 x float32[64/fsdp, 256/tensor]"
    assert row(text, "layers_{0,1,2}/feed_forward/up/kernel") == [
        kernel,
        f"{4 * 3 * 64 * 256 // 4 / 1024:.2f} KiB",
    ]
    assert row(text, "token_embedding") == [
        f"float32[{VOCABULARY}/tensor, 64/fsdp]",
        f"{4 * VOCABULARY * 64 // 4 / 1024:.2f} KiB",
    ]
    # The largest that stay whole, and only a few of them: biases and norms of all layers.
    told = text[text.index("the largest that every device holds whole") :].splitlines()
    kinds = told[1 : [line.strip() for line in told].index("")]
    assert len(kinds) == 5
    assert all("3 x float32[64]" in kind and kind.rstrip().endswith("768 B") for kind in kinds)


def test_lines_hold_every_array_once():
    shapes = {
        "layers_0": {"kernel": jax.ShapeDtypeStruct((4, 8), "float32")},
        "layers_1": {"kernel": jax.ShapeDtypeStruct((4, 8), "float32")},
        "layers_2": {"kernel": jax.ShapeDtypeStruct((4, 6), "bfloat16")},
        "layers_3": {"kernel": jax.ShapeDtypeStruct((4, 8), "float32")},
        "layers_4": {"kernel": jax.ShapeDtypeStruct((4, 8), "float32")},
    }
    mesh = abstract_mesh(MeshConfig(fsdp=4), 8)
    shardings = jax.tree.map(lambda _: NamedSharding(mesh, P(None, "fsdp")), shapes)
    shardings["layers_2"]["kernel"] = NamedSharding(mesh, P())
    first, second = layout_lines(shapes, shardings)
    assert (first.path, first.count) == ("layers_{0..4}/kernel", 4)
    assert (first.layout, first.whole) == ("float32[4, 8/fsdp]", False)
    assert (first.total, first.own) == (4 * 4 * 8 * 4, 4 * 4 * 2 * 4)
    assert (second.path, second.count) == ("layers_2/kernel", 1)
    assert (second.layout, second.whole) == ("bfloat16[4, 6]", True)
    assert second.total == second.own == 4 * 6 * 2


def test_a_layout_for_devices_that_are_not_here():
    config = make_config(
        mesh={"data": 2, "fsdp": 64, "tensor": 2},
        data={"batching": {"kind": "windows", "batch_size": 128, "sequence_length": LENGTH}},
    )
    text = printed(config, devices=256)
    assert row(text, "mesh") == ["data 2 x fsdp 64 x tensor 2 x sequence 1", "256 device(s)"]
    assert row(text, "batch: inputs") == ["int32[128/data/fsdp, 32]"]
    assert "float32[64/fsdp, 256/tensor]" in text
    with pytest.raises(UserError, match=r"= 256 devices are asked for and 8 are here"):
        printed(config)


def test_more_devices_than_here_need_no_data(tmp_path, capsys):
    file = tmp_path / "run.toml"
    file.write_text(
        """
kind = "language_modeling"
steps = 1
optimizer.kind = "adamw"
[data]
source = { kind = "files", path = "no/such/file.txt" }
batching = { kind = "windows", batch_size = 64, sequence_length = 8 }
[model]
kind = "transformer"
num_layers = 1
num_heads = 1
hidden_size = 16
"""
    )
    assert main([str(file), "--dry-run", "--devices", "64"]) == 0
    assert "data 64 x fsdp 1" in capsys.readouterr().out
    assert main([str(file), "--dry-run"]) == 2
    assert "no/such/file.txt" in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [["--devices", "8"], ["--dry-run", "--devices", "0"]])
def test_devices_are_for_dry_runs(arguments, capsys):
    assert main(["configs/text/demo.toml", *arguments]) == 2
    assert f"{' '.join(arguments[-2:])}: give a number of at least 1" in capsys.readouterr().err


def test_a_mesh_that_splits_nothing_is_told():
    tree = {
        "kind": "adversarial",
        "steps": 2,
        "data": {"source": {"kind": "digits", "size": 8}, "batch_size": 8},
        "model": {
            "kind": "dense",
            "latent_size": 3,
            "generator_sizes": [6],
            "discriminator_sizes": [6],
        },
        "mesh": {"data": 4, "tensor": 2},
    }
    text = printed(check(tree, FAMILIES))
    assert "note: mesh.tensor = 2 splits nothing of this model" in text


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
    assert row(printed(make_config(mesh={"data": 8})), "batch: inputs") == ["int32[8/data, 32]"]
    with pytest.raises(UserError, match="batch of 6 examples does not split over 8 devices"):
        batching = {"kind": "windows", "batch_size": 6, "sequence_length": LENGTH}
        printed(make_config(data={"batching": batching}, mesh={"data": 8}))


def test_what_the_first_step_would_refuse_is_refused():
    with pytest.raises(UserError, match="accumulate"):
        printed(make_config(optimizer={"accumulate": 3}))
