"""What a run would be, without training: sizes, work and layout."""

import contextlib
import functools
from typing import Any

import jax
from jax.sharding import AbstractMesh
from rich.console import Console
from rich.table import Table
from rich.text import Text

from genjax.parallel.mesh import abstract_mesh, make_mesh, ways_across_slices
from genjax.run_config import RunConfig
from genjax.task import Shard, Task
from train.layout_table import Size, layout_lines, layout_table, layout_text, scaled, size_of
from train.program import Program

LARGEST = 5
"""How many kinds of arrays are named that every device holds whole."""


def dry_run(task: Task, config: RunConfig, console: Console, devices: int | None = None) -> None:
    """Print layout, parameters, bytes, FLOPs a step, batch and mesh.

    Nothing is allocated or trained.

    Args:
        task: of the config.
        config: the run's.
        console: where to.
        devices: how many devices to lay it out for, which need not be here; None for those here.

    Raises:
        UserError: the data is missing, the task or the batch does not split over the mesh, or the
            batch not into parts.
    """
    mesh = make_mesh(config.mesh) if devices is None else abstract_mesh(config.mesh, devices)
    program = Program(task, mesh, config.seed)
    data = task.dataset("train", Shard())[0]
    assert data is not None
    batch = program.abstract_batch(data)
    # Tracing finds what training would refuse at its first step, and costs nothing.
    with _in_effect(mesh):
        step = functools.partial(task.train_step, variant=task.variant(0))
        jax.eval_shape(step, program.shapes, data)

    shapes, shardings = program.shapes, program.shardings
    for network, params in shapes.params.items():
        lines = layout_lines(params, shardings.params[network])
        console.print(layout_table(lines, f"parameters of {network}"))
        console.print()
    if mesh.shape["fsdp"] > 1:
        _print_whole(program, console)
    console.print(_sizes(program, batch))
    console.print()
    console.print(_facts(program, batch, config, devices))
    for remark in program.remarks(data):
        console.print(f"note: {remark}", markup=False)


def _in_effect(mesh: Any) -> contextlib.AbstractContextManager[Any]:
    if isinstance(mesh, AbstractMesh):
        return jax.sharding.use_abstract_mesh(mesh)
    return jax.set_mesh(mesh)


def _print_whole(program: Program, console: Console) -> None:
    """Name the largest arrays of the state that no axis splits."""
    lines = layout_lines(program.shapes, program.shardings)
    whole = [line for line in lines if line.whole and line.shape]
    largest = sorted(whole, key=lambda line: -line.total)[:LARGEST]
    if largest:
        console.print(layout_table(largest, "the largest that every device holds whole"))
        console.print()


def _sizes(program: Program, batch: Any) -> Table:
    """Numbers and bytes of what a step keeps: in all, on each device, and whole on each."""
    table = Table(box=None, pad_edge=False)
    table.add_column("")
    for name in ("numbers", "bytes", "on each device", "whole on each"):
        table.add_column(name, justify="right", no_wrap=True)

    def add(name: str, size: Size) -> None:
        share = f"{100 * size.whole / size.total:.1f}%" if size.total else ""
        sizes = (scaled(size.total, "B", 1024), scaled(size.own, "B", 1024))
        table.add_row(name, f"{size.count:,}", *sizes, share)

    shapes, shardings = program.shapes, program.shardings
    for network, params in shapes.params.items():
        add(f"parameters of {network}", size_of(params, shardings.params[network]))
    for name, field in (
        ("optimizer state", "opt_state"),
        ("averages", "ema"),
        ("carry", "carry"),
    ):
        add(name, size_of(getattr(shapes, field), getattr(shardings, field)))
    add("batch", size_of(batch, {name: array.sharding for name, array in batch.items()}))
    return table


def _facts(program: Program, batch: Any, config: RunConfig, devices: int | None) -> Table:
    """Work, length, batch and mesh."""
    task, mesh = program.task, program.mesh
    table = Table(box=None, show_header=False, pad_edge=False)
    flops = task.flops_per_step()
    table.add_row("work of a step", scaled(flops, "FLOP") if flops else "not known")
    for unit, count in task.units_per_step().items():
        table.add_row(f"{unit} a step", f"{count:,}")
    table.add_row("steps", f"{config.steps:,}")
    for name, array in batch.items():
        layout = layout_text(array.shape, array.dtype, array.sharding)
        table.add_row(f"batch: {name}", Text(layout))
    axes = " x ".join(f"{name} {size}" for name, size in mesh.shape.items())
    kind = "" if devices is not None else f"{jax.devices()[0].device_kind} "
    table.add_row("mesh", axes, f"{mesh.size} {kind}device(s)")
    across = ways_across_slices(mesh)
    if across:
        table.add_row("from slice to slice", ", ".join(f"{a} {n}" for a, n in across.items()))
    return table
