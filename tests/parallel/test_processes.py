"""Several processes of one run: how they are found, and which rows each reads."""

import dataclasses
import functools
import re

import jax
import numpy as np
import pytest
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from genjax.errors import UserError
from genjax.parallel.mesh import AXES
from genjax.parallel.processes import (
    Place,
    first_numbers,
    launched_by,
    place_from_flags,
    process_shard,
)
from genjax.task import Shard

pytestmark = pytest.mark.fast

# ---- how they are found --------------------------------------------------------------------------


def test_flags():
    assert place_from_flags(None, None, None) is None
    assert place_from_flags("node-0:8476", 4, 3) == Place("node-0:8476", 4, 3)
    assert place_from_flags("[fd00::1]:80", 1, 0) == Place("[fd00::1]:80", 1, 0)


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (("node-0:8476", None, 0), "--num-processes: missing"),
        ((None, 2, None), "--coordinator, --process-id: missing"),
        (("node-0", 2, 0), "--coordinator node-0: give the host and a free port"),
        (("node-0:99999", 2, 0), "--coordinator node-0:99999"),
        (("node-0:0", 2, 0), "--coordinator node-0:0"),
        (("http://node-0:80", 2, 0), "--coordinator http"),
        (("node-0:8476", 0, 0), "--num-processes 0"),
        (("node-0:8476", 2, 2), "--process-id 2: give 0 to 1"),
        (("node-0:8476", 2, -1), "--process-id -1"),
    ],
)
def test_mistakes_in_flags(flags, words):
    with pytest.raises(UserError, match=re.escape(words)):
        place_from_flags(*flags)


SLURM = {
    "SLURM_JOB_ID": "7",
    "SLURM_STEP_NODELIST": "node-[0-1]",
    "SLURM_PROCID": "0",
    "SLURM_LOCALID": "0",
    "SLURM_NTASKS": "2",
}
OPEN_MPI = {"OMPI_MCA_orte_hnp_uri": "1;tcp://10.0.0.1:34567", "OMPI_COMM_WORLD_SIZE": "2"}
TPU = {"TPU_WORKER_HOSTNAMES": "a,b"}


@pytest.mark.parametrize(
    ("environment", "found"),
    [
        ({}, None),
        (SLURM, "SLURM"),
        (SLURM | {"SLURM_NTASKS": "1"}, None),
        # A script of a batch job, outside of `srun`.
        ({name: SLURM[name] for name in ("SLURM_JOB_ID", "SLURM_NTASKS")}, None),
        (OPEN_MPI, "Open MPI"),
        (OPEN_MPI | {"OMPI_COMM_WORLD_SIZE": "1"}, None),
        (TPU, "Cloud TPU"),
        ({"TPU_WORKER_HOSTNAMES": "a"}, None),
        ({"TPU_WORKER_HOSTNAMES": "a", "MEGASCALE_NUM_SLICES": "2"}, "Cloud TPU"),
    ],
)
def test_launchers(environment, found):
    assert launched_by({"JAX_PLATFORMS": "cpu"} | environment) == found


# ---- which rows each reads -----------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Device:
    """What a mesh needs to know of a device."""

    id: int
    process_index: int
    platform: str = "cpu"
    device_kind: str = "cpu"


def shards(monkeypatch, count, devices, **sizes):
    """What each of several processes with so many devices reads."""
    shape = [sizes.get(axis, 1) for axis in AXES]
    named = [Device(number, number // devices) for number in range(count * devices)]
    mesh = Mesh(np.array(named[: np.prod(shape)]).reshape(shape), AXES)
    monkeypatch.setattr(jax, "process_count", lambda: count)
    found = []
    for index in range(count):
        monkeypatch.setattr(jax, "process_index", lambda index=index: index)
        found.append(process_shard.__wrapped__(mesh))
    return found


ALL, HALVES = [Shard(0, 1)] * 2, [Shard(0, 2), Shard(1, 2)]


@pytest.mark.parametrize(
    ("sizes", "expected"),
    [
        ({"data": 8}, HALVES),
        ({"data": 4, "fsdp": 2}, HALVES),
        ({"data": 4, "tensor": 2}, HALVES),
        ({"fsdp": 2, "tensor": 4}, HALVES),
        ({"data": 2, "sequence": 4}, HALVES),
        ({"tensor": 8}, ALL),
        ({"tensor": 2, "sequence": 4}, ALL),
    ],
)
def test_rows_of_two_processes(monkeypatch, sizes, expected):
    assert shards(monkeypatch, 2, 4, **sizes) == expected


def test_rows_of_processes_in_pairs(monkeypatch):
    """Two processes share each half where the tensor axis spans both."""
    expected = [Shard(0, 2), Shard(0, 2), Shard(1, 2), Shard(1, 2)]
    assert shards(monkeypatch, 4, 2, data=2, tensor=4) == expected


@pytest.mark.parametrize(
    ("devices", "sizes"), [(4, {"data": 6}), (4, {"data": 4}), (3, {"data": 3, "tensor": 2})]
)
def test_rows_that_do_not_come_in_equal_parts(monkeypatch, devices, sizes):
    with pytest.raises(UserError, match=r"mesh: (the|\d+) "):
        shards(monkeypatch, 2, devices, **sizes)


# ---- what they have in common --------------------------------------------------------------------


@pytest.mark.parametrize("numbers", [[1 / 3, float("inf"), 5e-300], []])
def test_numbers_of_the_first_reach_all(monkeypatch, numbers):
    assert first_numbers(lambda: numbers) == numbers
    sent = []

    def broadcast(array, *, first):
        # As on the devices: without 64-bit types.
        assert array.dtype.itemsize == 4
        if first:
            sent.append(np.array(array))
            return array
        mine, array = np.shape(array), sent.pop(0)
        assert mine == np.shape(array)
        return array

    monkeypatch.setattr(jax, "process_count", lambda: 2)
    for index in (0, 1):
        monkeypatch.setattr(jax, "process_index", lambda index=index: index)
        monkeypatch.setattr(
            multihost_utils,
            "broadcast_one_to_all",
            functools.partial(broadcast, first=index == 0),
        )
        assert first_numbers(lambda index=index: [7.0] if index else numbers) == numbers
    assert not sent
