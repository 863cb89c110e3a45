"""The training loop. It reads top to bottom, and it knows no model."""

import contextlib
import dataclasses
import enum
import time
import zlib
from typing import Any

import jax

from genjax.parallel.mesh import make_mesh
from genjax.parallel.processes import agree, first_numbers, first_text, process_shard
from genjax.run_config import RunConfig
from genjax.task import Evaluation, Task
from train.checkpoint import Checkpoints, SaveError
from train.clock import Clock, earlier_sessions
from train.evaluate import Evaluator, Interrupted
from train.guard import DivergenceGuard, FigureGuard
from train.peers import PROCESS_LOST, Peers
from train.profiler import Profiler
from train.program import Program
from train.progress import Progress
from train.run_directory import RunDirectory
from train.signals import StopRequest
from train.stream import BatchStream, place
from train.watchdog import HUNG, Watchdog
from train.writers import has_samples, open_writers, recorded, recorded_values

NOTABLE_WAIT = 0.05
"""Share of the steps' time spent waiting for input from which the progress shows it."""


class Outcome(enum.IntEnum):
    """How a run ended; the value is the program's exit code."""

    FINISHED = 0
    """All steps are done and saved."""
    DIVERGED = 3
    """A metric was not finite, or the loss or a figure became far worse than it was."""
    NOT_SAVED = 4
    """The last checkpoint or the log could not be written."""
    HUNG = HUNG
    """No progress for `faults.hang_minutes`; the process ended itself without a result."""
    PROCESS_LOST = PROCESS_LOST
    """Another process was lost or failed; this one ended itself without a result."""
    INTERRUPTED = 75
    """Stopped by a signal and saved; the same command goes on (EX_TEMPFAIL)."""


@dataclasses.dataclass(frozen=True)
class Result:
    """How a run ended, at which step, the figures of its last evaluation, and a line to tell."""

    outcome: Outcome
    step: int
    figures: dict[str, float]
    message: str


