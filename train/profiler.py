"""A trace of some of a run's steps, and a table of the operations that they spend their time on."""

import contextlib
import importlib.metadata
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
from jax.profiler import ProfileData

from genjax.errors import UserError
from train.clock import Clock
from train.profile_table import read_operations, sources, summary

TABLE = "top_operations.json"
"""The file of the table, in the profile's folder."""


class Profiler:
    """Traces the steps that `log.profile_steps` asks for, and writes their table.

    In a run of several processes the first traces its own devices: the others do the same work.
    A session that begins in the middle of the steps, or whose first step they hold, leaves out
    its first step, which compiles. A trace that cannot be written is told of, and no more.
    """

    def __init__(
        self,
        steps: tuple[int, int] | None,
        folder: Path,
        begin: int,
        clock: Clock,
        tell: Callable[[str], None],
    ) -> None:
        """Nothing is traced yet.

        Args:
            steps: the first and the last step to trace, counted from 1; None for none.
            folder: where the trace and the table go.
            begin: the steps done when the session begins.
            clock: leaves the time of starting and writing out of the steps' own.
            tell: gets a line when the table is there, or why it is not.

        Raises:
            UserError: profiling would end this process.
        """
        if steps is not None and libtpu_is_loaded():
            _check_libtpu(importlib.metadata.version("libtpu"))
        if jax.process_index() != 0:
            steps = None
        self._steps = None if steps is None else (max(steps[0], begin + 2), steps[1])
        self._folder, self._clock, self._tell = folder, clock, tell
        self._done: list[int] = []
        self._active = False
        self._step = contextlib.ExitStack()
        if self._steps is not None and self._steps[0] > self._steps[1]:
            self._steps = None
            if not (folder / TABLE).exists():
                tell(f"no profile: this session begins at step {begin}, past log.profile_steps")

    def before(self, step: int, state: Any) -> None:
        """Start the trace if `step` is the first of it; call before the step is dispatched."""
        if self._steps is not None and step == self._steps[0]:
            with self._clock.paused(state), self._clock.spending("profiling"):
                self._start()
        if self._active:
            self._step.enter_context(jax.profiler.StepTraceAnnotation("train", step_num=step))

    def after(self, step: int, state: Any) -> None:
        """End the trace if `step` was the last of it; call after the step is dispatched."""
        if not self._active:
            return
        self._step.close()
        self._done.append(step)
        if self._steps is not None and step >= self._steps[1]:
            with self._clock.paused(state):
                self.close()

    def close(self) -> None:
        """End a trace that is under way and write what there is of it."""
        if not self._active:
            return
        self._step.close()
        self._active = False
        with self._clock.spending("profiling"):
            try:
                jax.profiler.stop_trace()
                self._write()
            except (OSError, RuntimeError, ValueError) as error:
                self._tell(f"no profile: the trace cannot be written to {self._folder} ({error})")

    def _start(self) -> None:
        options = jax.profiler.ProfileOptions()
        # Tracing every call of Python slows the steps down, and tells nothing of the devices.
        options.python_tracer_level = 0
        try:
            jax.profiler.start_trace(self._folder, profiler_options=options)
            self._active = True
        except RuntimeError as error:
            self._steps = None
            self._tell(f"no profile: the trace cannot be started ({error})")

    def _write(self) -> None:
        traces = sorted(self._folder.glob("plugins/profile/*/*.xplane.pb"))
        if not traces or not self._done:
            self._tell("no profile: no step was traced")
            return
        trace = traces[-1]
        operations = read_operations(ProfileData.from_file(str(trace)))
        table = {
            "steps": [self._done[0], self._done[-1]],
            "trace": str(trace.relative_to(self._folder)),
            **summary(operations, sources({operation.program for operation in operations})),
        }
        part = self._folder / f"{TABLE}.part"
        part.write_text(json.dumps(table, indent=1) + "\n", encoding="utf-8")
        part.replace(self._folder / TABLE)
        self._tell(
            f"profiled steps {self._done[0]} to {self._done[-1]}: {self._folder / TABLE}, "
            "and the report shows it"
        )


def libtpu_is_loaded() -> bool:
    """Whether the library is in this process' memory, wanted or not; it exists for Linux alone."""
    mapped = Path("/proc/self/maps")
    return mapped.is_file() and "/libtpu.so" in mapped.read_text()


def _check_libtpu(installed: str) -> None:
    """Check that the profiler of a libtpu that is loaded fits this JAX: else it crashes at once.

    Another version than JAX's own is what rehearsing installs, on machines without a TPU too.

    Raises:
        UserError: it is another version than the one that JAX asks for.
    """
    asked = "".join(importlib.metadata.requires("jax") or ())
    wanted = re.search(r"libtpu==([\d.]+)", asked)
    if wanted is not None and not f"{installed}.".startswith(f"{wanted[1].rstrip('.')}."):
        raise UserError(
            f"log.profile_steps: the profiler of libtpu {installed} crashes with this JAX, which "
            f"comes with libtpu {wanted[1].rstrip('.')}; without a TPU, set "
            f"JAX_PLATFORMS={jax.default_backend()}, which leaves it out; with one, install "
            "jax[tpu] in an environment without genjax[rehearse]"
        )
