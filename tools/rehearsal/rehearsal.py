"""Compile a run's own training step for a slice, and measure what comes out."""

import dataclasses
import time
from collections import Counter
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any

import jax
from jax.errors import JaxRuntimeError
from jax.sharding import Mesh

from genjax.flops import count_flops
from genjax.parallel.mesh import MeshConfig, make_mesh, ways_across_slices
from genjax.task import Shard, Task
from tools.rehearsal.chips import Chip
from tools.rehearsal.collectives import Collective, find_collectives
from tools.rehearsal.compilation import (
    Memory,
    batch_bytes,
    compile_with_text,
    compiled_memory,
    lower_step,
    refused_memory,
    state_bytes,
)
from tools.rehearsal.loops import visits
from tools.rehearsal.program_text import parse
from tools.rehearsal.roofline import Fabric, Roofline, fabric_of, roofline
from tools.rehearsal.traffic import memory_traffic
from train.program import Program

PERIOD = 720
"""Steps over which the variants of a step are weighed; all usual intervals divide it."""


@dataclasses.dataclass(frozen=True)
class Variant:
    """One of the compiled forms of a training step.

    Attributes:
        name: what the task calls it; empty where there is one form only.
        share: of the steps that take it.
        memory: of a chip.
        flops: operations of the step on all chips, recomputation included.
        traffic: bytes that a device moves to and from its memory.
        collectives: what devices send to each other, the most bytes first.
        roofline: its least times; None where it did not fit.
        remarks: what the figures leave out.
    """

    name: str
    share: float
    memory: Memory
    flops: float
    traffic: float
    collectives: tuple[Collective, ...]
    roofline: Roofline | None
    remarks: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Rehearsal:
    """A run's step on a mesh.

    Attributes:
        topology: the slice, such as "v5e:16x16".
        mesh: sizes of the axes by name.
        fabric: its devices.
        variants: the forms of its step.
        model_flops: operations of an average step as the task counts them, without recomputation
            where it can tell; None where it cannot.
        units: what a step works through, such as {"tokens": 1048576}.
        steps: of the whole run.
        batch: names and shapes of the batch's arrays.
    """

    topology: str
    mesh: Mapping[str, int]
    fabric: Fabric
    variants: tuple[Variant, ...]
    model_flops: float | None
    units: Mapping[str, int]
    steps: int
    batch: Mapping[str, str]

    @property
    def fits(self) -> bool:
        """Whether every variant fits the chips' memory."""
        return all(one.memory.fits and one.roofline is not None for one in self.variants)

    @property
    def memory(self) -> Memory:
        """Of the variant that needs the most."""
        return max((one.memory for one in self.variants), key=lambda memory: memory.used)

    @property
    def roofline(self) -> Roofline | None:
        """The least times of an average step, or None where a variant does not fit."""
        lines = [one.roofline for one in self.variants]
        if any(line is None for line in lines):
            return None
        totals = [
            sum(one.share * getattr(one.roofline, term) for one in self.variants)
            for term in ("compute", "memory", "network")
        ]
        return Roofline(*totals)

    def seconds(self) -> tuple[float, float] | None:
        """An average step's time: were all to overlap, and were nothing to overlap.

        The first adds up the bounds of the variants, each with its own longest term.
        """
        found = [(one.share, one.roofline) for one in self.variants if one.roofline is not None]
        if len(found) < len(self.variants):
            return None
        return (
            sum(share * line.bound for share, line in found),
            sum(share * line.in_turn for share, line in found),
        )

    def utilisation(self, seconds: float) -> float | None:
        """The share of the chips' peak that useful operations make, at a time per step."""
        if self.model_flops is None:
            return None
        return self.model_flops / seconds / (self.fabric.chips * self.fabric.chip.flops)

    def chip_hours(self, seconds: float) -> float:
        """Of the whole run, at a time per step."""
        return self.steps * seconds * self.fabric.chips / 3600


def mesh_words(sizes: Mapping[str, int]) -> str:
    """A mesh's axes that are not 1, such as "data 4 x fsdp 64"."""
    return " x ".join(f"{name} {size}" for name, size in sizes.items() if size > 1) or "one device"


