import dataclasses
import importlib.util

import jax
import numpy as np
import pytest
from jax.experimental import mesh_utils
from jax.sharding import AxisType

from genjax.config import check
from genjax.errors import UserError
from genjax.parallel.mesh import (
    AXES,
    MeshConfig,
    abstract_mesh,
    batch_size_fits,
    make_mesh,
    ways_across_slices,
)
from tools.rehearsal import topology


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


# ---- devices that need not be here ---------------------------------------------------------------


@pytest.mark.fast
@pytest.mark.parametrize("sizes", [{}, {"fsdp": 4}, {"data": 2, "tensor": 3}, {"fsdp": 3}])
def test_an_abstract_mesh_has_the_sizes_of_the_mesh_and_refuses_what_it_does(sizes):
    def shape_or_refusal(make):
        try:
            mesh = make()
        except UserError as refusal:
            return str(refusal)
        assert mesh.axis_types == (AxisType.Auto,) * 4
        return dict(mesh.shape)

    config = MeshConfig(**sizes)
    here = shape_or_refusal(lambda: make_mesh(config))
    assert shape_or_refusal(lambda: abstract_mesh(config, 8)) == here
    assert ways_across_slices(abstract_mesh(MeshConfig(data=512), 512)) == {}


# ---- several slices, several processes -----------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Device:
    """What a mesh needs to know of a device."""

    id: int
    process_index: int
    slice_index: int
    platform: str = "cpu"
    device_kind: str = "cpu"


def slices_of(*sizes, process=4):
    """The devices of slices of these sizes, in processes of so many."""
    numbers = [number for number, size in enumerate(sizes) for _ in range(size)]
    return [Device(number, number // process, own) for number, own in enumerate(numbers)]


def slices_along(mesh, axis):
    """The slices that one line of devices along an axis goes through."""
    lines = np.moveaxis(mesh.devices, AXES.index(axis), -1).reshape(-1, mesh.shape[axis])
    return {tuple(device.slice_index for device in line) for line in lines}


@pytest.mark.fast
@pytest.mark.parametrize(
    ("slices", "sizes", "across"),
    [
        (2, {}, {"data": 2}),
        (2, {"data": 2, "fsdp": -1, "tensor": 2}, {"data": 2}),
        (2, {"data": 1, "fsdp": -1}, {"fsdp": 2}),
        (4, {"data": 2, "fsdp": -1}, {"data": 2, "fsdp": 2}),
        (4, {"data": 4, "fsdp": 2, "tensor": 2, "sequence": 2}, {"data": 4}),
        (2, {"data": 1, "tensor": 16}, {"tensor": 2}),
        (2, {"data": 1, "sequence": 4, "tensor": 4}, {"sequence": 2}),
    ],
)
def test_slices_are_joined_along_the_axes_that_send_the_least(slices, sizes, across):
    mesh = make_mesh(MeshConfig(**sizes), slices_of(*[8] * slices))
    assert len({device.id for device in mesh.devices.flat}) == mesh.size
    assert ways_across_slices(mesh) == across
    for axis in AXES:
        # All of a slice's part of a line comes before the next slice's.
        for line in slices_along(mesh, axis):
            assert list(line) == sorted(line)
            assert len(set(line)) == across.get(axis, 1)


@pytest.mark.fast
def test_a_mesh_that_one_slice_holds_stays_there():
    mesh = make_mesh(MeshConfig(data=2, tensor=2), slices_of(4, 4))
    assert {device.slice_index for device in mesh.devices.flat} == {0}
    assert ways_across_slices(mesh) == {}


@pytest.mark.fast
@pytest.mark.parametrize(
    ("slices", "sizes"), [((4, 4), {"data": 6}), ((4, 2), {"data": 6}), ((2, 4), {"data": 5})]
)
def test_parts_of_slices_are_refused(slices, sizes):
    listed = ", ".join(map(str, slices))
    with pytest.raises(
        UserError, match=rf"mesh: \d devices are not whole slices.*{listed} devices"
    ):
        make_mesh(MeshConfig(**sizes), slices_of(*slices))


def rows_by_process(mesh):
    """Which parts of a batch the devices of each process hold."""
    rows = {}
    for place, device in np.ndenumerate(mesh.devices):
        row = place[0] * mesh.shape["fsdp"] + place[1]
        rows.setdefault(device.process_index, set()).add(row)
    return rows


def lies_together(rows):
    return max(rows) - min(rows) + 1 == len(rows) and min(rows) % len(rows) == 0


@pytest.mark.fast
@pytest.mark.parametrize(
    "sizes",
    [{}, {"data": 2, "fsdp": -1}, {"data": 1, "fsdp": -1}, {"tensor": 2}, {"data": 2, "tensor": 8}],
)
def test_where_the_torus_takes_a_process_apart_it_becomes_a_block(sizes, monkeypatch):
    def around_the_torus(shape, devices, **_):
        # Two rows of four processes with two by two devices each.
        number = np.arange(16).reshape(2, 2, 2, 2)
        return np.array(devices, object)[number.transpose(0, 2, 1, 3).reshape(shape)]

    devices = slices_of(16)
    config = MeshConfig(**sizes)
    plain = make_mesh(config, devices)
    monkeypatch.setattr(mesh_utils, "create_device_mesh", around_the_torus)
    mesh = make_mesh(config, devices)
    assert set(mesh.devices.flat) == set(devices)
    rows = rows_by_process(mesh)
    assert all(map(lies_together, rows.values())), rows
    # Processes keep their order, and their last axes are whole before the first are split.
    assert rows == rows_by_process(plain)


@pytest.mark.fast
def test_an_order_along_the_torus_that_keeps_processes_together_is_kept(monkeypatch):
    devices = slices_of(16)
    backwards = np.array(devices[::-1], object)
    monkeypatch.setattr(
        mesh_utils, "create_device_mesh", lambda shape, *_, **__: backwards.reshape(shape)
    )
    assert list(make_mesh(MeshConfig(), devices).devices.flat) == devices[::-1]


@pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="needs libtpu")
@pytest.mark.parametrize("name", ["v5e:4x4", "v5p:4x4x4", "2*v5e:2x2", "2*v5e:4x4"])
def test_processes_of_tpus_hold_rows_that_lie_together(name):
    topology.prepare()
    devices = topology.devices_of(name)
    for sizes in (
        {},
        {"data": 1, "fsdp": -1},
        {"data": 2, "fsdp": -1},
        {"tensor": 4},
        {"data": 2, "fsdp": -1, "tensor": 2},
    ):
        mesh = make_mesh(MeshConfig(**sizes), devices)
        assert mesh.size == len(devices) == len(set(mesh.devices.flat))
        assert all(map(lies_together, rows_by_process(mesh).values())), sizes
        across = ways_across_slices(mesh)
        assert across == ({"fsdp" if sizes.get("data") == 1 else "data": 2} if "*" in name else {})
