"""Video tasks over eight devices: the same training as on one, and nothing moved that need not be.

The mesh's axes: examples are split over data and fsdp, parameters over fsdp, rows of frames over
sequence.
"""

import functools
import math
import re

import jax
import numpy as np
import pytest

from genjax.data.clip_source import CLIPS
from genjax.errors import UserError
from genjax.nn.convolutional_recurrence import convolve
from genjax.nn.split_by_hand import each_device_its_part
from genjax.parallel import partition
from genjax.parallel.mesh import MeshConfig, make_mesh
from genjax.task import Shard
from tests.video.small_predictions import task_of
from tests.video.small_video_gans import configured
from train.program import Program
from train.stream import place

SCHEDULED = {"kind": "scheduled", "steps": 30}
CONVLSTM = {"kind": "convlstm", "features": [8, 4], "kernel_size": 5, "patch_size": 2}
PREDRNN = {"kind": "predrnn", "features": 8, "num_layers": 2, "kernel_size": 3, "patch_size": 2}
MOCOGAN = {
    "kind": "mocogan",
    "content_size": 4,
    "motion_size": 4,
    "base_channels": 4,
    "max_channels": 8,
    "discriminator_channels": 4,
    "temporal_kernel_size": 2,
}
STYLEGAN2 = {
    "kind": "stylegan2_video",
    "content_size": 4,
    "motion_size": 3,
    "motion_features": 8,
    "style_size": 8,
    "mapping_layers": 1,
    "channel_base": 64,
    "channel_max": 8,
    "group_size": 2,
}
VGAN = {"kind": "vgan", "content_size": 5, "base_channels": 4, "max_channels": 8}
SIMVP = {
    "kind": "simvp",
    "spatial_features": 8,
    "spatial_layers": 2,
    "temporal_features": 16,
    "temporal_layers": 2,
}
INCEPTION = SIMVP | {"translator": "inception", "temporal_features": 32}


def predictor(model, asked="predict", **tables):
    return lambda: task_of(
        model["kind"], asked, model=model, data={"batch_size": 8}, steps=30, **tables
    )


def game(model, **tables):
    given = {"batch_size": 8, "frames": 8, "model": model, "objective": {"loss": "hinge"}}
    return lambda: configured(**given | tables).make_task()


TASKS = {
    "convlstm": predictor(CONVLSTM, sampling=SCHEDULED),
    "hoisted": predictor(CONVLSTM),
    "predrnn": predictor(PREDRNN, "interpolate"),
    "simvp": predictor(SIMVP | {"mlp_ratio": 2}, "inpaint"),
    "inception": predictor(INCEPTION),
    "mocogan": game(MOCOGAN, frames_judged=2),
    "vgan": game(VGAN, discriminators=["clip"], mask_weight=0.1),
    # Two clips a device: what is compared with each other then lies on one.
    "stylegan2": game(STYLEGAN2, batch_size=16, frames_judged=2, objective={"r1_gamma": 1.0}),
}
MESHES = {
    "one": MeshConfig(data=1),
    "data": MeshConfig(data=8),
    "fsdp": MeshConfig(data=1, fsdp=8),
    "fsdp x tensor": MeshConfig(data=1, fsdp=4, tensor=2),
    "rows": MeshConfig(data=2, fsdp=2, sequence=2),
    "more rows": MeshConfig(data=2, sequence=4),
}


@pytest.fixture(autouse=True)
def small_networks_are_split_too(monkeypatch):
    monkeypatch.setattr(partition, "FSDP_MINIMUM_SIZE", 64)


# ---- the same curves -----------------------------------------------------------------------------


@functools.cache
def task_named(name):
    return TASKS[name]()


@functools.cache
def curves(name, mesh_name, steps):
    """The metrics of each step, and the parameters after the last."""
    task, mesh = task_named(name), make_mesh(MESHES[mesh_name])
    with jax.set_mesh(mesh):
        program = Program(task, mesh)
        state, found = program.init()(jax.random.key(0)), []
        batches = task.dataset("train", Shard())
        for number in range(steps):
            batch = place(batches[number], mesh, task.sequence_dimensions)
            state, metrics = program.step(task.variant(number))(state, batch)
            found.append(metrics)
        return jax.device_get(found), jax.device_get(state.params)


