"""What a user is told of a layout that costs more than it need."""

import dataclasses

import jax
import jax.numpy as jnp
import pytest

from genjax.config import check
from genjax.families import FAMILIES
from genjax.parallel.mesh import MeshConfig, abstract_mesh, make_mesh
from genjax.parallel.partition import batch_sharding, layout_remarks, state_shardings
from genjax.task import Shard, TrainState
from train.program import Program

RULES = ((r"kernel$", ("fsdp", "tensor")),)

pytestmark = pytest.mark.fast


@dataclasses.dataclass(frozen=True)
class Device:
    """What a mesh needs to know of a device."""

    id: int
    slice_index: int
    process_index: int
    platform: str = "gpu"
    device_kind: str = "imagined"


def told(mesh, batch=(), rules=RULES, **kernels):
    """The remarks on a state of kernels of these shapes."""
    state = TrainState(
        step=jax.ShapeDtypeStruct((), jnp.int32),
        params={
            "net": {
                name: {"kernel": jax.ShapeDtypeStruct(shape, jnp.float32)}
                for name, shape in kernels.items()
            }
        },
        opt_state={},
        ema={},
        carry={},
        key=jax.ShapeDtypeStruct((), jnp.uint32),
    )
    shardings = state_shardings(state, rules, mesh)
    sharded_batch = {str(shape): batch_sharding(mesh, shape) for shape in batch}
    return layout_remarks(state, shardings, sharded_batch, rules, mesh)


@pytest.fixture(scope="module")
def mesh():
    return abstract_mesh(MeshConfig(data=1, fsdp=4, tensor=2), 8)


def test_nothing_is_said_of_a_good_layout(mesh):
    assert told(mesh, up=(256, 256)) == []
    # One device, however odd its sizes.
    assert told(abstract_mesh(MeshConfig(), 1), up=(255, 255)) == []


def test_what_fsdp_leaves_whole_is_told_from_two_percent_on():
    mesh = abstract_mesh(MeshConfig(data=1, fsdp=4), 4)
    # A share of 1/65, and one of 1/33.
    assert told(mesh, up=(64, 256), scale=(1, 254), rules=()) == []
    (remark,) = told(mesh, up=(64, 256), scale=(1, 512), rules=())
    assert remark.startswith("3.0% of the parameters' bytes are whole")
    assert "mesh.fsdp = 4" in remark and "mesh.data" in remark
    assert told(abstract_mesh(MeshConfig(data=4), 4), up=(64, 256), rules=()) == []


def test_a_tensor_axis_that_splits_nothing_is_told(mesh):
    (remark,) = told(mesh, up=(256, 256), rules=())
    assert remark.startswith("mesh.tensor = 2 splits nothing of this model")


def test_large_arrays_that_the_tensor_axis_does_not_divide_are_named(mesh):
    (remark,) = told(mesh, up=(256, 256), output=(256, 1025), other=(256, 129), small=(8, 3))
    assert "mesh.tensor = 2 does not divide net/output/kernel [256, 1025] and 1 more" in remark
    (remark,) = told(mesh, up=(256, 256), output=(256, 1025))
    assert "[256, 1025], so" in remark


def test_a_sequence_axis_that_splits_no_array_of_a_batch_is_told():
    mesh = abstract_mesh(MeshConfig(sequence=4), 8)
    (remark,) = told(mesh, batch=[(8, 6, 6, 3), (8,)], up=(256, 256))
    assert remark.startswith("mesh.sequence = 4 does not divide the examples")
    assert told(mesh, batch=[(8, 6, 6, 3), (8, 8)], up=(256, 256)) == []
    # Examples made on the devices are not judged.
    assert told(mesh, batch=[], up=(256, 256)) == []


@pytest.mark.parametrize("axis", ["tensor", "sequence"])
def test_an_axis_that_leaves_its_slice_is_told(axis):
    devices = [Device(number, number // 2, number // 2) for number in range(4)]
    (remark,) = told(make_mesh(MeshConfig(**{axis: 4}), devices), up=(256, 256))
    assert remark.startswith(f"mesh.{axis} goes over 2 slices or machines")
    assert "mesh.data to a multiple of 2" in remark
    assert told(make_mesh(MeshConfig(**{axis: 2}), devices), up=(256, 256)) == []


@pytest.mark.parametrize(
    ("kind", "data", "ways", "judged"),
    [
        ("adversarial", {"source": {"kind": "digits", "size": 8}}, 3, True),
        ("adversarial", {"source": {"kind": "digits", "size": 8}}, 2, False),
        # Digits in motion are drawn on the devices.
        ("prediction", {"source": {"kind": "moving_digits", "size": 16}}, 2, False),
    ],
)
def test_a_program_tells_what_its_batches_are_split_into(kind, data, ways, judged):
    config = check({"kind": kind, "data": data | {"batch_size": 4}}, FAMILIES)
    task = config.rehearsal_task()
    program = Program(task, abstract_mesh(MeshConfig(sequence=ways), ways))
    remarks = program.remarks(task.dataset("train", Shard())[0])
    assert [remark.startswith("mesh.sequence") for remark in remarks] == [True] * judged
