"""What a compiled program sends between devices: by kind, mesh axes, bytes, how often."""

import dataclasses
import itertools
import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np

from tools.rehearsal.loops import Visit
from tools.rehearsal.program_text import (
    Computation,
    Instruction,
    ProgramText,
)

KINDS = (
    "all-gather",
    "all-reduce",
    "reduce-scatter",
    "all-to-all",
    "collective-permute",
    "collective-broadcast",
    "ragged-all-to-all",
)

_ASYNC_START = "AsyncCollectiveStart"

_BETWEEN_SLICES = re.compile(r'_xla_megascale_transfer_type="(\w+)"')
"""Of a "send" of XLA:TPU: what kind of collective its host does with those of other slices."""


@dataclasses.dataclass(frozen=True)
class Collective:
    """Collectives of one kind, group and size.

    Attributes:
        kind: one of `KINDS`.
        axes: the mesh axes along which devices talk, such as ("data", "fsdp").
        group: places in the flattened mesh of the devices of the first group, in order.
        size: bytes of the whole array of a group, before or after it is split: what is gathered,
            reduced or scattered; of an all-to-all or a permutation, a device's own part.
        count: how many of them a step runs, turns of loops multiplied in.
        operation: the operation that they serve, as JAX names it, where the text says.
    """

    kind: str
    axes: tuple[str, ...]
    group: tuple[int, ...]
    size: int
    count: float
    operation: str = ""

    @property
    def total(self) -> float:
        """Bytes of all of them together."""
        return self.size * self.count


def find_collectives(
    program: ProgramText,
    visited: Sequence[Visit],
    mesh: Mapping[str, int],
    across: Mapping[str, int] | None = None,
) -> list[Collective]:
    """The collectives of a program, equal ones together, the most bytes first.

    A collective that is begun in one place and ended in another counts once. XLA:TPU spreads some
    over several fusions, each of which repeats the operation: the one that begins it counts. A sum
    of which each device keeps its part, in a fusion of that name, is a reduce-scatter. What goes
    from slice to slice is sent by hosts: each device's part of it is a collective of its own, among
    the devices at the same place of every slice.

    Args:
        program: the parsed program.
        visited: its computations with how often each runs, from `visits`.
        mesh: sizes of the axes by name, in the mesh's order.
        across: over how many slices each axis goes that goes over several.
    """
    spread = _begun_in_fusions(program)
    counts: Counter[Collective] = Counter()
    for visit in visited:
        computation = visit.computation
        for one in computation:
            kind = one.opcode.removesuffix("-start")
            by_hosts = _BETWEEN_SLICES.search(one.attributes) if kind == "send" else None
            if by_hosts is not None:
                kind = by_hosts.group(1).lower().replace("_", "-")
                kind = kind if kind in KINDS else "collective-permute"
            if kind not in KINDS:
                continue
            channel = _channel(one)
            if channel in spread and not _begins(computation, one):
                continue
            if kind == "all-reduce" and computation.name.startswith("all-reduce-scatter"):
                kind = "reduce-scatter"
            group = groups_of(one, math.prod(mesh.values()))
            if by_hosts is not None:
                group = _same_place_of_slices(mesh, across or {})
            if len(group[0]) < 2:
                continue
            size = sum(
                array.size
                for name in one.operands
                if name in computation.instructions
                for array in computation.instructions[name].results
            )
            if kind == "all-gather":
                size *= len(group[0])
            axes, served = axes_of(group, mesh), _operation(one)
            found = Collective(kind, axes, tuple(group[0]), size, 1.0, served)
            counts[found] += visit.times  # pyright: ignore[reportArgumentType]
    found = [dataclasses.replace(one, count=float(count)) for one, count in counts.items()]
    return sorted(found, key=lambda one: -one.total)


