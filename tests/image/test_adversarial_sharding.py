"""A step on eight devices: the same training as on one, an eighth of the work, nothing gathered."""

import functools
import math
import re

import jax
import numpy as np
import pytest

from genjax.parallel import partition
from genjax.parallel.mesh import MeshConfig, make_mesh
from genjax.parallel.partition import batch_sharding, state_shardings
from genjax.task import Shard
from tests.image.small_gans import DCGAN, MODELS, R3GAN, STYLEGAN2, configured, unlabelled_task
from train.stream import place

# What the fast checks of tests/image/test_sharding.py stand for, at length.
pytestmark = pytest.mark.slow

BATCH = 32

PENALTIES = {"loss": "relativistic", "r1_gamma": 1.0, "r2_gamma": 1.0, "penalty_interval": 2}
STYLES = {"r1_gamma": 1.0, "path_length_weight": 2.0, "path_length_interval": 1}
ADA = {"kind": "ada", "initial_probability": 0.5, "interval": 2}
ALL = {**ADA, "categories": ["blit", "geometry", "colour", "filter", "noise", "cutout"]}


# ---- the same curves -----------------------------------------------------------------------------


def curves(task, mesh_config, steps=4):
    """The metrics of each step, and the trained parameters."""
    mesh = make_mesh(mesh_config)
    with jax.set_mesh(mesh):
        shapes = jax.eval_shape(task.init, jax.random.key(0))
        shardings = state_shardings(shapes, task.partition_rules, mesh)
        split = [one for one in jax.tree.leaves(shardings.params) if not one.is_fully_replicated]
        assert bool(split) == (mesh.shape["fsdp"] > 1)
        state = jax.jit(task.init, out_shardings=shardings)(jax.random.key(0))
        step = jax.jit(task.train_step, static_argnames="variant", out_shardings=(shardings, None))
        batches, found = task.dataset("train", Shard()), []
        for number in range(steps):
            batch = place(batches[number], mesh)
            state, metrics = step(state, batch, variant=task.variant(number))
            found.append({name: float(value) for name, value in metrics.items()})
    return found, jax.device_get(state.params)


GAMES = {
    "dcgan": configured(DCGAN, batch_size=BATCH, augmentation={"kind": "diffaugment"}),
    "stylegan2": configured(STYLEGAN2, batch_size=BATCH, augmentation=ADA, objective=STYLES),
}


@pytest.fixture(scope="module")
def alone():
    """What one device finds, by game."""
    return functools.cache(lambda name: curves(GAMES[name].make_task(), MeshConfig(data=1)))


MESHES = [
    pytest.param(MeshConfig(data=8), id="data"),
    pytest.param(MeshConfig(data=1, fsdp=8), id="fsdp", marks=pytest.mark.slow),
    pytest.param(MeshConfig(data=4, fsdp=2), id="both", marks=pytest.mark.slow),
]


@pytest.mark.parametrize("mesh", MESHES)
@pytest.mark.parametrize("name", ["dcgan", pytest.param("stylegan2", marks=pytest.mark.slow)])
def test_curves_do_not_depend_on_the_devices(monkeypatch, alone, name, mesh):
    # So that small networks split, too.
    monkeypatch.setattr(partition, "FSDP_MINIMUM_SIZE", 64)
    expected, expected_params = alone(name)
    found, params = curves(GAMES[name].make_task(), mesh)
    for number, (one, other) in enumerate(zip(found, expected, strict=True)):
        assert one.keys() == other.keys()
        for metric, value in other.items():
            np.testing.assert_allclose(
                one[metric], value, rtol=2e-3, atol=2e-4, err_msg=f"{metric} of step {number}"
            )
    # Adam's first steps go by signs, which rounding turns where a gradient is about zero.
    moved = jax.tree.map(lambda a, b: np.abs(a - b), params, expected_params)
    wrong = np.concatenate([leaf.ravel() for leaf in jax.tree.leaves(moved)])
    assert (wrong > 1e-4).mean() < 0.01


# ---- the compiled step ---------------------------------------------------------------------------


