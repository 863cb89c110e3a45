"""What the training loop adds to its jitted step: batches, logs, signals, progress."""

import dataclasses
import multiprocessing
import os
import statistics
import tempfile
import time
from multiprocessing.connection import Connection
from pathlib import Path

CONFIG = Path(__file__).parent.parent / "configs" / "text" / "demo.toml"


@dataclasses.dataclass(frozen=True)
class LoopOverhead:
    """Seconds a step: of the jitted step called in a bare loop, and of the training loop."""

    step: float
    loop: float


def loop_overhead(steps: int = 100, repeats: int = 3) -> LoopOverhead:
    """Time the demo's step alone and in the loop, in turn, each in a process of its own."""
    context = multiprocessing.get_context("spawn")
    seconds: dict[str, list[float]] = {"step": [], "loop": []}
    for _ in range(repeats):
        for name in seconds:
            receiver, sender = context.Pipe(duplex=False)
            worker = context.Process(target=_measure, args=(name, steps, sender))
            worker.start()
            seconds[name].append(receiver.recv())
            worker.join()
    return LoopOverhead(statistics.median(seconds["step"]), statistics.median(seconds["loop"]))


def _measure(name: str, steps: int, sender: Connection) -> None:
    import jax

    from genjax.config import load
    from genjax.families import FAMILIES
    from genjax.parallel import platform
    from genjax.task import Shard

    # One evaluation, sample and save at the very end, which the clock leaves out.
    overrides = [f"steps={steps}", "evaluation.every=9999", "samples.every=9999"]
    config = load(CONFIG, overrides, schema=FAMILIES)
    platform.start(config.platform)
    task = config.make_task()
    if name == "step":
        state = jax.jit(task.init)(jax.random.key(config.seed))
        batches = [task.dataset("train", Shard())[number] for number in range(steps)]
        step = jax.jit(task.train_step, donate_argnums=0)
        state, _ = jax.block_until_ready(step(state, batches[0]))
        began = time.perf_counter()
        for batch in batches[1:]:
            state, _ = step(state, batch)
        jax.block_until_ready(state)
        result = (time.perf_counter() - began) / (steps - 1)
    else:
        from rich.console import Console

        from tools.runs import read_run
        from train.loop import train
        from train.progress import Progress
        from train.run_directory import RunDirectory
        from train.signals import StopRequest

        with tempfile.TemporaryDirectory() as folder:
            run = RunDirectory(Path(folder) / "run")
            run.open(config, None)
            # A real progress bar is drawn, where nobody sees it.
            with Path(os.devnull).open("w") as nowhere:
                console = Console(file=nowhere, force_terminal=True)
                with Progress(bar=True, console=console) as progress:
                    train(task, config, run, StopRequest(), progress)
            run.close()
            result = statistics.fmean(read_run(run.folder).series("speed")["step_time"].values)
    sender.send(result)