def check_same(name, mesh_name, steps, *, rtol):
    expected, expected_params = curves(name, "one", steps)
    found, params = curves(name, mesh_name, steps)
    for number, (one, other) in enumerate(zip(found, expected, strict=True)):
        assert one.keys() == other.keys()
        for metric, value in other.items():
            np.testing.assert_allclose(
                one[metric], value, rtol=rtol, atol=rtol / 10, err_msg=f"{metric} of {number}"
            )
    # Adam's first steps go by signs, which rounding turns where a gradient is about zero.
    moved = jax.tree.map(lambda a, b: np.abs(a - b), params, expected_params)
    wrong = np.concatenate([leaf.ravel() for leaf in jax.tree.leaves(moved)])
    assert (wrong > 1e-4).mean() < 0.02


@pytest.mark.slow
@pytest.mark.parametrize("mesh", ["data", "fsdp", "fsdp x tensor", "rows", "more rows"])
@pytest.mark.parametrize("name", ["convlstm", "mocogan"])
def test_twenty_steps_are_those_of_one_device(name, mesh):
    check_same(name, mesh, 20, rtol=1e-4 if name == "convlstm" else 2e-3)


@pytest.mark.parametrize(
    ("name", "mesh"),
    [
        ("convlstm", "rows"),
        *(
            pytest.param(name, mesh, marks=pytest.mark.slow)
            for name in ("hoisted", "predrnn", "simvp", "inception", "vgan", "stylegan2")
            for mesh in ("fsdp", "rows")
        ),
    ],
)
def test_three_steps_are_those_of_one_device(name, mesh):
    check_same(name, mesh, 3, rtol=1e-3)


# ---- the compiled step ---------------------------------------------------------------------------

MOVES = "all-gather|all-to-all|collective-permute|ragged-all-to-all|reduce-scatter|all-reduce"


@functools.cache
def compiled(name, mesh_name):
    task, mesh = task_named(name), make_mesh(MESHES[mesh_name])
    with jax.set_mesh(mesh):
        program = Program(task, mesh)
        batch = program.abstract_batch(task.dataset("train", Shard())[0])
        return program.step(task.variant(0)).lower(program.abstract_state(), batch).compile()


def moved(name, mesh_name):
    """What a step sends between devices: (operation, shapes of the results)."""
    lines = re.findall(rf"= (.*?) ({MOVES})(?:-start)?\(", compiled(name, mesh_name).as_text())
    shapes = re.compile(r"\w+\[([\d,]*)\]")
    return [
        (
            kind,
            [tuple(map(int, filter(None, found.split(",")))) for found in shapes.findall(result)],
        )
        for result, kind in lines
    ]


def parameters(name):
    shapes = jax.eval_shape(task_named(name).init, jax.random.key(0)).params
    return {leaf.shape for leaf in jax.tree.leaves(shapes)}


