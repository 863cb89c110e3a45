"""Adversarial steps on every kind of mesh: the same curves, and only what has to move moves."""

import functools
import math
import re

import jax
import numpy as np
import pytest

from genjax.config import check
from genjax.errors import UserError
from genjax.image.adversarial import make_step
from genjax.image.adversarial_config import AdversarialConfig
from genjax.parallel import partition
from genjax.parallel.mesh import MeshConfig, make_mesh
from genjax.parallel.partition import path_name, repeats_work, state_shardings, unsharded_share
from genjax.task import Shard
from tests.image.small_gans import DCGAN, R3GAN, SNGAN, STYLEGAN2, configured
from train.program import Program
from train.stream import place

BATCH = 32
DIGITS = {"kind": "digits", "size": 16}

# Adam's first steps go by the signs of gradients, which rounding turns where one is about zero: a
# larger epsilon makes them smooth, and what a wrong sum would change still shows.
SMOOTH = {"learning_rate": 1e-4, "epsilon": 1e-3}
OPTIMIZERS = {"generator_optimizer": SMOOTH, "discriminator_optimizer": SMOOTH}
ADA = {"kind": "ada", "initial_probability": 0.5, "interval": 2}
STYLES = {"r1_gamma": 1.0, "path_length_weight": 2.0, "path_length_interval": 2}
PAIRS = {"loss": "relativistic", "r1_gamma": 1.0, "r2_gamma": 1.0}


def game(model, **tables):
    return configured(model, DIGITS, batch_size=BATCH, **OPTIMIZERS, **tables)


GAMES = {
    "dcgan": game(DCGAN),
    "dcgan, diffaugment": game(
        DCGAN,
        data={"mirror": True},
        objective={"discriminator_steps": 2},
        augmentation={"kind": "diffaugment"},
    ),
    "sngan": game(SNGAN, objective={"loss": "hinge"}),
    "r3gan": game(R3GAN, objective=PAIRS),
    "stylegan2": game(STYLEGAN2, objective=STYLES),
    "stylegan2, ada": game(STYLEGAN2, objective=STYLES, augmentation=ADA),
}

ROWS = MeshConfig(data=2, fsdp=2, sequence=2)
MESHES = {
    "data": MeshConfig(data=8),
    "fsdp": MeshConfig(data=1, fsdp=8),
    "fsdp, tensor": MeshConfig(data=2, fsdp=2, tensor=2),
    "rows": MeshConfig(data=2, sequence=4),
    "fsdp, rows": ROWS,
}


@pytest.fixture(autouse=True)
def small_arrays_split(monkeypatch):
    monkeypatch.setattr(partition, "FSDP_MINIMUM_SIZE", 64)


def _slow_but_dcgan(*names):
    return [pytest.param(name, marks=[pytest.mark.slow] * (name != "dcgan")) for name in names]


# ---- the same curves -----------------------------------------------------------------------------


def curves(config, mesh_config, steps):
    """The metrics of each step."""
    task, mesh, found = config.make_task(), make_mesh(mesh_config), []
    with jax.set_mesh(mesh):
        program = Program(task, mesh)
        state = program.init()(jax.random.key(0))
        batches = task.dataset("train", Shard())
        for number in range(steps):
            step = program.step(task.variant(number))
            state, metrics = step(state, place(batches[number], mesh))
            found.append({name: float(value) for name, value in metrics.items()})
    return found


@functools.cache
def alone(name, steps):
    """What one device finds."""
    return curves(GAMES[name], MeshConfig(data=1), steps)


def assert_same(name, mesh, steps, rtol, atol):
    for number, (found, expected) in enumerate(
        zip(curves(GAMES[name], mesh, steps), alone(name, steps), strict=True)
    ):
        assert found.keys() == expected.keys()
        for metric, value in expected.items():
            np.testing.assert_allclose(
                found[metric], value, rtol, atol, err_msg=f"{metric} of step {number}"
            )


