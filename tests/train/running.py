"""Run the loop in this process, and read what it left."""

import json
import signal

import numpy as np

from tests.toy import Toy
from train.checkpoint import Checkpoints, flatten
from train.loop import train
from train.progress import Progress
from train.run_directory import RunDirectory
from train.signals import StopRequest


class StopAt(StopRequest):
    """A request that comes up at a step, as a signal would: polled once a step."""

    def __init__(self, step):
        super().__init__()
        self.polls, self.step = 0, step

    def __bool__(self):
        self.polls += 1
        if self.polls >= self.step:
            self.signal_name = signal.Signals.SIGTERM.name
        return self.signal_name is not None


def run_toy(config, folder, *, task=None, stop=None):
    """Train the toy in `folder`; returns the loop's result."""
    run = RunDirectory(folder)
    run.open(config, config if run.exists() else None)
    try:
        with Progress(bar=False) as progress:
            request = StopRequest() if stop is None else stop
            return train(task or Toy(config), config, run, request, progress)
    finally:
        run.close()


def lines(folder, kind, name="metrics.jsonl"):
    """The lines of one kind in a run's log."""
    with (folder / name).open() as file:
        return [entry for line in file if (entry := json.loads(line)).get("kind") == kind]


def arrays(folder, config, step=None):
    """A checkpoint's arrays by path, and its position."""
    import jax

    from genjax.parallel.mesh import MeshConfig, make_mesh
    from genjax.parallel.partition import state_shardings

    mesh = make_mesh(MeshConfig(data=1))
    shapes = jax.eval_shape(config.make_task().init, jax.random.key(0))
    checkpoints = Checkpoints(folder / "checkpoints")
    restored = checkpoints.restore(shapes, state_shardings(shapes, (), mesh), step)
    checkpoints.close()
    named = {name: np.asarray(array) for name, array in flatten(restored.state).items()}
    return named, restored.position
