"""Language models over data, fsdp, tensor and sequence: the same losses as on one device."""

import functools

import jax
import numpy as np
import pytest

from genjax.config import check
from genjax.errors import UserError
from genjax.parallel.mesh import MeshConfig, make_mesh
from genjax.task import Shard
from genjax.text.language_modeling_config import LanguageModelingConfig
from tools.rehearsal.collectives import find_collectives
from tools.rehearsal.loops import visits
from tools.rehearsal.program_text import parse
from train.program import Program
from train.stream import place

TEXT = "the cat sat on the mat, and the dog sat on the cat. " * 60
BATCH_SIZE, LENGTH = 8, 16

MESHES = {
    "one": {"data": 1},
    "data": {"data": 8},
    "fsdp": {"data": 1, "fsdp": 8},
    "tensor 2": {"data": 1, "tensor": 2},
    "tensor 4": {"data": 1, "tensor": 4},
    "fsdp and tensor": {"data": 2, "fsdp": 2, "tensor": 2},
    "sequence": {"data": 2, "sequence": 4},
    "tensor and sequence": {"data": 2, "tensor": 2, "sequence": 2},
}

MODELS = {
    "transformer": {
        "kind": "transformer",
        "num_layers": 2,
        "num_heads": 4,
        "num_kv_heads": 2,
        "hidden_size": 128,
        "position": "rope",
        "norm": "rms_norm",
        "activation": "swiglu",
        "scan_layers": True,
        "remat": "full",
        "loss_chunk": 16,
    },
    "gpt": {
        "kind": "transformer",
        "num_layers": 1,
        "num_heads": 4,
        "hidden_size": 64,
        "dropout": 0.1,
        "tie_embeddings": False,
    },
    "lstm": {"kind": "lstm", "num_layers": 2, "hidden_size": 64, "loss_chunk": 16},
    "tied lstm": {
        "kind": "lstm",
        "num_layers": 1,
        "hidden_size": 64,
        "tie_embeddings": True,
        "embedding_dropout": 0.1,
        "input_dropout": 0.1,
        "weight_drop": 0.1,
    },
    "gru": {"kind": "gru", "num_layers": 2, "hidden_size": 64},
    "rnn": {"kind": "rnn", "num_layers": 2, "hidden_size": 64},
}


@pytest.fixture(scope="module")
def text_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text(TEXT)
    return path


@functools.cache
def task_of(text_file, model, batching, **optimizer):
    tree = {
        "kind": "language_modeling",
        "steps": 100,
        "data": {
            "source": {"kind": "files", "path": str(text_file)},
            "batching": {"kind": batching, "batch_size": BATCH_SIZE, "sequence_length": LENGTH},
        },
        "model": MODELS[model],
        # Neither Adam, whose division blows rounding up, nor so fast that the losses turn chaotic.
        "optimizer": {"kind": "sgd", "learning_rate": 0.1, "schedule": {"kind": "constant"}}
        | optimizer,
    }
    return check(tree, LanguageModelingConfig).make_task()


@functools.cache
def compiled(text_file, model, batching, mesh, **optimizer):
    """The run's own step, compiled, and the program that it is of."""
    task = task_of(text_file, model, batching, **optimizer)
    program = Program(task, make_mesh(MeshConfig(**MESHES[mesh])))
    batch = program.abstract_batch(task.dataset("train", Shard())[0])
    with jax.set_mesh(program.mesh):
        return program, program.step().lower(program.abstract_state(), batch).compile()


@functools.cache
def losses(text_file, model, batching, mesh, steps, **optimizer):
    """Losses and gradient norms of the first steps."""
    program, step = compiled(text_file, model, batching, mesh, **optimizer)
    batches = program.task.dataset("train", Shard())
    with jax.set_mesh(program.mesh):
        state = program.init()(jax.random.key(0))
        found = []
        for number in range(steps):
            state, metrics = step(state, place(batches[number], program.mesh))
            found.append([float(metrics["loss"]), float(metrics["grad_norm"])])
    return np.array(found)


def assert_as_on_one_device(text_file, model, batching, mesh, steps, **optimizer):
    expected = losses(text_file, model, batching, "one", steps, **optimizer)
    found = losses(text_file, model, batching, mesh, steps, **optimizer)
    assert expected[-1, 0] < expected[0, 0]
    np.testing.assert_allclose(found, expected, rtol=1e-5)


