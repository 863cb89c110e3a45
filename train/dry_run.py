"""What a run would be, without training: sizes, work and layout."""

import functools
import math
from typing import Any

import jax
from rich.console import Console
from rich.table import Table

from genjax.parallel.mesh import batch_size_fits, make_mesh
from genjax.parallel.partition import state_shardings, unsharded_share
from genjax.run_config import RunConfig
from genjax.task import Shard, Task


def _bytes(tree: Any) -> int:
    return sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def _count(tree: Any) -> int:
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(tree))


def _scaled(number: float, unit: str, base: int = 1000) -> str:
    """A number with a prefix: 3_700_000_000 FLOP as "3.70 GFLOP"."""
    prefixes = ["", "K", "M", "G", "T", "P", "E"]
    power = 0
    while abs(number) >= base and power < len(prefixes) - 1:
        number /= base
        power += 1
    infix = "i" if base == 1024 and power else ""
    return f"{number:.{2 if power else 0}f} {prefixes[power]}{infix}{unit}"


def dry_run(task: Task, config: RunConfig, console: Console) -> None:
    """Print parameters, bytes, FLOPs a step, batch and mesh; nothing is allocated or trained.

    Raises:
        UserError: the data is missing, or the batch does not split over the mesh or into parts.
    """
    mesh = make_mesh(config.mesh)
    shapes = jax.eval_shape(lambda: task.init(jax.random.key(config.seed)))
    shardings = state_shardings(shapes, task.partition_rules, mesh)
    table = Table(box=None, show_header=False)
    for network, params in shapes.params.items():
        table.add_row(
            f"parameters of {network}", f"{_count(params):,}", _scaled(_bytes(params), "B", 1024)
        )
    rows = {"optimizer state": shapes.opt_state, "averages": shapes.ema, "carry": shapes.carry}
    for name, tree in rows.items():
        table.add_row(name, "", _scaled(_bytes(tree), "B", 1024))
    sharded = sum(
        math.prod(sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
        for leaf, sharding in zip(
            jax.tree.leaves(shapes.params), jax.tree.leaves(shardings.params), strict=True
        )
    )
    table.add_row("parameters on each device", "", _scaled(sharded, "B", 1024))
    if mesh.shape["fsdp"] > 1:
        share = unsharded_share(shapes.params, shardings.params)
        table.add_row("parameters not sharded", f"{100 * share:.1f}%", "")
    flops = task.flops_per_step()
    table.add_row("work of a step", _scaled(flops, "FLOP") if flops else "not known", "")
    batch = task.dataset("train", Shard())[0]
    assert batch is not None
    for name, array in batch.items():
        batch_size_fits(len(array), mesh)
        table.add_row(f"batch: {name}", f"{array.dtype} {list(array.shape)}", "")
    # Tracing finds what training would refuse at its first step, and costs nothing.
    with jax.set_mesh(mesh):
        step = functools.partial(task.train_step, variant=task.variant(0))
        jax.eval_shape(step, shapes, batch)
    for unit, count in task.units_per_step().items():
        table.add_row(f"{unit} a step", f"{count:,}", "")
    table.add_row("steps", f"{config.steps:,}", "")
    axes = " x ".join(f"{name} {size}" for name, size in mesh.shape.items())
    table.add_row("mesh", axes, f"{mesh.size} {jax.devices()[0].device_kind} device(s)")
    console.print(table)
