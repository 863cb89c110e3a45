"""The one interface between a model family and everything else.

A family (language models, adversarial image models, frame prediction) is a `Task`: pure
functions over pytrees. The training loop, the checkpoints and the tools know nothing more
about it. A model never knows the mesh, and the loop never knows a model.
"""

import abc
import dataclasses
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import grain
import jax
import numpy as np
from jaxtyping import Array, Key

from genjax.config import Config

Tree = Any
"""A pytree of arrays."""

Batch = Mapping[str, Any]
"""Arrays by name; the leading axis of each counts the examples."""

PartitionRules = Sequence[tuple[str, tuple[str | tuple[str, ...] | None, ...]]]
"""Pairs of a regular expression and mesh axes.

The expression is searched in the "/"-joined path of an array in the train state; the first match
decides. The axes belong to the array's trailing dimensions (so that one rule serves a layer and a
stack of layers), one entry a dimension: an axis name, several names, or None.
"""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """Everything that a training step changes, the same for every family.

    Attributes:
        step: number of training steps done, an int32 scalar.
        params: parameters, a dict by network, such as `{"language_model": ...}`.
        opt_state: optimizer states by the same names.
        ema: exponential moving averages of parameters, by the same names, or empty.
        carry: what flows from batch to batch (recurrent state, controllers), or empty.
        key: the run's random key, a typed scalar key. It never changes: a step folds in `step`.
    """

    # Not typed as arrays: the same tree holds shapes and shardings.
    step: Any
    params: dict[str, Tree]
    opt_state: dict[str, Tree]
    ema: dict[str, Tree]
    carry: dict[str, Tree]
    key: Any

    def step_key(self) -> Key[Array, ""]:
        """The random key of the coming step, a function of the run's key and the step alone."""
        return jax.random.fold_in(self.key, self.step)

    def evaluation_params(self) -> dict[str, Tree]:
        """The parameters to evaluate and sample with: the average where there is one."""
        return {name: self.ema.get(name, params) for name, params in self.params.items()}


@dataclasses.dataclass(frozen=True)
class Shard:
    """Which part of every global batch this process reads: rows of part `index` of `count`."""

    index: int = 0
    count: int = 1