@pytest.mark.parametrize(("model", "batching"), [("transformer", "windows"), ("lstm", "streams")])
def test_losses_do_not_depend_on_the_mesh(text_file, model, batching):
    assert_as_on_one_device(text_file, model, batching, "fsdp and tensor", 4)


# ---- what devices send each other ------------------------------------------------------------


def sent(text_file, model, batching, mesh):
    """The collectives of a step, and bytes of the parameters as a tensor way has them."""
    program, step = compiled(text_file, model, batching, mesh)
    text = parse(step.as_text())
    sizes = dict(program.mesh.shape)
    found = find_collectives(text, visits(text)[0], sizes)
    whole = {4 * leaf.size for leaf in jax.tree.leaves(program.shapes.params)}
    # Of scanned layers one at a time.
    whole |= {size // MODELS[model]["num_layers"] for size in whole}
    return found, whole | {size // sizes["tensor"] for size in whole}


@pytest.mark.parametrize(
    ("model", "batching", "mesh"),
    [
        ("transformer", "windows", "fsdp and tensor"),
        ("lstm", "streams", "fsdp and tensor"),
        *(
            pytest.param(model, batching, mesh, marks=pytest.mark.slow)
            for model, batching in [("transformer", "windows"), ("lstm", "streams")]
            # Four devices would share the transformer's two heads of keys, and exchange parts.
            for mesh in ("data", "fsdp", "tensor 2")
        ),
        pytest.param("gpt", "documents", "fsdp and tensor", marks=pytest.mark.slow),
        pytest.param("gpt", "windows", "tensor and sequence", marks=pytest.mark.slow),
    ],
)
def test_only_parameters_that_are_split_are_gathered(text_file, model, batching, mesh):
    found, parameters = sent(text_file, model, batching, mesh)
    batch = BATCH_SIZE // np.prod([MESHES[mesh].get(axis, 1) for axis in ("data", "fsdp")])
    states = 4 * batch * MODELS[model]["hidden_size"]
    for one in found:
        if one.kind == "all-gather":
            # Of a recurrent network the hidden state, in each step and layer.
            expected = parameters if one.axes == ("fsdp",) else {states}
            assert one.axes in (("fsdp",), ("tensor",))
            assert one.size in expected, one
        elif one.kind == "all-to-all":
            # From the rows of a recurrent layer's kernel to its units, and back.
            assert one.axes == ("tensor",)
            assert "sequence" in mesh or one.count <= 4, one
        elif one.kind == "collective-permute":
            assert one.axes == ("sequence",), one
    assert [one for one in found if one.kind == "all-reduce"]
    if mesh == "data":
        assert {one.kind for one in found} == {"all-reduce"}


# ---- meshes that do not fit ------------------------------------------------------------------


def test_time_of_recurrent_networks_is_not_split(text_file):
    task = task_of(text_file, "lstm", "streams")
    with pytest.raises(UserError, match=r"mesh\.sequence = 4: a recurrent network .* mesh\.data"):
        Program(task, make_mesh(MeshConfig(data=2, sequence=4)))


def test_time_that_devices_cannot_share_is_refused(text_file):
    task = task_of(text_file, "transformer", "windows")
    task.check_mesh({"sequence": 8})
    message = r"mesh\.sequence = 6: data\.batching\.sequence_length = 16 is not a multiple of 12"
    with pytest.raises(UserError, match=message):
        task.check_mesh({"sequence": 6})


# ---- whole loss curves -----------------------------------------------------------------------


CURVES = [
    ("transformer", "windows"),
    ("gpt", "documents"),
    ("lstm", "streams"),
    ("tied lstm", "documents"),
    ("gru", "streams"),
    ("rnn", "windows"),
]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model", "batching", "mesh"),
    [
        (model, batching, mesh)
        for model, batching in CURVES
        for mesh in MESHES
        if mesh != "one" and ("sequence" not in mesh or MODELS[model]["kind"] == "transformer")
    ],
)
def test_loss_curves_do_not_depend_on_the_mesh(text_file, model, batching, mesh):
    assert_as_on_one_device(text_file, model, batching, mesh, 20)


@pytest.mark.slow
@pytest.mark.parametrize(("model", "batching"), [("transformer", "windows"), ("lstm", "streams")])
def test_parts_of_batches_over_devices_add_up_to_the_same(text_file, model, batching):
    assert_as_on_one_device(text_file, model, batching, "fsdp and tensor", 20, accumulate=2)
