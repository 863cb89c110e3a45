"""Notices a run that has gone wrong, before it overwrites what was right."""

import math
from collections.abc import Mapping


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
