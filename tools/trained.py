"""A finished or stopped run, ready to use: its config, task and trained state."""

import argparse
import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh

from genjax.config import load
from genjax.errors import UserError
from genjax.families import FAMILIES
from genjax.parallel import platform
from genjax.parallel.mesh import MeshConfig, make_mesh
from genjax.parallel.partition import state_shardings
from genjax.run_config import RunConfig
from genjax.task import Task, TrainState
from train.checkpoint import Checkpoints
from train.run_directory import RunDirectory


@dataclasses.dataclass(frozen=True)
class Trained:
    """A trained state with what it takes to use it."""

    run: RunDirectory
    config: RunConfig
    task: Task
    step: int
    state: TrainState
    mesh: Mesh


def run_config(folder: Path, overrides: Sequence[str] | dict[str, Any] = ()) -> RunConfig:
    """The config of a run directory.

    Raises:
        UserError: the folder is not a run directory, or an override does not fit.
    """
    run = RunDirectory(folder)
    if not run.exists():
        what = "holds no run (no config.toml)" if folder.is_dir() else "does not exist"
        raise UserError(f"{folder} {what}; give a run directory that `python -m train` made")
    return load(run.config_file, overrides, schema=FAMILIES)


def load_trained(folder: Path, config: RunConfig, step: str = "newest") -> Trained:
    """Read a run's checkpoint onto one device, however many it was trained on.

    Args:
        folder: the run directory.
        config: its config, from `run_config`.
        step: "newest", "best" (by `checkpoint.best_metric`) or a number.

    Raises:
        UserError: there is no such checkpoint, or none is intact.
    """
    platform.start(config.platform)
    run = RunDirectory(folder)
    task = config.make_task(run.assets)
    mesh = make_mesh(MeshConfig(data=1))
    shapes = jax.eval_shape(task.init, jax.random.key(config.seed))
    shardings = state_shardings(shapes, task.partition_rules, mesh)
    checkpoints = Checkpoints(run.checkpoints)
    try:
        number = chosen_step(checkpoints, config, step)
        restored = checkpoints.restore(shapes, shardings, number)
    finally:
        checkpoints.close()
    if restored is None:
        raise UserError(f"{folder} has no checkpoint yet; train it longer")
    return Trained(run, config, task, restored.step, restored.state, mesh)


def chosen_step(checkpoints: Checkpoints, config: RunConfig, step: str) -> int | None:
    """The number of the checkpoint that `--step` asks for, or None for the newest intact one.

    Raises:
        UserError: there is no such checkpoint.
    """
    steps = checkpoints.steps()
    if step == "newest" or not steps:
        return None
    if step == "best":
        if config.checkpoint.best_metric is None:
            raise UserError(
                "--step best: the run kept no best checkpoint; see checkpoint.best_metric"
            )
        best = checkpoints.best(config.checkpoint.best_metric, config.checkpoint.best_is)
        if best is None:
            raise UserError(
                f"--step best: no checkpoint was saved with the figure "
                f"{config.checkpoint.best_metric!r} yet; take the newest, or train longer"
            )
        return best
    if not step.isdigit() or int(step) not in steps:
        raise UserError(
            f"--step {step}: no such checkpoint; there are {', '.join(map(str, steps))}"
        )
    return int(step)


def add_run_arguments(parser: argparse.ArgumentParser) -> None:
    """Give a parser the arguments that choose a run and its checkpoint."""
    parser.add_argument("run", type=Path, metavar="RUN", help="run directory")
    parser.add_argument(
        "--step", default="newest", help='checkpoint: "newest" (default), "best" or a step'
    )
