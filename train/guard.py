"""Notices a run that has gone wrong, before it overwrites what was right."""

import math
from collections.abc import Mapping

from genjax.run_config import BestIs


class DivergenceGuard:
    """Watches the logged metrics of a run."""

    def __init__(self, factor: float, first: float | None = None) -> None:
        """Allow a loss of up to `factor` times the run's first one, or the first one seen."""
        self._factor = factor
        self._first = first if isinstance(first, int | float) and first > 0 else None

    def problem(self, metrics: Mapping[str, float]) -> str | None:
        """What is wrong with the metrics of a step, or None."""
        for name, value in metrics.items():
            if not math.isfinite(value):
                return f"{name} is {value}"
        loss = metrics.get("loss")
        if loss is not None and loss > 0:
            if self._first is None:
                self._first = loss
            if loss > self._factor * self._first:
                return (
                    f"loss is {loss:.4g}, over {self._factor:g} times the first {self._first:.4g}"
                )
        return None


class FigureGuard:
    """Watches one figure of the evaluations, where no loss tells how well a run does.

    The losses of two networks that train against each other say little: a run is lost when what
    it makes stays far worse than what it once made. "Times worse" has a meaning for positive
    values only, so the best is the best positive one; a value that is not finite is worse than
    any.
    """

    def __init__(self, name: str, factor: float, patience: int, best_is: BestIs) -> None:
        """Allow fewer than `patience` values in a row `factor` times worse than the best."""
        self._name = name
        self._factor = factor
        self._patience = patience
        self._best_is = best_is
        self._best: float | None = None
        self._worse = 0

    def problem(self, value: float) -> str | None:
        """What is wrong after one more evaluation, or None.

        The answer depends on all values so far, so that a run that goes on tells it those before.
        """
        if self._is_worse(value):
            self._worse += 1
        else:
            self._worse = 0
            if value > 0 and (self._best is None or self._better(value, self._best)):
                self._best = value
        if self._worse < self._patience:
            return None
        said = f"{self._name} is {value:.4g}"
        if self._best is not None:
            said += f", over {self._factor:g} times worse than its best {self._best:.4g}"
        if self._patience > 1:
            said += f", as in each of the last {self._patience} evaluations"
        return said

    def _is_worse(self, value: float) -> bool:
        if not math.isfinite(value):
            return True
        if self._best is None:
            return False
        if self._best_is == "lowest":
            return value > self._factor * self._best
        return value < self._best / self._factor

    def _better(self, value: float, other: float) -> bool:
        return value < other if self._best_is == "lowest" else value > other
