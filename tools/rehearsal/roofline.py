"""The least time that a step can take: by arithmetic, by memory and by the network.

Formulas for rings and tori as in "How to Scale Your Model" (Austin et al. 2025), section 3.
"""

import dataclasses
import functools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from tools.rehearsal.chips import HOP_SECONDS, Chip
from tools.rehearsal.collectives import Collective


@dataclasses.dataclass(frozen=True)
class Place:
    """Where a device is: its slice, its chip's place in the torus, its core on the chip."""

    slice: int
    coords: tuple[int, ...]
    core: int = 0


@dataclasses.dataclass(frozen=True)
class Fabric:
    """The devices of a mesh and what connects them.

    Attributes:
        chip: what each chip is.
        places: of each device of the flattened mesh.
        sides: of a slice, in chips.
    """

    chip: Chip
    places: tuple[Place, ...]
    sides: tuple[int, ...]

    @functools.cached_property
    def chips(self) -> int:
        """How many chips there are; a chip may count as two devices."""
        return len({(place.slice, place.coords) for place in self.places})

    @property
    def cores(self) -> int:
        """Devices of a chip."""
        return len(self.places) // self.chips


def fabric_of(devices: Sequence[Any], chip: Chip) -> Fabric:
    """The fabric of JAX's devices, in the order of the flattened mesh."""
    places = tuple(
        Place(
            getattr(device, "slice_index", None) or 0,
            tuple(device.coords)[: chip.dimensions],
            device.core_on_chip,
        )
        for device in devices
    )
    sides = np.max([place.coords for place in places], axis=0) + 1
    return Fabric(chip, places, tuple(sides.tolist()))


@functools.cache
def compact_fabric(chip: Chip, chips: int) -> Fabric:
    """The fabric of so many chips in slices as compact as can be, as few as there must be."""
    slices = math.ceil(chips / chip.largest)
    sides = chip.slice_shape(chips // slices)
    places = [Place(number, coords) for number in range(slices) for coords in np.ndindex(*sides)]
    return Fabric(chip, tuple(places), sides)


@dataclasses.dataclass(frozen=True)
class _Group:
    """How a group of devices lies: slices, chips in each, and the sides that they span.

    Attributes:
        slices: over how many slices it goes.
        chips: its chips in one slice.
        sides: for each direction in which they differ: how many, and bytes a second of a ring's
            traffic there.
        hops: between the farthest two of them.
    """

    slices: int
    chips: int
    sides: tuple[tuple[int, float], ...]
    hops: int

    @property
    def bandwidth(self) -> float:
        return sum(bandwidth for _, bandwidth in self.sides)


def _lies(fabric: Fabric, group: Sequence[int]) -> _Group:
    members = [fabric.places[place] for place in group]
    first = members[0].slice
    slices = len({place.slice for place in members})
    coords = sorted({place.coords for place in members if place.slice == first})
    # Groups of the other cores of the same chips share the links.
    link = fabric.chip.link_bandwidth / fabric.cores
    if len({place.core for place in members}) == fabric.cores:
        link = fabric.chip.link_bandwidth
    sides: list[tuple[int, float]] = []
    hops = 0
    for direction, extent in enumerate(fabric.sides):
        values = sorted({place[direction] for place in coords})
        count = len(values)
        if count == 1:
            continue
        stride = (values[-1] - values[0]) // (count - 1)
        closed = count * stride == extent and extent % fabric.chip.ring == 0
        # Where every n-th chip belongs to the group, n groups share the links between.
        sides.append((count, (2 if closed else 1) * link / max(stride, 1)))
        hops += stride * (count // 2 if closed else count - 1)
    if math.prod(count for count, _ in sides) != len(coords):
        # No box: a chain of chips, with one link's traffic.
        sides = [(len(coords), link)]
    return _Group(slices, len(coords), tuple(sides), hops)


def collective_seconds(one: Collective, fabric: Fabric) -> float:
    """The least time of one collective, in seconds.

    Within a slice, n chips pass (n - 1) / n of the array around rings along all directions that the
    group spans; a sum goes round twice. In an all-to-all the longest direction's middle decides; a
    permutation is taken to be between neighbours. Each takes at least a microsecond a hop. Over
    several slices, each chip first has its part within its slice, and exchanges that part over the
    data centre's network.
    """
    lies = _lies(fabric, one.group)
    n, size, chip = lies.chips, one.size, fabric.chip
    within = across = 0.0
    hops = lies.hops
    match one.kind:
        case "collective-permute" | "collective-broadcast":
            within = size / chip.link_bandwidth if n > 1 else 0.0
            across = size / chip.dcn_bandwidth if lies.slices > 1 else 0.0
            hops = min(hops, 1) if one.kind == "collective-permute" else hops
        case "all-to-all" | "ragged-all-to-all":
            within = max((count * size / 4 / width for count, width in lies.sides), default=0.0)
            across = (1 - 1 / lies.slices) * size / chip.dcn_bandwidth
        case kind:
            rounds = 2 if kind == "all-reduce" else 1
            hops *= rounds
            if n > 1:
                within = rounds * size * (n - 1) / n / lies.bandwidth
            across = rounds * (1 - 1 / lies.slices) * size / n / chip.dcn_bandwidth
    return max(within, hops * HOP_SECONDS) + across


@dataclasses.dataclass(frozen=True)
class Roofline:
    """The least times of a step, in seconds.

    Attributes:
        compute: of its multiplications at the chips' peak, evenly spread.
        memory: of the bytes that a chip reads and writes.
        network: of its collectives one after another.
    """

    compute: float
    memory: float
    network: float

    @property
    def bound(self) -> float:
        """The step's least time, were all three to overlap perfectly."""
        return max(self.compute, self.memory, self.network)

    @property
    def in_turn(self) -> float:
        """The step's time at those peaks, were nothing to overlap."""
        return self.compute + self.memory + self.network

    @property
    def limit(self) -> str:
        """Which of the three is the longest."""
        times = {"compute": self.compute, "memory": self.memory, "network": self.network}
        return max(times, key=times.__getitem__)


def roofline(
    flops: float, traffic: float, collectives: Sequence[Collective], fabric: Fabric
) -> Roofline:
    """The least times of a step.

    Args:
        flops: operations of the whole step, recomputation included.
        traffic: bytes that each device moves to and from its memory.
        collectives: what devices send to each other.
        fabric: the devices.
    """
    chip = fabric.chip
    return Roofline(
        compute=flops / fabric.chips / chip.flops,
        memory=traffic * fabric.cores / chip.hbm_bandwidth,
        network=sum(one.count * collective_seconds(one, fabric) for one in collectives),
    )
