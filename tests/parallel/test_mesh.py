import jax
import pytest
from jax.sharding import AxisType

from genjax.config import check
from genjax.errors import UserError
from genjax.parallel.mesh import AXES, MeshConfig, batch_size_fits, make_mesh


@pytest.mark.fast
@pytest.mark.parametrize(
    ("sizes", "expected"),
    [
        ({}, (8, 1, 1, 1)),
        ({"fsdp": 4}, (2, 4, 1, 1)),
        ({"fsdp": 2, "tensor": 2, "sequence": 2}, (1, 2, 2, 2)),
        ({"data": 2, "tensor": 3}, (2, 1, 3, 1)),
        ({"data": 1}, (1, 1, 1, 1)),
    ],
)
def test_a_mesh_takes_the_devices_that_its_axes_name(sizes, expected):
    mesh = make_mesh(MeshConfig(**sizes))
    assert tuple(mesh.shape[axis] for axis in AXES) == expected
    assert mesh.axis_names == AXES
    assert mesh.axis_types == (AxisType.Auto,) * 4
    assert len({device.id for device in mesh.devices.flat}) == mesh.size


def test_a_mesh_of_given_devices_uses_no_others():
    devices = jax.devices()[4:8]
    mesh = make_mesh(MeshConfig(fsdp=2), devices)
    assert set(mesh.devices.flat) == set(devices)


@pytest.mark.fast
@pytest.mark.parametrize(
    ("sizes", "words"),
    [
        ({"fsdp": 3}, ["mesh", "fsdp x tensor x sequence = 3", "8 devices"]),
        ({"fsdp": 4, "tensor": 4}, ["mesh", "= 16", "8 devices"]),
        ({"data": 4, "fsdp": 4}, ["mesh", "4 x 4 x 1 x 1 = 16 devices", "8 are here"]),
        ({"data": -1, "fsdp": -1}, ["mesh: data and fsdp are both -1", "a number for one"]),
        ({"data": 3, "fsdp": -1}, ["mesh", "data x tensor x sequence = 3", "8 devices"]),
    ],
)
def test_sizes_that_do_not_fit_the_devices_are_refused(sizes, words):
    with pytest.raises(UserError) as refusal:
        make_mesh(MeshConfig(**sizes))
    for word in words:
        assert word in str(refusal.value)


@pytest.mark.fast
@pytest.mark.parametrize(
    ("axis", "size"),
    [("data", -2), ("data", 0), ("fsdp", 0), ("fsdp", -2), ("tensor", -1), ("sequence", 0)],
)
def test_nonsense_is_refused_by_the_field(axis, size):
    with pytest.raises(UserError, match=f"  {axis}: "):
        check({axis: size}, MeshConfig)


@pytest.mark.fast
def test_fsdp_may_take_all_devices_left():
    assert make_mesh(MeshConfig(data=1, fsdp=-1, tensor=2)).shape["fsdp"] == 4


@pytest.mark.fast
def test_a_batch_must_split_over_data_and_fsdp_and_over_nothing_else():
    mesh = make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))
    batch_size_fits(4, mesh)
    batch_size_fits(12, mesh)
    with pytest.raises(UserError, match=r"6 examples.*4 devices.*multiple of 4"):
        batch_size_fits(6, mesh)