def shares_of_variants(task: Task, steps: int) -> dict[Hashable, float]:
    """The forms of a task's step and the share of steps that takes each, the most common first."""
    counted = Counter(task.variant(step) for step in range(min(PERIOD, max(steps, 1))))
    return {variant: count / counted.total() for variant, count in counted.most_common()}


def rehearse(
    task: Task,
    mesh_config: MeshConfig,
    devices: Sequence[Any],
    chip: Chip,
    topology: str,
    *,
    seed: int,
    steps: int,
    tell: Callable[[str], None] = lambda message: None,
) -> Rehearsal:
    """Compile every form of a task's step for devices, and measure them.

    Args:
        task: from `RunConfig.rehearsal_task`.
        mesh_config: the mesh.
        devices: of the slice, from `devices_of`.
        chip: what they are.
        topology: what to call them.
        seed: the run's.
        steps: the run's.
        tell: hears of each form what is compiled, and how long that took.

    Raises:
        UserError: the mesh does not fit the devices, or does not divide the batch.
    """
    mesh = make_mesh(mesh_config, devices)
    program = Program(task, mesh, seed)
    data = task.dataset("train", Shard())[0]
    assert data is not None
    batch = program.abstract_batch(data)
    fabric = fabric_of(list(mesh.devices.flat), chip)
    shares = shares_of_variants(task, steps)
    where = f"{topology}, {mesh_words(mesh.shape)}"
    variants = []
    for number, (variant, share) in enumerate(shares.items(), 1):
        what = where
        if len(shares) > 1:
            what += f": {_name(variant)} step, {number} of {len(shares)}"
        tell(f"{what}: compiling")
        began = time.perf_counter()
        variants.append(_variant(program, variant, share, batch, fabric, several=len(shares) > 1))
        tell(f"{what}: took {time.perf_counter() - began:.0f} s")
    return Rehearsal(
        topology=topology,
        mesh=dict(mesh.shape),
        fabric=fabric,
        variants=tuple(variants),
        model_flops=_model_flops(task, variants),
        units=task.units_per_step(),
        steps=steps,
        batch={name: f"{one.dtype} {list(one.shape)}" for name, one in batch.items()},
    )


def _model_flops(task: Task, variants: Sequence[Variant]) -> float | None:
    """What the task says; counting each variant again would take its time, so their own serve."""
    if len(variants) > 1:
        return sum(one.share * one.flops for one in variants)
    return task.flops_per_step()


def _variant(
    program: Program,
    variant: Hashable,
    share: float,
    batch: Mapping[str, Any],
    fabric: Fabric,
    *,
    several: bool,
) -> Variant:
    """Compile one form of the step and measure it."""
    name = _name(variant) if several else ""
    cores = fabric.cores
    known = (cores * state_bytes(program), cores * batch_bytes(batch))
    assert isinstance(program.mesh, Mesh)
    with jax.set_mesh(program.mesh):
        flops = count_flops(program.step(variant), program.abstract_state(), batch)
    try:
        compiled, text = compile_with_text(lower_step(program, variant, batch))
    except JaxRuntimeError as error:
        memory = refused_memory(str(error), *known, chip=fabric.chip, cores=cores)
        if memory is None:
            raise
        return Variant(name, share, memory, flops, 0.0, (), None)
    memory = compiled_memory(compiled, *known, fabric)
    remarks: list[str] = []
    collectives: list[Collective] = []
    traffic = 0.0
    try:
        parsed = parse(text)
        visited, unknown = visits(parsed)
        across = ways_across_slices(program.mesh)
        collectives = find_collectives(parsed, visited, dict(program.mesh.shape), across)
        traffic = memory_traffic(parsed, visited)
        if unknown:
            remarks.append(f"{unknown} loops do not tell their turns and count once")
    except ValueError as error:
        remarks.append(f"times of memory and network are not known: {error}")
    line = roofline(flops, traffic, collectives, fabric)
    return Variant(name, share, memory, flops, traffic, tuple(collectives), line, tuple(remarks))


def _name(variant: Hashable) -> str:
    """A variant in words: the flags that are set of a tuple of named flags."""
    fields = getattr(variant, "_asdict", None)
    if fields is None:
        return str(variant)
    flags = [name.replace("_", " ") for name, value in fields().items() if value is True]
    return " + ".join(flags) or "plain"
