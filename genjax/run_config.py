"""What every run's config has in common; a task's config class adds its own tables."""

from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pydantic import Field, field_validator, model_validator

from genjax.config import Config
from genjax.errors import UserError
from genjax.parallel.mesh import MeshConfig
from genjax.parallel.platform import PlatformConfig

if TYPE_CHECKING:
    from genjax.task import Task

BestIs = Literal["lowest", "highest"]
"""Which value of a figure is the best."""


class CheckpointConfig(Config):
    """When checkpoints are written and which are kept."""

    every: int = Field(default=500, ge=1)
    """Save each time this many steps are done; the last step is always saved."""
    keep_last: int = Field(default=2, ge=1)
    """How many of the newest checkpoints to keep."""
    keep_every: int | None = Field(default=None, ge=1)
    """Keep for good each checkpoint whose step is a multiple of this."""
    best_metric: str | None = None
    """Also keep the checkpoint with the best value of this figure of the evaluation."""
    best_is: BestIs = "lowest"
    """Which value of best_metric is the best: "lowest" for a distance, "highest" for a score."""

    def without_best(self) -> "CheckpointConfig":
        """The same where no figures are measured that a best checkpoint could have."""
        return self.model_copy(update={"best_metric": None})


class EvaluationTiming(Config):
    """When the evaluation that accompanies training runs."""

    every: int = Field(default=500, ge=1)
    """Evaluate each time this many steps are done, and after the last step."""


class SampleTiming(Config):
    """When samples are generated during training."""

    every: int = Field(default=500, ge=1)
    """Generate samples each time this many steps are done, and after the last step."""


class LogConfig(Config):
    """What is logged where."""

    every: int = Field(default=10, ge=1)
    """Log training metrics each time this many steps are done."""
    profile_steps: tuple[int, int] | None = None
    """First and last step to trace with the profiler, counted from 1, such as [10, 20]: the trace
    and a table of the operations that take longest go to the run's `profile/`, and the report
    shows the table. Choose steps without evaluation and samples; step 1 compiles."""
    progress: bool = True
    """Show a progress bar with speed, remaining time and loss."""
    tensorboard: bool = False
    """Also write TensorBoard event files."""
    wandb_project: str | None = None
    """Also log to this Weights & Biases project (needs the `wandb` extra)."""

    @field_validator("profile_steps")
    @classmethod
    def _steps_to_profile(cls, steps: tuple[int, int] | None) -> tuple[int, int] | None:
        if steps is not None and not 2 <= steps[0] < steps[1]:
            raise ValueError(
                f"[{steps[0]}, {steps[1]}]: give a first step of at least 2 (step 1 compiles) and "
                "a last one after it, such as [10, 20]"
            )
        return steps


class FaultsConfig(Config):
    """When a run that cannot go on ends itself."""

    hang_minutes: float | None = Field(default=60.0, gt=0.0)
    """End when no step was done in so many minutes, with the stacks of all threads. Compiling,
    evaluating, sampling and reading or writing a checkpoint may take four times as long, the
    evaluation for each of its batches. "none" never ends it."""
    lost_seconds: float = Field(default=30.0, ge=2.0)
    """Of several processes: end when one has not been heard of for so many seconds."""


class RunConfig(Config):
    """A run of one task. Subclasses add `kind: Literal[..]`, data, model and optimizer."""

    seed: int = Field(default=0, ge=0, lt=2**32)
    """Seed of initialisation, data order and dropout; a run is a function of its config."""
    steps: int = Field(default=1000, ge=1)
    """Number of training steps."""
    divergence_factor: float = Field(default=3.0, gt=1.0)
    """Stop when the training loss exceeds this many times the first logged loss."""
    divergence_evaluations: int | None = Field(default=None, ge=1)
    """Also stop when the figure of checkpoint.best_metric has been more than divergence_factor
    times worse than its best in this many evaluations in a row."""
    checkpoint: CheckpointConfig = CheckpointConfig()
    """When checkpoints are written and which are kept."""
    log: LogConfig = LogConfig()
    """What is logged where."""
    mesh: MeshConfig = MeshConfig()
    """How many devices along each axis."""
    platform: PlatformConfig = PlatformConfig()
    """How JAX is set up."""
    faults: FaultsConfig = FaultsConfig()
    """When a run that cannot go on ends itself."""

    @model_validator(mode="after")
    def _profiles_steps_that_it_makes(self) -> "RunConfig":
        last = self.log.profile_steps and self.log.profile_steps[1]
        if last is not None and last > self.steps:
            raise ValueError(
                f"log.profile_steps ends at step {last}, and the run at step {self.steps}: "
                "profile earlier steps"
            )
        return self

    @model_validator(mode="after")
    def _a_figure_to_judge_by(self) -> "RunConfig":
        if self.divergence_evaluations is None:
            return self
        if self.checkpoint.best_metric is None:
            raise ValueError(
                "divergence_evaluations judges by the figure of checkpoint.best_metric, which is "
                "not set: name a figure there, or leave divergence_evaluations out"
            )
        if self.evaluation_every() is None:
            raise ValueError(
                "divergence_evaluations judges by evaluations, and this config asks for none"
            )
        return self

    def make_task(self, assets: Path | None = None) -> "Task":
        """The task of this config.

        Args:
            assets: folder with what `Task.save_assets` wrote, for a run that exists; None for a
                new run, whose assets are made from its data.
        """
        raise NotImplementedError(f"{type(self).__name__} makes no task")

    def rehearsal_task(self) -> "Task":
        """The task without its data: its shapes and its step, and batches that hold nothing.

        `dataset("train", Shard())[0]` has the shapes of a global batch, and costs little.

        Raises:
            UserError: the config alone does not tell a shape.
        """
        raise NotImplementedError(f"{type(self).__name__} cannot be rehearsed without its data")

    def generation_schema(self) -> type[Config]:
        """The flat config of a request to `Task.generate`."""
        raise NotImplementedError(f"{type(self).__name__} does not generate")

    def divergence_advice(self) -> str:
        """What to change after a divergence: the start of a sentence that names config keys.

        Families whose config has other keys give their own.
        """
        return "lower optimizer.learning_rate or optimizer.clip_norm"

    def check_best_metric(self, figures: Collection[str]) -> None:
        """Check that an evaluation has the figure of `checkpoint.best_metric`.

        Args:
            figures: the names of those that it has.

        Raises:
            UserError: it has not.
        """
        best = self.checkpoint.best_metric
        if best is not None and best not in figures:
            raise UserError(
                f"checkpoint.best_metric: no figure {best!r}; one of {', '.join(figures)}"
            )

    def evaluation_every(self) -> int | None:
        """Steps between evaluations during training, or None for no evaluation."""
        return None

    def samples_every(self) -> int | None:
        """Steps between samples during training, or None for none."""
        return None


RESUMABLE_CHANGES = ("checkpoint", "log", "mesh", "platform", "faults")
"""Tables that may differ when a run goes on: they say how it runs, not what it computes."""
