"""From the scalars of runs to charts: grouping, smoothing, thinning, the range to show."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np

from tools.report.names import leader, metric
from tools.runs import Run, Series

Role = Literal["raw", "line", "points"]

LIMIT = 1500
"""Points of a curve on the page, at most."""
HALF_LIFE = 0.02
"""Half-life of the smoothing, as a share of the steps of the longest run."""
EARLY_HALF_LIFE = 0.05
"""Its upper bound, as a share of the steps so far: the first fall of a loss is not dragged out."""
DECADES = 50.0
"""A chart has a log axis where its values are positive and span more than this ratio."""


@dataclass(frozen=True)
class Curve:
    """One line of a chart."""

    label: str
    colour: int
    """Position in the palette; the page cycles through it."""
    run: int
    role: Role
    """"raw" is drawn faint, "points" with a dot at every value."""
    series: Series


@dataclass(frozen=True)
class Level:
    """A horizontal line: a baseline."""

    label: str
    value: float


@dataclass(frozen=True)
class Chart:
    """One chart, with its range already chosen."""

    title: str
    note: str
    curves: list[Curve]
    levels: list[Level] = field(default_factory=list)
    large: bool = False
    last_step: int = 1
    low: float = 0.0
    high: float = 1.0
    log: bool = False
    remarks: list[str] = field(default_factory=list)
    """What the picture cannot show: values beyond its range or not finite."""


@dataclass(frozen=True)
class Group:
    """Charts under one heading."""

    title: str
    charts: list[Chart]


def smoothed(series: Series, half_life: float) -> Series:
    """Exponential moving average over steps, so that uneven spacing counts as it should.

    A value's weight halves with every `half_life` steps of age, or with every
    `EARLY_HALF_LIFE * step` while that is shorter. Weights are normalised, which leaves the first
    values unbiased. Values that are not finite stay as they are and are left out
    of the average.
    """
    result = np.full(series.values.shape, np.nan)
    total = weight = 0.0
    last = 0
    for index, (step, value) in enumerate(
        zip(series.steps.tolist(), series.values.tolist(), strict=True)
    ):
        if not math.isfinite(value):
            continue
        age = min(half_life, EARLY_HALF_LIFE * step)
        decay = 0.5 ** ((step - last) / age) if age > 0 else 0.0
        total, weight, last = decay * total + value, decay * weight + 1.0, step
        result[index] = total / weight
    return Series(series.steps, result)


def thinned(series: Series, limit: int = LIMIT) -> Series:
    """At most `limit` points of a curve: of each stretch its lowest and its highest.

    Spikes survive, which a plain stride would lose; of a stretch with a value that is not finite,
    one such value stays, so that the gap in the line does.
    """
    count = len(series.steps)
    if count <= limit:
        return series
    keep: set[int] = {0, count - 1}
    for chunk in np.array_split(np.arange(count), max(1, (limit - 2) // 3)):
        values = series.values[chunk]
        finite = np.isfinite(values)
        if not finite.all():
            keep.add(int(chunk[np.argmin(finite)]))
        if finite.any():
            keep.add(int(chunk[np.argmin(np.where(finite, values, np.inf))]))
            keep.add(int(chunk[np.argmax(np.where(finite, values, -np.inf))]))
    index = np.asarray(sorted(keep))
    return Series(series.steps[index], series.values[index])


def framed(chart: Chart, *, allow_log: bool) -> Chart:
    """The chart with its vertical range, its log axis if it needs one, and its remarks.

    The range holds every value, unless a few stand so far out that they would flatten the rest:
    then it holds the 1st to the 99th percentile with a margin, and a remark counts what is beyond.
    Baselines widen the range, the nearest first, as long as it stays within twice the curves' own
    (or a quarter of their size, where they hardly move).
    """
    drawn_twice = {curve.run for curve in chart.curves if curve.role == "raw"}
    measured = [
        curve.series.values
        for curve in chart.curves
        if curve.role != "line" or curve.run not in drawn_twice
    ]
    everything = np.concatenate(measured or [np.zeros(0)])
    values = everything[np.isfinite(everything)]
    remarks = []
    missing = len(everything) - len(values)
    if missing:
        remarks.append(f"{missing:,} value{'s' if missing > 1 else ''} not finite")
    if not len(values):
        return replace(chart, remarks=remarks)
    bottom, top = np.percentile(values, [1, 99])
    log = bool(allow_log and values.min() > 0 and top > DECADES * bottom)
    shape = np.log10 if log else np.asarray
    data = shape(values)
    inner = np.percentile(data, [1, 99])
    span = float(inner[1] - inner[0])
    low, high = float(data.min()), float(data.max())
    if span > 0:
        low = low if inner[0] - low <= 3 * span else float(inner[0]) - 0.1 * span
        high = high if high - inner[1] <= 3 * span else float(inner[1]) + 0.1 * span
    middle = 0.5 * (low + high)
    own = max(high - low, 0.0 if log else 0.25 * abs(middle), 1e-12)
    placed = [
        (level, float(shape(np.float64(level.value))))
        for level in chart.levels
        if math.isfinite(level.value) and (level.value > 0 or not log)
    ]
    for level, value in sorted(placed, key=lambda pair: abs(pair[1] - middle)):
        wide = max(high, value) - min(low, value)
        if wide <= 2 * own:
            low, high = min(low, value), max(high, value)
        elif chart.large:
            side = "above" if value > high else "below"
            remarks.append(f"{level.label} ({level.value:.4g}) is {side} the plot")
    beyond = int(((data < low) | (data > high)).sum())
    if beyond:
        remarks.append(f"{beyond:,} value{'s' if beyond > 1 else ''} beyond the plot")
    margin = 0.05 * (high - low) or 0.05 * abs(high) or 0.5
    low, high = low - margin, high + margin
    if log:
        low, high = 10**low, 10**high
    return replace(chart, low=low, high=high, log=log, remarks=remarks)


def levels(runs: list[Run], name: str) -> list[Level]:
    """The baselines of a metric, over all runs; one whose figure differs appears once a figure."""
    found: dict[tuple[str, str], Level] = {}
    for run in runs:
        for title, figures in run.baselines().items():
            value = figures.get(name, math.nan)
            if math.isfinite(value):
                found.setdefault((title, f"{value:.4g}"), Level(title, value))
    return list(found.values())


def groups(runs: list[Run], labels: list[str]) -> list[Group]:
    """Every scalar that the runs have logged, as charts under headings.

    What tells most comes first and large: the loss (training and validation in one chart for one
    run, in two for several), or the losses of two networks and the figure that ranks them. Then
    validation, training and speed, and every other kind of line.
    """
    last_step = max((record["step"] for run in runs for record in run.metrics), default=1) or 1
    single = len(runs) == 1
    kinds = list(dict.fromkeys(kind for run in runs for kind in run.kinds()))
    found = {
        kind: [run.series(kind) for run in runs]
        for kind in kinds
        if kind not in ("event", "baseline")
    }

    def curves(kind: str, name: str, colour: int | None = None) -> list[Curve]:
        made: list[Curve] = []
        for index, (label, series) in enumerate(
            zip(labels, found.get(kind, [{}] * len(runs)), strict=True)
        ):
            if name not in series:
                continue
            shade = index if colour is None else colour
            label = metric(name).title if single else label
            raw = series[name]
            if kind == "validation":
                made.append(Curve(label, shade, index, "points", raw))
            elif not metric(name).smooth:
                made.append(Curve(label, shade, index, "line", raw))
            else:
                smooth = smoothed(raw, HALF_LIFE * last_step)
                made.append(Curve(label, shade, index, "raw", raw))
                made.append(Curve(label, shade, index, "line", smooth))
        order = {"raw": 0, "line": 1, "points": 2}
        return sorted(made, key=lambda curve: order[curve.role])

    def chart(kind: str, name: str) -> Chart:
        known = metric(name)
        marks = levels(runs, name) if kind == "validation" else []
        made = curves(kind, name, int(kind == "validation") if single else None)
        bare = Chart(known.title, known.note, made, marks, last_step=last_step)
        return framed(bare, allow_log=known.smooth)

    shown: set[tuple[str, str]] = set()
    heads = _heads(runs, single, found, curves, shown)
    large = [
        framed(replace(head, large=True, last_step=last_step), allow_log=True)
        for head in heads
        if head.curves
    ]
    result = [Group("Headline", large)] if large else []
    titles = {"validation": "Validation", "train": "Training", "speed": "Speed"}
    for kind in [*titles, *(kind for kind in found if kind not in titles)]:
        names = list(dict.fromkeys(name for series in found.get(kind, []) for name in series))
        names.sort(key=lambda name: not name.endswith("loss"))
        charts = [
            chart(kind, name) for name in names if (kind, name) not in shown and metric(name).drawn
        ]
        if charts:
            result.append(Group(titles.get(kind, kind.replace("_", " ").capitalize()), charts))
    return result


def _heads(
    runs: list[Run],
    single: bool,
    found: dict[str, list[dict[str, Series]]],
    curves: Callable[[str, str, int | None], list[Curve]],
    shown: set[tuple[str, str]],
) -> list[Chart]:
    """The charts that tell most, without their ranges; what they show is added to `shown`."""

    def chart(title: str, note: str, made: list[Curve], name: str = "") -> Chart:
        return Chart(title, note, made, levels(runs, name) if name else [])

    heads = []
    figures = list(dict.fromkeys(name for series in found.get("validation", []) for name in series))
    training, nats = curves("train", "loss", 0), curves("validation", "nats_per_token", 1)
    if training or nats:
        shown |= {("train", "loss"), ("validation", "nats_per_token")}
        note = "nats per token" if nats or levels(runs, "nats_per_token") else ""
        if single:
            both = [replace(curve, label="Training") for curve in training]
            both += [replace(curve, label="Validation") for curve in nats]
            heads.append(chart("Loss", note, both, "nats_per_token"))
        else:
            for title, made in (
                ("Training loss", curves("train", "loss", None)),
                ("Validation loss", curves("validation", "nats_per_token", None)),
            ):
                heads.append(chart(title, note, made, "nats_per_token"))
    # Two networks against each other: neither loss tells how well they do, both that they go on.
    opponents = ("discriminator_loss", "generator_loss")
    shown |= {("train", name) for name in opponents}
    if single:
        both = [curve for i, name in enumerate(opponents) for curve in curves("train", name, i)]
        heads.append(chart("Losses of the networks", "", both))
    else:
        heads += [chart(metric(name).title, "", curves("train", name, None)) for name in opponents]
    main = leader(runs, figures)
    if main is not None and "nats_per_token" not in figures:
        shown.add(("validation", main.name))
        made = curves("validation", main.name, 2 if single else None)
        known = metric(main.name)
        heads.append(chart(known.title, known.note, made, main.name))
    return heads