def _same_place_of_slices(mesh: Mapping[str, int], across: Mapping[str, int]) -> list[list[int]]:
    """A device of each slice, by place in the flattened mesh: slices are an axis' outer part."""
    places = np.arange(math.prod(mesh.values())).reshape(tuple(mesh.values()))
    first = tuple(
        slice(None, None, size // across[name]) if name in across else slice(1)
        for name, size in mesh.items()
    )
    return [places[first].reshape(-1).tolist()]


def _operation(one: Instruction) -> str:
    found = re.search(r'\bop_name="([^"]*)"', one.attributes)
    return "" if found is None else re.sub(r"^jit\(\w+\)/", "", found.group(1))


def _channel(one: Instruction) -> int | None:
    found = re.search(r"\bchannel_id=(\d+)", one.attributes)
    return None if found is None else int(found.group(1))


def _begins(computation: Computation, one: Instruction) -> bool:
    return any(_ASYNC_START in user.attributes for user in computation.users[one.name])


def _begun_in_fusions(program: ProgramText) -> set[int | None]:
    """Channels of the collectives that XLA:TPU spreads over fusions."""
    return {
        _channel(one)
        for computation in program.computations.values()
        for one in computation
        if one.opcode in KINDS and _begins(computation, one)
    } - {None}


def groups_of(one: Instruction, devices: int) -> list[list[int]]:
    """Which devices talk to each other, by place in the flattened mesh.

    The text has them in one of four forms: written out, as a reshaped and transposed range
    ([groups, size]<=[sides]T(order)), as axes of a mesh, or as pairs of source and target. Pairs
    that are connected make one group.

    Args:
        one: the collective.
        devices: how many there are; all of them talk where the text names no group.
    """
    text = one.attributes
    pairs = re.search(r"source_target_pairs=(\{\{.*?\}\}|\{\})", text)
    if pairs is not None:
        return _connected([(a, b) for a, b in _lists(pairs.group(1))])
    ranged = re.search(r"replica_groups=\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", text)
    if ranged is not None:
        shape, sides, order = (_numbers(part) for part in ranged.groups())
        places = np.arange(math.prod(sides)).reshape(sides)
        places = places.transpose(order) if order else places
        return places.reshape(shape[0], -1).tolist()
    meshed = re.search(r"replica_groups=@?mesh\w*\[([^\]]*)\](.*?)\{([^}]*)\}", text)
    if meshed is not None:
        return _groups_of_mesh(*meshed.groups())
    written = re.search(r"replica_groups=(\{\{.*?\}\})", text)
    return _lists(written.group(1)) if written is not None else [list(range(devices))]


def _numbers(text: str | None) -> list[int]:
    return [int(one) for one in re.findall(r"\d+", text or "")]


def _lists(text: str) -> list[list[int]]:
    return [_numbers(one) for one in re.findall(r"\{([\d,\s]+)\}", text)]


def _groups_of_mesh(sizes: str, between: str, axes: str) -> list[list[int]]:
    """Groups from axes by name, of which one may be a part: 'axis':(before)size."""
    sides = {name: int(size) for name, size in re.findall(r"'([^']+)'=(\d+)", sizes)}
    shape: list[int] = []
    moved: dict[str, list[tuple[int, int]]] = {}
    for name, before, size in re.findall(r"'([^']+)'(?::\((\d+)\)(\d+))?", axes):
        whole = sides[name]
        moved.setdefault(name, []).append((int(before or 1), int(size or whole)))
    talking: list[int] = []
    for name, whole in sides.items():
        done = 1
        for before, size in sorted(moved.get(name, [])):
            if before > done:
                shape.append(before // done)
            talking.append(len(shape))
            shape.append(size)
            done = before * size
        if done < whole:
            shape.append(whole // done)
    count = math.prod(sides.values())
    devices = re.search(r"device_ids=\(?\[([\d,]+)\](?:T\(([\d,]+)\))?", between)
    places = np.arange(count)
    if devices is not None and devices.group(2) is not None:
        order = _numbers(devices.group(2))
        places = places.reshape(_numbers(devices.group(1))).transpose(order).reshape(-1)
    others = [place for place in range(len(shape)) if place not in talking]
    size = math.prod(shape[place] for place in talking)
    return places.reshape(shape).transpose([*others, *talking]).reshape(-1, size).tolist()


def _connected(pairs: Sequence[tuple[int, int]]) -> list[list[int]]:
    """The devices that pairs connect, as sorted groups; a pair with itself sends nothing."""
    group_of: dict[int, list[int]] = {}
    for a, b in pairs:
        if a == b:
            continue
        first, second = group_of.setdefault(a, [a]), group_of.setdefault(b, [b])
        if first is not second:
            first += second
            for one in second:
                group_of[one] = first
    groups = {id(group): sorted(group) for group in group_of.values()}
    return sorted(groups.values()) or [[0]]


def axes_of(groups: Sequence[Sequence[int]], mesh: Mapping[str, int]) -> tuple[str, ...]:
    """The mesh axes along which devices of a group differ."""
    sides = tuple(mesh.values())
    talking: set[int] = set()
    for group in itertools.islice(groups, 64):
        places = np.array(np.unravel_index(np.asarray(group), sides))
        talking |= set(np.flatnonzero((places != places[:, :1]).any(axis=1)).tolist())
    return tuple(name for place, name in enumerate(mesh) if place in talking)