@pytest.mark.slow
@pytest.mark.parametrize("mesh", MESHES)
@pytest.mark.parametrize("name", ["dcgan", "stylegan2, ada"])
def test_twenty_steps_on_any_mesh(name, mesh):
    assert_same(name, MESHES[mesh], 20, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", _slow_but_dcgan("dcgan", "sngan", "r3gan", "dcgan, diffaugment"))
def test_three_steps_split_by_rows(name):
    assert_same(name, ROWS, 3, rtol=2e-5, atol=2e-6)


def test_repeated_rows_are_refused():
    """The compiler would make kernels' gradients too large."""
    task, mesh = GAMES["dcgan"].make_task(), make_mesh(MeshConfig(tensor=2, sequence=2, data=2))
    with jax.set_mesh(mesh), pytest.raises(UserError, match=r"mesh.tensor = 1"):
        lowered(task, Program(task, mesh))


# ---- the compiled step ---------------------------------------------------------------------------

MOVES = "all-gather|all-to-all|collective-permute|ragged-all-to-all|collective-broadcast"


def lowered(task, program):
    batch = task.dataset("train", Shard())[0]
    arguments = program.abstract_state(), program.abstract_batch(batch)
    return program.step(task.variant(0)).lower(*arguments)


def moved(text):
    """What a program sends between devices, apart from sums: pairs of operation and shape."""
    pattern = rf"= (\S+|\([^)]*\)) ({MOVES})(?:-start)?\("
    return {
        (name, tuple(map(int, filter(None, shape.split(",")))))
        for result, name in re.findall(pattern, text)
        for shape in re.findall(r"\w+\[([\d,]*)\]", result)
    }


def compiled(name, mesh_config):
    """What moves in a step, the sizes of its parameters, and its floating-point operations."""
    task, mesh = GAMES[name].make_task(), make_mesh(mesh_config)
    with jax.set_mesh(mesh):
        program = Program(task, mesh)
        step = lowered(task, program).compile()
    sizes = {leaf.size for leaf in jax.tree.leaves(program.shapes.params)}
    return moved(step.as_text()), sizes, step.cost_analysis()["flops"]


@pytest.mark.parametrize("name", _slow_but_dcgan(*GAMES))
def test_parameters_alone_are_gathered(name):
    found, sizes, _ = compiled(name, MESHES["fsdp"])
    assert found
    for operation, shape in found:
        assert operation == "all-gather"
        assert math.prod(shape) in sizes


@pytest.mark.slow
@pytest.mark.parametrize("name", GAMES)
def test_rows_move_at_the_seams_alone(name):
    found, sizes, flops = compiled(name, ROWS)
    assert any(operation == "collective-permute" for operation, _ in found)
    local = BATCH // 4
    for operation, shape in found:
        if operation == "collective-permute":
            # The path-length penalty is taken on half of the batch.
            assert shape[0] in (local, local // 2)
            assert shape[1] <= 2
        elif operation == "all-to-all":
            # Images on their way into an augmentation, whole, and back.
            assert "augment" in name or "ada" in name
            assert math.prod(shape) <= local * 16 * 16
        else:
            # Parameters, and features of the lowest resolution, which are as few.
            assert operation == "all-gather"
            assert math.prod(shape) <= max(sizes) * 2
    _, _, whole = compiled(name, MeshConfig(data=4))
    # What only a few rows need is done for all of them on small images.
    assert flops < 0.75 * whole


def test_figures_come_out_whole():
    """Each of several processes can fetch the features of all images."""
    task, mesh = GAMES["dcgan"].make_task(), make_mesh(ROWS)
    evaluation = task.evaluation(Shard())
    assert evaluation is not None
    with jax.set_mesh(mesh):
        program = Program(task, mesh)
        state = program.abstract_state()
        state.carry.update(evaluation.constants)
        batch = program.abstract_batch(evaluation.batches[0])
        step = jax.jit(task.eval_step).lower(state, batch).compile()
    _, sums = step.output_shardings
    assert all(one.is_fully_replicated for one in jax.tree.leaves(sums))
    features = BATCH * 64
    gathered = [math.prod(shape) for name, shape in moved(step.as_text()) if name == "all-gather"]
    # As many latents as a device has examples become images there.
    assert features in gathered
    assert BATCH * 16 * 16 not in gathered


# ---- where parameters lie ------------------------------------------------------------------------

LARGE = {
    "stylegan2": ({"kind": "stylegan2", "channel_base": 32768}, (1024, 1024, 3)),
    "r3gan": (
        {
            "kind": "r3gan",
            "stage_widths": [768, 768, 768, 768, 384, 192, 96],
            "group_size": 128,
            "expansion": 1.3333333,
        },
        (256, 256, 3),
    ),
    "dcgan": ({"kind": "dcgan"}, (64, 64, 3)),
    "sngan": ({"kind": "sngan"}, (32, 32, 3)),
}


@pytest.mark.parametrize("name", LARGE)
def test_channels_are_split_and_kernels_stay_together(name, monkeypatch):
    monkeypatch.undo()
    model, shape = LARGE[name]
    config = check({"kind": "adversarial", "model": model}, AdversarialConfig)
    step = make_step(config, *config.model.make(shape, 0), shape, 0)
    shapes = jax.eval_shape(step.init, jax.random.key(0))
    mesh = make_mesh(MeshConfig(data=1, fsdp=8))
    shardings = state_shardings(shapes, (), mesh)
    assert unsharded_share(shapes.params, shardings.params) < 0.01
    specs = {
        path_name(path): one.spec for path, one in jax.tree_util.tree_leaves_with_path(shardings)
    }
    for path, spec in specs.items():
        network, _, rest = path.partition("/")
        if network == "params":
            assert not any(spec[:-2])
            for copy in ("opt_state/{}/mu/{}", "opt_state/{}/nu/{}", "ema/{}/{}"):
                same = copy.format(*rest.split("/", 1))
                assert specs.get(same, spec) == spec
    mesh = make_mesh(MeshConfig(data=1, fsdp=4, tensor=2))
    assert repeats_work(state_shardings(shapes, (), mesh), mesh)
    rules = [("kernel", ("tensor",))]
    assert not repeats_work(state_shardings(shapes, rules, mesh), mesh)