@runtime_checkable
class Batches(Protocol):
    """A finite sequence of batches of one shape, read by number."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Batch: ...


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """One deterministic pass over a split.

    Attributes:
        name: names the figures, such as "validation".
        protocol: how the figures come about, printed beside them.
        batches: the batches, each this process' rows.
        carry: what takes the place of `TrainState.carry` at the start, such as a recurrent state
            of zeros, or `{}` for none; None keeps the state's own, where a model needs what
            training gathered (batch statistics).
        constants: arrays that the evaluation needs beside the state, such as the parameters of a
            judge: they join the carry under their names, and are not compiled into the program.
    """

    name: str
    protocol: str
    batches: Batches
    carry: dict[str, Tree] | None = None
    constants: dict[str, Tree] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sample(abc.ABC):
    """Something generated, or a piece of it: samples may come in several pieces, in order.

    Attributes:
        index: which sample of the request the piece belongs to.
        done: whether the sample ends here.
        reason: why it ended, when done, such as "length" or "stop_string".
    """

    index: int
    done: bool = True
    reason: str | None = None

    @abc.abstractmethod
    def preview(self) -> str:
        """What a terminal shows of it."""

    @abc.abstractmethod
    def save(self, folder: Path, within: str = "") -> dict[str, Any]:
        """Write its files, if it has any, and tell what a log says of it.

        Args:
            folder: what the paths in the log are relative to.
            within: the sub-folder of it for the files, made if it is not there.

        Returns:
            The fields of its log line.

        Raises:
            OSError: a file could not be written; nothing is left of it.
        """


@dataclasses.dataclass(frozen=True, kw_only=True)
class TextSample(Sample):
    """A piece of generated text."""

    text: str

    def preview(self) -> str:
        """The text itself."""
        return self.text

    def save(self, folder: Path, within: str = "") -> dict[str, Any]:
        """The text needs no file."""
        del folder, within
        return {"text": self.text}


class Task(abc.ABC):
    """A model family as pure functions. Subclass it, and the house trains it."""

    partition_rules: PartitionRules = ()
    """How the arrays of the train state shard; what no rule names falls back to FSDP."""

    sequence_dimensions: Mapping[str, int] | None = None
    """Which dimension of a batch's arrays the mesh's `sequence` axis splits, by the arrays' names;
    those without a name here are not split. None splits the second dimension of all: time, or the
    height of images."""

    def check_mesh(self, sizes: Mapping[str, int]) -> None:
        """Refuse a mesh over which the family cannot split its work.

        Args:
            sizes: how many devices along each axis, by its name.

        Raises:
            UserError: devices would repeat each other's work; says which field to change.
        """
        del sizes

    @abc.abstractmethod
    def init(self, key: Key[Array, ""]) -> TrainState:
        """The state before the first step; `jax.eval_shape(task.init, key)` costs nothing."""

    @abc.abstractmethod
    def train_step(
        self, state: TrainState, batch: Batch, variant: Hashable = None
    ) -> tuple[TrainState, dict[str, Array]]:
        """One step of every network, optimizer, average and controller of the family.

        Args:
            state: the state, whose buffers are donated.
            batch: the global batch.
            variant: what `variant(step)` said; static, so that each value compiles apart.

        Returns:
            The next state (`step` one higher) and scalar metrics. A metric that is not finite
            stops the run, so gradients' norms belong here. The one named "loss" is what the
            divergence guard watches; networks against each other have none, and are judged by a
            figure of their evaluations (`RunConfig.divergence_evaluations`).
        """

    @abc.abstractmethod
    def dataset(self, split: str, shard: Shard) -> grain.MapDataset:
        """Training batches as a pure function of the batch index, as if endless.

        Random access by batch makes the position one integer, which any number of processes can
        resume from.

        Raises:
            UserError: the data is missing or does not fit the config.
        """

    def variant(self, step: int) -> Hashable:
        """Which compiled variant of `train_step` runs at `step` (lazy regularisers)."""
        del step
        return None

    def eval_step(self, state: TrainState, batch: Batch) -> tuple[dict[str, Tree], Tree]:
        """Sums and counts over a batch, so that any split of the data adds up to the same figure.

        Returns:
            The carry for the next batch, and a pytree of sums.
        """
        raise NotImplementedError(f"{type(self).__name__} has no evaluation")

    def evaluation(self, shard: Shard) -> Evaluation | None:
        """The evaluation that accompanies training, or None."""
        del shard
        return None

    def combine(self, totals: Tree, sums: Tree) -> Tree:
        """Add the sums of a batch to those before, in float64 numpy.

        A float32 running sum would lose digits over a long split. A task whose figures need every
        feature may concatenate instead.

        Args:
            totals: of the batches so far; None before the first.
            sums: of one batch, on the host.
        """
        wide = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), sums)
        return wide if totals is None else jax.tree.map(np.add, totals, wide)

    def figures(self, sums: Tree) -> dict[str, float]:
        """Figures (such as perplexity) from the sums of a whole evaluation, in float64 numpy."""
        raise NotImplementedError(f"{type(self).__name__} has no evaluation")

    def baselines(self) -> list[dict[str, Any]]:
        """Figures of trivial models on the evaluation's data, each with its "name"."""
        return []

    def generate(self, state: TrainState, key: Key[Array, ""], request: Config) -> Iterator[Sample]:
        """Samples for a request, in pieces as they come."""
        raise NotImplementedError(f"{type(self).__name__} does not generate")

    def samples(self, state: TrainState, key: Key[Array, ""]) -> Iterable[Sample]:
        """What the loop shows while it trains, or nothing; the key is the same at every step."""
        del state, key
        return ()

    def save_assets(self, folder: Path) -> None:
        """Write what the run needs besides arrays (a tokenizer), to be found by `make_task`."""
        del folder

    def units_per_step(self) -> dict[str, int]:
        """What a step works through, such as `{"tokens": 768}`, for throughput."""
        return {}

    def flops_per_step(self) -> float | None:
        """Analytic floating-point operations of a training step (2 a multiply-add), or None."""
        return None
