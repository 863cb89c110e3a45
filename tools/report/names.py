"""How metrics are called on the page, and which way each gets better."""

import math
from dataclasses import dataclass
from typing import Literal

Direction = Literal["lower", "higher"]


@dataclass(frozen=True)
class Metric:
    """What the page knows about a metric beyond its name."""

    title: str
    note: str = ""
    """Unit or meaning, in a few words."""
    better: Direction | None = None
    smooth: bool = True
    """Whether its curve is smoothed and, where values span decades, drawn on a log axis."""
    drawn: bool = True
    """Whether it has a curve at all: a count or a single moment has none."""


METRICS = {
    "loss": Metric("Loss", "nats per token for language models", "lower"),
    "nats_per_token": Metric("Nats per token", "cross-entropy", "lower"),
    "perplexity": Metric("Perplexity", "per token", "lower"),
    "bits_per_byte": Metric("Bits per byte", "", "lower"),
    "bits_per_character": Metric("Bits per character", "", "lower"),
    "accuracy": Metric("Accuracy", "share of 1", "higher"),
    "grad_norm": Metric("Gradient norm", "before clipping"),
    "learning_rate": Metric("Learning rate", smooth=False),
    "tokens_per_second": Metric("Tokens per second", "", "higher"),
    "flops_per_second": Metric("FLOP/s", "analytic FLOPs of the model", "higher"),
    "tokens": Metric("Tokens", "scored", drawn=False),
    "compile_seconds": Metric("Compile time", "seconds", drawn=False),
    "step_time": Metric("Step time", "seconds", "lower"),
    "mfu": Metric("Model FLOPs utilisation", "share of peak", "higher"),
}


def metric(name: str) -> Metric:
    """The entry of a metric; an unknown name gets a title made from it.

    An unknown name that ends in "loss" is taken to get better as it falls; of other unknown
    names no direction is claimed.
    """
    if name in METRICS:
        return METRICS[name]
    title = name.replace("_", " ").replace("/", ": ").strip() or name
    better: Direction | None = "lower" if name.endswith("loss") else None
    if name.endswith("_per_second"):
        better = "higher"
    return Metric(title[:1].upper() + title[1:], better=better)


def primary(names: list[str]) -> str | None:
    """The metric that ranks runs: the first of these whose better direction is known."""
    known = [name for name in METRICS if name in names and METRICS[name].better]
    guessed = [name for name in names if name not in METRICS and metric(name).better]
    return next(iter(known + guessed), None)


def figure(value: float, digits: int = 4) -> str:
    """A number as people read it, with `digits` significant figures and thousands apart.

    There is no exponent between 0.0001 and 10 million.
    """
    if not math.isfinite(value):
        return "not finite"
    size = abs(value)
    if value == int(value) and size < 1e15:
        return f"{int(value):,}"
    if size >= 1e7 or size < 1e-4:
        mantissa, exponent = f"{value:.{digits - 1}e}".split("e")
        return f"{mantissa.rstrip('0').rstrip('.')}e{int(exponent)}"
    decimals = max(0, digits - 1 - math.floor(math.log10(size)))
    return f"{value:,.{decimals}f}"


def duration(seconds: float) -> str:
    """Seconds as days, hours, minutes or seconds, two units at most."""
    if not math.isfinite(seconds):
        return "not known"
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    if days:
        return f"{days} d {hours} h"
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"