def gates_apart(shape):
    """A kernel's shape with its gates on an axis of their own, whatever their number."""
    return {(*shape[:-1], gates, shape[-1] // gates) for gates in (1, 3, 4)}


SOME = ("convlstm",)
EACH = [pytest.param(name, marks=[pytest.mark.slow] * (name not in SOME)) for name in TASKS]


@pytest.mark.parametrize("name", EACH)
def test_copies_exchange_sums_of_gradients_and_statistics_alone(name):
    operations = moved(name, "data")
    assert {kind for kind, _ in operations} == {"all-reduce"}
    largest = max(map(math.prod, parameters(name)))
    assert all(math.prod(shape) <= largest for _, shapes in operations for shape in shapes)
    if name in ("convlstm", "predrnn", "hoisted"):
        # One sum for all gradients of a kernel, after the loop over time.
        assert sum(len(shapes) for _, shapes in operations) <= len(parameters(name)) + 4


@pytest.mark.parametrize("name", EACH)
def test_a_device_does_its_part(name):
    one, eight = (compiled(name, mesh).cost_analysis()["flops"] for mesh in ("one", "data"))
    # The optimizers' work is every device's.
    assert eight / one < 0.2


@pytest.mark.slow
@pytest.mark.parametrize("name", TASKS)
def test_parameters_in_parts_are_gathered_and_nothing_else(name):
    known = parameters(name)
    for kind, shapes in moved(name, "fsdp"):
        assert kind in ("all-gather", "all-reduce", "reduce-scatter")
        if kind == "all-gather":
            assert set(shapes) <= known


@pytest.mark.parametrize(
    "name",
    [
        "convlstm",
        *(
            pytest.param(n, marks=pytest.mark.slow)
            for n in ("hoisted", "predrnn", "simvp", "inception")
        ),
    ],
)
def test_split_frames_exchange_the_rows_at_their_seams(name):
    """Nothing of a clip's height is gathered."""
    task = task_named(name)
    height = task.source.clip_shape[1]
    known = parameters(name)
    seams = 0
    for kind, shapes in moved(name, "rows"):
        if kind == "all-gather":
            assert set(shapes) <= known
        elif kind == "collective-permute":
            seams += 1
            # [B, rows, W, C]: fewer rows than half of a frame of patches.
            assert all(len(shape) == 4 and shape[1] < height // 2 for shape in shapes if shape)
        else:
            assert kind in ("all-reduce", "reduce-scatter")
    assert seams > 0


@pytest.mark.slow
def test_split_features_are_gathered_once_a_layer_and_step():
    of_kernels = parameters("convlstm")
    apart = set().union(*(gates_apart(shape) for shape in of_kernels))
    gathered = [
        shape
        for kind, shapes in moved("convlstm", "fsdp x tensor")
        if kind == "all-gather"
        for shape in shapes
        if shape not in of_kernels | apart
    ]
    # [B, h, w, F] of the devices' own examples, for each of two layers.
    assert set(gathered) == {(2, 8, 8, 4), (2, 8, 8, 8)}
    one, eight = (
        compiled("convlstm", mesh).cost_analysis()["flops"] for mesh in ("one", "fsdp x tensor")
    )
    assert eight / one < 0.2


# ---- by hand -------------------------------------------------------------------------------------


def test_rows_of_several_neighbours_reach_a_convolution():
    """A kernel that reaches over two devices' rows; the sum's derivatives as those of the whole."""
    random = np.random.default_rng(0)
    clips = random.normal(size=(2, 1, 8, 3, 2)).astype(np.float32)
    kernel = random.normal(size=(9, 9, 2, 3)).astype(np.float32)
    weights = random.normal(size=(2, 1, 8, 3, 3)).astype(np.float32)

    def convolved(kernels, shared, clips, examples):
        del shared, examples
        return convolve(clips[:, 0], kernels, np.float32)[:, None]

    @jax.jit
    def found(clips, kernel, weights):
        def total(clips, kernel):
            return (weights * each_device_its_part(convolved, kernel, (), clips)).sum()

        return jax.grad(total, (0, 1))(clips, kernel)

    expected = jax.device_get(found(clips, kernel, weights))
    with jax.set_mesh(make_mesh(MeshConfig(data=2, sequence=4))):
        parts = jax.device_get(found(clips, kernel, weights))
    for one, other in zip(parts, expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-4)


@pytest.mark.fast
def test_stored_clips_are_split_by_rows_and_what_is_drawn_is_not():
    mesh = make_mesh(MeshConfig(data=2, sequence=4))
    dimensions = task_named("convlstm").sequence_dimensions
    shapes = {CLIPS: (4, 6, 16, 16, 3), "pictures": (4, 2, 8, 8), "labels": (4,)}
    batch = {name: np.zeros(shape, np.uint8) for name, shape in shapes.items()}
    placed = place(batch, mesh, dimensions)
    parts = {name: one.addressable_shards[0].data.shape for name, one in placed.items()}
    assert parts == {CLIPS: (2, 6, 4, 16, 3), "pictures": (2, 2, 8, 8), "labels": (2,)}


@pytest.mark.fast
def test_rows_that_devices_cannot_share():
    with pytest.raises(UserError, match=r"mesh.sequence: 16 .* 16 rows .* steps of 2"):
        task_of("convlstm", "predict", model=CONVLSTM, mesh={"sequence": 16})
    with pytest.raises(UserError, match=r"mesh.sequence: 3 devices cannot share the 16 rows"):
        configured(mesh={"sequence": 3}).make_task()
