"""How metrics are called on the page, and which way each gets better."""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from tools.runs import Run

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
    "goodput": Metric("Goodput", "share of the wall time so far in steps kept", "higher"),
    "input_wait": Metric("Input wait", "share of the steps' time", "lower"),
    "discriminator_loss": Metric("Discriminator loss"),
    "generator_loss": Metric("Generator loss"),
    "real_sign": Metric("Sign on real images", "E[sign D(real)]; near 1 means D overfits"),
    "fake_sign": Metric("Sign on generated images", "E[sign D(generated)]"),
    "real_score": Metric("Score of real images", "mean of D(real)"),
    "fake_score": Metric("Score of generated images", "mean of D(generated)"),
    "r1_penalty": Metric("R1 penalty", "squared gradient of D at real images"),
    "r2_penalty": Metric("R2 penalty", "squared gradient of D at generated images"),
    "path_length": Metric("Path length", "of the generator's Jacobian"),
    "augmentation_probability": Metric("Augmentation probability", smooth=False),
    "discriminator_grad_norm": Metric("Discriminator gradient norm", "before clipping"),
    "generator_grad_norm": Metric("Generator gradient norm", "before clipping"),
    "discriminator_learning_rate": Metric("Discriminator learning rate", smooth=False),
    "generator_learning_rate": Metric("Generator learning rate", smooth=False),
    "images": Metric("Images", "counted", drawn=False),
    "images_per_second": Metric("Images per second", "", "higher"),
}

FIGURES = {
    "fid": Metric("FID", "Frechet distance of features", "lower"),
    "kid": Metric("KID", "kernel distance of features", "lower"),
    "kl": Metric("KL divergence", "of the modes, in nats", "lower"),
    "modes": Metric("Modes", "found", "higher"),
    "high_quality_share": Metric("High-quality share", "of the samples", "higher"),
    "conditioning_accuracy": Metric("Conditioning accuracy", "share of 1", "higher"),
    "inception_score": Metric("Inception Score", "", "higher"),
    "precision": Metric("Precision", "share of samples near real ones", "higher"),
    "recall": Metric("Recall", "share of real ones near samples", "higher"),
    "density": Metric("Density", "", "higher"),
    "coverage": Metric("Coverage", "share of real ones with a sample near", "higher"),
    "path_length_in_w": Metric("Path length in W", "perceptual", "lower"),
    "path_length_in_z": Metric("Path length in Z", "perceptual", "lower"),
}
"""Figures of images, in the order in which they rank runs.

Their names go on with what they stand on, such as the network whose features they compare:
"fid_digits" is the FID over the features of "digits".
"""

_FIGURE = re.compile(rf"({'|'.join(sorted(FIGURES, key=len, reverse=True))})(?![a-zA-Z])(.*)")


def is_wall_time(name: str) -> bool:
    """Whether it is wall time, or a part of it: summed over the run, and in a table of its own."""
    return name == "seconds" or name.startswith("seconds_")


def metric(name: str) -> Metric:
    """The entry of a metric; an unknown name gets a title made from it.

    An unknown name that ends in "loss" is taken to get better as it falls; of other unknown
    names no direction is claimed.
    """
    if name in METRICS:
        return METRICS[name]
    if is_wall_time(name):
        return Metric(name.replace("_", " ").capitalize(), drawn=False)
    if (found := _FIGURE.fullmatch(name)) is not None:
        known, rest = FIGURES[found[1]], found[2].strip("_/ ").replace("_", " ")
        return replace(known, title=f"{known.title} ({rest})") if rest else known
    title = name.replace("_", " ").replace("/", ": ").strip() or name
    better: Direction | None = "lower" if name.endswith("loss") else None
    if name.endswith("_per_second"):
        better = "higher"
    return Metric(title[:1].upper() + title[1:], better=better)


def primary(names: list[str]) -> str | None:
    """The metric that ranks runs: the first of these whose better direction is known."""
    known = [name for name in METRICS if name in names and METRICS[name].better]
    others = {name: _FIGURE.fullmatch(name) for name in names if name not in METRICS}
    figures = [
        name for figure in FIGURES for name, found in others.items() if found and found[1] == figure
    ]
    guessed = [name for name in others if metric(name).better]
    return next(iter(known + figures + guessed), None)


@dataclass(frozen=True)
class Leader:
    """The metric that ranks runs."""

    name: str
    better: Direction


def leader(runs: Sequence[Run], names: Sequence[str]) -> Leader | None:
    """What ranks runs, of these names: the figure that they kept their best checkpoint by.

    Where they name none, or not the same, it is `primary`.
    """
    tables = [run.config.get("checkpoint") for run in runs]
    wanted = {
        (str(table.get("best_metric")), str(table.get("best_is", "lowest")))
        for table in tables
        if isinstance(table, dict)
    }
    if len(wanted) == 1:
        ((name, best_is),) = wanted
        if name in names:
            return Leader(name, "higher" if best_is == "highest" else "lower")
    name = primary(list(names))
    better = metric(name).better if name is not None else None
    return Leader(name, better) if name is not None and better is not None else None


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