def train(
    task: Task,
    config: RunConfig,
    run: RunDirectory,
    stop: StopRequest,
    progress: Progress,
    session_began: float | None = None,
    peers: Peers | None = None,
) -> Result:
    """Train a task from its start, or from the newest intact checkpoint of its run directory.

    Args:
        task: what to train.
        config: the run's config.
        run: an open run directory.
        stop: polled between steps and between the batches of an evaluation.
        progress: shows what happens.
        session_began: when, as a reading of `time.perf_counter`; by default when its clock starts.
        peers: the run's other processes, being watched; none by default.

    Raises:
        UserError: the data, the mesh or the checkpoints do not fit the config.
    """
    # ---- devices ------------------------------------------------------------------------------
    mesh = make_mesh(config.mesh)
    shard = process_shard(mesh)
    with jax.set_mesh(mesh), contextlib.ExitStack() as opened:
        peers = peers or Peers()
        watchdog = opened.enter_context(Watchdog(config.faults.hang_minutes, peers.fail))
        # ---- state: from a checkpoint, or new -------------------------------------------------
        key = jax.random.key(config.seed)
        program = Program(task, mesh, config.seed)
        shapes, shardings = program.shapes, program.shardings
        checkpoints = Checkpoints(run.checkpoints, config.checkpoint, tell=progress.tell)
        opened.callback(checkpoints.close)
        # After that: on the way out of an error, it would wait for processes that may be gone.
        opened.push(peers.on_error)
        restored = checkpoints.restore(shapes, shardings)
        if restored is None:
            state = program.init()(key)
            step, position = 0, None
        else:
            state, step, position = restored.state, restored.step, restored.position

        # ---- data -----------------------------------------------------------------------------
        batches = BatchStream(
            task.dataset("train", shard),
            mesh,
            position,
            config.platform.reading_threads,
            task.sequence_dimensions,
        )
        opened.callback(batches.close)

        # ---- logs -----------------------------------------------------------------------------
        earlier = earlier_sessions(run, step)
        # Without a checkpoint all is done again, baselines included.
        writers = open_writers(config, run, -1 if restored is None else step, progress.tell)
        opened.callback(writers.close)
        clock = Clock(step, earlier, session_began)
        opened.callback(lambda: writers.record("speed", step, clock.account()))
        if earlier:
            # At once: the lines that it was taken from are gone.
            writers.record("speed", step, clock.account())
        first_loss = first_numbers(lambda: recorded_values(run, "train", "loss", step)[:1])
        guard = DivergenceGuard(config.divergence_factor, *first_loss)
        best_metric = config.checkpoint.best_metric
        figure_guard: FigureGuard | None = None
        evaluator = Evaluator(task, mesh)
        # The same at every step, so that samples show what training changes, and apart from `key`.
        sample_key = jax.random.fold_in(key, zlib.crc32(b"samples"))
        figures: dict[str, float] = {}
        first = task.dataset("train", shard)[0] if mesh.shape["sequence"] > 1 else None
        for remark in program.remarks(first or {}):
            progress.tell(remark)

        def note(message: str) -> None:
            writers.record("event", step, {"message": message})

        def event(message: str) -> None:
            note(message)
            progress.tell(message)

        def log(logged_step: int, metrics: dict[str, Any]) -> str | None:
            """Fetch and write the metrics of a step; says what is wrong with them, if anything."""
            values = {name: float(value) for name, value in jax.device_get(metrics).items()}
            writers.record("train", logged_step, values)
            timed = clock.read(logged_step)
            speed = clock.account()
            if timed is not None:
                step_time, input_wait = timed
                speed |= {"step_time": step_time, "input_wait": input_wait}
                for unit, count in task.units_per_step().items():
                    speed[f"{unit}_per_second"] = count / step_time
                if (flops := task.flops_per_step()) is not None:
                    speed["flops_per_second"] = flops / step_time
            writers.record("speed", logged_step, speed)
            losses = ["loss"] if "loss" in values else [n for n in values if n.endswith("_loss")]
            shown = {name.replace("_", " "): f"{values[name]:.4f}" for name in losses[:2]}
            if timed is not None:
                shown["ms/step"] = f"{1000 * timed[0]:.1f}"
                if timed[1] > NOTABLE_WAIT:
                    shown["waiting for input"] = f"{timed[1]:.0%}"
            progress.update(logged_step, shown)
            return guard.problem(values)

        @clock.spending("evaluation")
        def evaluate(evaluation: Evaluation) -> tuple[dict[str, float], str | None]:
            """The figures of the state, written; and what is wrong with them, if anything."""

            def interrupted() -> bool:
                watchdog.doing(step, "evaluation")
                return bool(stop)

            values = evaluator(state, evaluation, interrupted)
            writers.record(evaluation.name, step, values | {"protocol": evaluation.protocol})
            text = "  ".join(f"{name} {_number(value)}" for name, value in values.items())
            progress.tell(f"step {step}  {evaluation.name}: {text}")
            if figure_guard is None or best_metric not in values:
                return values, None
            return values, figure_guard.problem(values[best_metric])

        @clock.spending("samples")
        def sample() -> None:
            watchdog.doing(step, "samples")
            pieces = list(task.samples(state, sample_key))
            if pieces:
                writers.samples(step, pieces)
                progress.tell(f"step {step}  sample:\n{pieces[0].preview()}\n")

        @clock.spending("saving")
        def settle() -> int | None:
            """Wait for the checkpoint under way; returns the newest step on disk."""
            watchdog.doing(step, "saving")
            try:
                checkpoints.wait()
            except SaveError as error:
                event(str(error))
            return max(checkpoints.steps(), default=None)

        @clock.spending("saving")
        def save() -> None:
            """Start a checkpoint, whatever became of the one before."""
            settle()
            try:
                checkpoints.save(step, state, batches.position, figures or None)
            except SaveError as error:
                event(str(error))

        def diverged(problem: str, *, judged_by_figure: bool = False) -> Result:
            """Leave the checkpoints as they are, and name the one to go back to."""
            good, which = settle(), "the last good checkpoint"
            if judged_by_figure and best_metric is not None:
                best = checkpoints.best(best_metric, config.checkpoint.best_is)
                if best is not None:
                    good, which = best, f"the best checkpoint by {best_metric}"
            where = (
                f"{which} is step {good} ({run.checkpoints / str(good)})"
                if good is not None
                else "there is no checkpoint yet"
            )
            message = (
                f"stopped at step {step}: {problem}; {where}\n"
                f"{config.divergence_advice()} and start in a new --workdir"
            )
            note(message)
            return Result(Outcome.DIVERGED, step, figures, message)

        # ---- what an interrupted run still owes -------------------------------------------
        evaluation = task.evaluation(shard) if config.evaluation_every() else None
        problem: str | None = None
        if evaluation is not None:
            # A batch that does not fit the mesh is better known now than at the first evaluation.
            place(evaluation.batches[0], mesh, task.sequence_dimensions)
            if best_metric is not None and config.divergence_evaluations is not None:
                figure_guard = FigureGuard(
                    best_metric,
                    config.divergence_factor,
                    config.divergence_evaluations,
                    config.checkpoint.best_is,
                )
                kind, name = evaluation.name, best_metric
                for value in first_numbers(lambda: recorded_values(run, kind, name, step)):
                    problem = figure_guard.problem(value)
        if step == 0:
            for baseline in task.baselines():
                writers.record("baseline", 0, baseline)
        else:
            event(f"resumed from step {step}")
            owes_evaluation, owes_samples = False, False
            if evaluation and _due(step, config.evaluation_every(), config.steps):
                owes_evaluation = not recorded(run, evaluation.name, "step", step)
            if _due(step, config.samples_every(), config.steps):
                owes_samples = not has_samples(run, step)
            owes_evaluation, owes_samples = agree(owes_evaluation), agree(owes_samples)
            if evaluation and owes_evaluation:
                try:
                    figures, problem = evaluate(evaluation)
                except Interrupted:
                    message = _stopped(stop, step, config.steps)
                    return Result(Outcome.INTERRUPTED, step, {}, message)
            if problem is not None:
                return diverged(problem, judged_by_figure=True)
            if owes_samples:
                sample()
        if step >= config.steps:
            return Result(Outcome.FINISHED, step, figures, f"all {step} steps are done")

        # ---- the loop: its order makes a resumed run equal to an unbroken one -------------
        pending: tuple[int, dict[str, Any]] | None = None
        owing = False
        profiler = Profiler(config.log.profile_steps, run.folder / "profile", step, clock, event)
        opened.callback(profiler.close)
        progress.start(step, config.steps)
        clock.begin()
        while step < config.steps:
            watchdog.alive(step)
            with clock.waiting(state.step.is_ready):
                batch = next(batches)
            profiler.before(step + 1, state)
            variant = task.variant(step)
            first_call = not program.compiled_before(variant)
            if first_call:
                watchdog.doing(step, "compiling")
            began = time.perf_counter()
            state, metrics = program.step(variant)(state, batch)
            step += 1
            if first_call:
                jax.block_until_ready(state)
                seconds = time.perf_counter() - began
                writers.record("speed", step, {"compile_seconds": seconds})
                clock.restart(step)
                clock.move(seconds, "compilation")
            profiler.after(step, state)

            # Metrics are fetched one step late, while the devices work on the next step.
            if pending is not None:
                problem = log(*pending)
                pending = None
            due_evaluation = evaluation is not None and _due(
                step, config.evaluation_every(), config.steps
            )
            due_samples = _due(step, config.samples_every(), config.steps)
            due_save = _due(step, config.checkpoint.every, config.steps) or (
                due_evaluation and best_metric is not None
            )
            stopping = bool(stop)
            pause = due_evaluation or due_samples or due_save or stopping
            if pause or step % config.log.every == 0:
                pending = (step, metrics)
            if pause and problem is None:
                # What follows keeps or shows the state: first make sure that it is sound.
                problem = log(step, metrics)
                pending = None
            if problem is not None:
                return diverged(problem)
            if not pause:
                continue

            with clock.paused(state):
                figures = {}
                # What a stop leaves undone here, a run that goes on does first.
                owing = due_evaluation or due_samples
                try:
                    if due_evaluation and evaluation is not None and not stopping:
                        figures, problem = evaluate(evaluation)
                        owing = due_samples
                    if problem is not None:
                        return diverged(problem, judged_by_figure=True)
                    if due_samples and not stop:
                        sample()
                        owing = False
                except Interrupted:
                    pass
                # Asked once: a stop that comes later has its turn after the next step.
                stopping = bool(stop)
                # Before the batches move on, so that the saved position fits the state.
                if due_save or stopping:
                    save()
            if stopping:
                break

        # ---- the end --------------------------------------------------------------------------
        last_saved = settle()
        if last_saved != step:
            message = (
                f"step {step} could not be saved; make room, then run the same command again: "
                f"it goes on from step {last_saved or 0}"
            )
            note(message)
            return Result(Outcome.NOT_SAVED, step, figures, message)
        # The first process alone writes a log.
        if reason := first_text(writers.problem() or ""):
            message = f"step {step} is saved, but lines of the log are lost: {reason.lower()}"
            return Result(Outcome.NOT_SAVED, step, figures, message)
        if step < config.steps or (stop and owing):
            message = _stopped(stop, step, config.steps)
            note(message)
            return Result(Outcome.INTERRUPTED, step, figures, message)
        account = clock.account()
        message = (
            f"finished all {step} steps in {account['seconds']:.0f} s "
            f"(goodput {account['goodput']:.0%})"
        )
        note(message)
        return Result(Outcome.FINISHED, step, figures, message)


def _due(step: int, every: int | None, last: int) -> bool:
    """Whether something that happens every so many steps, and at the end, happens now."""
    return every is not None and (step % every == 0 or step == last)


def _number(value: float) -> str:
    """Counts whole, all else with four decimals."""
    return f"{value:.0f}" if value.is_integer() else f"{value:.4f}"


def _stopped(stop: StopRequest, step: int, steps: int) -> str:
    return (
        f"stopped by {stop.signal_name}: saved step {step} of {steps}; "
        "the same command goes on from there"
    )
