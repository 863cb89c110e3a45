"""Which meshes are worth compiling for a slice."""

import dataclasses
import itertools
import math
from collections.abc import Sequence
from typing import Any

import jax

from genjax.errors import UserError
from genjax.parallel.mesh import MeshConfig, make_mesh
from genjax.task import Shard, Task, Tree
from tools.rehearsal.chips import Chip
from tools.rehearsal.compilation import state_bytes
from train.program import Program

LARGEST_TENSOR = 16
"""More ways to split a layer than these are not tried: its collectives are on every layer's way."""
LARGEST_SEQUENCE = 16
"""The same for the time axis."""


@dataclasses.dataclass(frozen=True)
class Candidate:
    """A mesh that might do, and the bytes of train state that it leaves on a chip."""

    mesh: MeshConfig
    state: float


def candidates(
    task: Task, devices: Sequence[Any], chip: Chip, cores: int, seed: int, count: int
) -> list[Candidate]:
    """The meshes to compile, the most promising first.

    All products of powers of two (and what else divides the devices) over data, fsdp, tensor and
    sequence count, of which the first two must divide the batch. Those whose train state alone
    does not fit are dropped; so are tensor meshes where no rule of the task splits a layer, and
    sequence meshes where they split nothing of the batch. Of each split over
    tensor and sequence the one with the fewest shards of the parameters comes first, since whole
    copies need the least traffic; splits with less of both come before those with more.

    Raises:
        UserError: none is left.
    """
    data = task.dataset("train", Shard())[0]
    assert data is not None
    rows = {array.shape[0] for array in data.values()}
    by_split: dict[tuple[int, int], list[Candidate]] = {}
    least = math.inf
    for data_size, fsdp, tensor, sequence in _factorisations(len(devices)):
        if tensor > LARGEST_TENSOR or sequence > LARGEST_SEQUENCE:
            continue
        if any(size % (data_size * fsdp) for size in rows):
            continue
        config = MeshConfig(data=data_size, fsdp=fsdp, tensor=tensor, sequence=sequence)
        try:
            program = Program(task, make_mesh(config, devices), seed)
        except UserError:
            # The task cannot share its work out so: it reads one token after another, say.
            continue
        if tensor > 1 and not _uses(program.shardings.params, "tensor"):
            continue
        inputs = {name: one.sharding for name, one in program.abstract_batch(data).items()}
        if sequence > 1 and not _uses(inputs, "sequence"):
            continue
        state = float(cores * state_bytes(program))
        least = min(least, state)
        if state < chip.hbm:
            by_split.setdefault((tensor, sequence), []).append(Candidate(config, state))
    if not by_split:
        reason = (
            f"no mesh divides its batch over {len(devices)} devices"
            if math.isinf(least)
            else f"the train state alone takes {least / 2**30:.1f} GiB of each chip's "
            f"{chip.hbm / 2**30:.0f} GiB at best"
        )
        raise UserError(f"--search: {reason}; change the batch, or take a larger slice")
    for found in by_split.values():
        found.sort(key=lambda one: one.mesh.fsdp)
    order = sorted(by_split, key=lambda split: (split[0] * split[1], split))
    turns = itertools.zip_longest(*(by_split[split] for split in order))
    return [one for turn in turns for one in turn if one is not None][:count]


def _factorisations(devices: int) -> list[tuple[int, int, int, int]]:
    divisors = [size for size in range(1, devices + 1) if devices % size == 0]
    return [
        (devices // (fsdp * tensor * sequence), fsdp, tensor, sequence)
        for fsdp, tensor, sequence in itertools.product(divisors, repeat=3)
        if devices % (fsdp * tensor * sequence) == 0
    ]


def _uses(shardings: Tree, axis: str) -> bool:
    return any(
        axis in ((entry,) if isinstance(entry, str) else entry or ())
        for sharding in jax.tree.leaves(shardings)
        for entry in sharding.spec
    )