def compiled(task, variant, devices):
    """The step of a mesh of so many copies, compiled, and nothing run."""
    mesh = make_mesh(MeshConfig(data=devices))
    with jax.set_mesh(mesh):
        shapes = jax.eval_shape(task.init, jax.random.key(0))
        shardings = state_shardings(shapes, task.partition_rules, mesh)
        state = jax.tree.map(
            lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
            shapes,
            shardings,
        )
        batch = {
            name: jax.ShapeDtypeStruct(
                array.shape, array.dtype, sharding=batch_sharding(mesh, array.shape)
            )
            for name, array in task.dataset("train", Shard())[0].items()
        }
        step = jax.jit(
            functools.partial(task.train_step, variant=variant),
            donate_argnums=0,
            out_shardings=(shardings, None),
        )
        return step.lower(state, batch).compile()


def moved(program):
    """What the program sends between devices, apart from sums: (operation, result)."""
    names = "all-gather|all-to-all|collective-permute|ragged-all-to-all|collective-broadcast"
    pattern = rf"= (\S+|\([^)]*\)) ({names})(?:-start)?\("
    return [(name, result) for result, name in re.findall(pattern, program.as_text())]


def largest_sum(program):
    """How many numbers the largest sum over devices has."""
    sums = re.findall(r"= (.*?) all-reduce(?:-start)?\(", program.as_text())
    sizes = [
        math.prod(map(int, filter(None, dimensions.split(","))))
        for result in sums
        for dimensions in re.findall(r"\w+\[([\d,]*)\]", result)
    ]
    return max(sizes)


STEPS = {
    "dcgan, diffaugment": configured(
        DCGAN,
        batch_size=BATCH,
        data={"mirror": True},
        objective={"discriminator_steps": 2},
        augmentation={"kind": "diffaugment"},
    ),
    "dcgan, all of ada": configured(
        DCGAN | {"discriminator_batch_norm": False},
        batch_size=BATCH,
        objective={"r1_gamma": 1.0, "gradient_penalty": 1.0},
        augmentation=ALL,
    ),
    "stylegan2": configured(STYLEGAN2, batch_size=BATCH, objective=STYLES),
    "stylegan2, ada": configured(STYLEGAN2, batch_size=BATCH, augmentation=ADA, objective=STYLES),
    "r3gan, ada": configured(R3GAN, batch_size=BATCH, augmentation=ADA, objective=PENALTIES),
    "stylegan2, diffaugment": configured(
        STYLEGAN2,
        batch_size=BATCH,
        augmentation={"kind": "diffaugment"},
        objective={"loss": "hinge", "path_length_weight": 2.0, "path_length_interval": 2},
    ),
    "r3gan, diffaugment": configured(
        R3GAN, batch_size=BATCH, augmentation={"kind": "diffaugment"}, objective=PENALTIES
    ),
}
SLOW = ("stylegan2, ada", "stylegan2, diffaugment", "r3gan, ada", "dcgan, all of ada")


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=[pytest.mark.slow] * (name in SLOW)) for name in STEPS],
)
def test_no_batch_is_gathered(name):
    task = STEPS[name].make_task()
    cycle = range(2 if name in SLOW else 1)
    shapes = jax.eval_shape(task.init, jax.random.key(0))
    parameters = max(leaf.size for leaf in jax.tree.leaves(shapes.params))
    for variant in {task.variant(number) for number in cycle}:
        program = compiled(task, variant, 8)
        assert moved(program) == []
        # Gradients and statistics are summed; no batch of images or features is.
        assert largest_sum(program) <= parameters


@pytest.mark.parametrize("name", ["dcgan", pytest.param("stylegan2", marks=pytest.mark.slow)])
def test_each_device_does_its_part_without_labels_too(name, monkeypatch):
    """Nothing but the latents' own layout splits the work of an unconditional generator."""
    model = MODELS[name] | ({"mapping_layers": 1} if name == "stylegan2" else {})
    objective = STYLES if name == "stylegan2" else {}
    config = configured(model, batch_size=BATCH, objective=objective)
    task = unlabelled_task(config, monkeypatch)
    assert task.source.num_classes == 0
    one, eight = (compiled(task, task.variant(0), devices) for devices in (1, 8))
    assert moved(eight) == []
    share = eight.cost_analysis()["flops"] / one.cost_analysis()["flops"]
    # The optimizers' work is every device's.
    assert share < 0.2
