"""A chart as HTML: the curves as a stretched inline SVG, all text as HTML above it.

Text beside the picture instead of in it keeps its size at every width of the window. The
picture is complete as it stands; `page.js` only adds the values under the pointer.
"""

import math

import numpy as np

from tools.report.curves import Chart, Curve, thinned
from tools.report.html import attribute, text
from tools.report.names import figure

WIDTH = 1000.0
"""Width of the SVG's own coordinates; the page stretches them to the width there is."""
HEIGHTS = {True: 360.0, False: 168.0}
"""Height in pixels, by `Chart.large`. It is never stretched."""
COLOURS, DASHES = 6, 3
"""6 colours and 3 kinds of line, told apart by colour-blind readers: 18 runs."""
DOTS = 80
"""A curve of measured points shows a dot at each up to this number."""
LABEL_HEIGHT = 15.0
FAR = 1e5
"""Coordinates end here, out of sight: browsers lose precision at very large ones."""


def ticks(low: float, high: float, count: int, *, log: bool = False) -> list[float]:
    """Round positions within a range, about `count` of them; powers of ten on a log axis."""
    if log:
        first, last = math.ceil(math.log10(low)), math.floor(math.log10(high))
        stride = max(1, math.ceil((last - first + 1) / count))
        powers = [10.0**power for power in range(first, last + 1, stride)]
        if len(powers) >= 3:
            return powers
        steps = (1, 2, 5) if last - first >= 1 else (1, 1.5, 2, 3, 5, 7)
        every = [factor * 10.0**power for power in range(first - 1, last + 1) for factor in steps]
        found = [value for value in every if low <= value <= high]
        return found if len(found) > 1 else ticks(low, high, count)
    if not high > low:
        return [low]
    rough = (high - low) / count
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= rough)
    return [
        round(index * step, 12)
        for index in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)
    ]


def tick_label(value: float) -> str:
    """A tick in as few characters as tell it: 12k, 1.5M, 0.05, 1e-6."""
    size = abs(value)
    for limit, suffix in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if limit <= size < 1e13:
            return f"{value / limit:.4g}{suffix}"
    if size and (size < 1e-3 or size >= 1e13):
        return f"{value:.3g}".replace("e-0", "e-").replace("e+", "e")
    return f"{value:.6g}"


def render(chart: Chart, *, legend: bool) -> str:
    """The chart as a `<figure>`; `legend` names its curves below the title."""
    height = HEIGHTS[chart.large]
    marks = ticks(chart.low, chart.high, 8 if chart.large else 5, log=chart.log)
    across = ticks(0.0, float(chart.last_step), 6 if chart.large else 4)

    def down(value: float) -> float:
        return _down(np.asarray([value]), chart, height).item()

    grid = "".join(f'<path class="grid" d="M0 {down(mark):.1f}H{WIDTH:g}"/>' for mark in marks)
    inside = [level for level in chart.levels if chart.low <= level.value <= chart.high]
    inside.sort(key=lambda level: -level.value)
    lines = "".join(
        f'<path class="level" d="M0 {down(level.value):.1f}H{WIDTH:g}"/>' for level in inside
    )
    left = "".join(
        f'<span style="top:{down(mark):.1f}px">{text(tick_label(mark))}</span>' for mark in marks
    )
    bottom = "".join(
        f'<span style="left:{100 * mark / chart.last_step:.2f}%">{text(tick_label(mark))}</span>'
        for mark in across
    )
    # Labels have a margin of their own beside a large chart; in a small one they sit on the line.
    lift = 0.0 if chart.large else LABEL_HEIGHT / 2
    places = spread([down(level.value) - lift for level in inside], LABEL_HEIGHT, height)
    right = "".join(
        f'<span style="top:{place:.1f}px" title={attribute(level.label)}>'
        f"<i>{text(level.label)}</i> <b>{text(figure(level.value, 3))}</b></span>"
        for level, place in zip(inside, places, strict=True)
    )
    frame = "frame levelled" if inside and chart.large else "frame"
    note = ", ".join(part for part in (chart.note, "log axis" if chart.log else "") if part)
    remarks = f'<p class="remark">{text("; ".join(chart.remarks))}</p>' if chart.remarks else ""
    return (
        f'<figure class="chart{" large" if chart.large else ""}">'
        f"<figcaption><b>{text(chart.title)}</b> <span>{text(note)}</span></figcaption>"
        f"{_legend(chart) if legend else ''}"
        f'<div class="{frame}" style="height:{height:g}px">'
        f'<div class="left">{left}</div>'
        f'<div class="plot" data-low="{chart.low!r}" data-high="{chart.high!r}"'
        f' data-last="{chart.last_step}" data-log="{int(chart.log)}">'
        f'<svg viewBox="0 0 {WIDTH:g} {height:g}" preserveAspectRatio="none" role="img"'
        f" aria-label={attribute(chart.title + ' over steps')}>"
        f"{grid}{lines}{''.join(_curve(curve, chart, height) for curve in chart.curves)}</svg>"
        f'<div class="bottom">{bottom}</div></div>'
        f'<div class="right">{right}</div></div>{remarks}</figure>'
    )


def style(colour: int) -> str:
    """The classes of a curve: its colour, and its dash pattern once the colours are used up."""
    return f"c{colour % COLOURS} d{colour // COLOURS % DASHES}"


def swatch(colour: int) -> str:
    """A short sample of a curve's line, for legends and tables."""
    return (
        f'<svg class="swatch {style(colour)}" viewBox="0 0 24 8" aria-hidden="true">'
        '<path d="M1 4H23"/></svg>'
    )


def spread(places: list[float], gap: float, height: float) -> list[float]:
    """Positions from the top down, pushed apart until each is `gap` from the last."""
    placed: list[float] = []
    for place in places:
        placed.append(max(place, placed[-1] + gap) if placed else max(place, 0.0))
    limit = height
    for index in reversed(range(len(placed))):
        placed[index] = min(placed[index], limit)
        limit = placed[index] - gap
    return placed


def _legend(chart: Chart) -> str:
    shown = [curve for curve in chart.curves if curve.role != "raw"]
    items = "".join(f"<span>{swatch(curve.colour)}{text(curve.label)}</span>" for curve in shown)
    return f'<div class="legend">{items}</div>'


def _down(values: np.ndarray, chart: Chart, height: float) -> np.ndarray:
    """Values to distances from the upper edge."""
    low, high = chart.low, chart.high
    if chart.log:
        values, low, high = np.log10(values), math.log10(low), math.log10(high)
    return np.clip(height * ((high - values) / (high - low)), -FAR, FAR)


def _curve(curve: Curve, chart: Chart, height: float) -> str:
    series = thinned(curve.series)
    across = WIDTH * series.steps / chart.last_step
    down = _down(np.where(np.isfinite(series.values), series.values, np.nan), chart, height)
    parts: list[str] = []
    start = True
    alone = False
    for x, y in zip(across.tolist(), down.tolist(), strict=True):
        if not math.isfinite(y):
            parts.append("h0" if alone else "")
            start, alone = True, False
            continue
        parts.append(f"{'M' if start else 'L'}{x:.2f} {y:.2f}")
        start, alone = False, start
    parts.append("h0" if alone else "")
    path = "".join(parts)
    if not path:
        return ""
    shared = f'data-run="{curve.run}"'
    named = "" if curve.role == "raw" else f" data-label={attribute(curve.label)}"
    drawn = f'<path class="{style(curve.colour)} {curve.role}" {shared}{named} d="{path}"/>'
    if curve.role == "points" and len(series.steps) <= DOTS:
        dots = "".join(
            f"M{x:.2f} {y:.2f}h0"
            for x, y in zip(across.tolist(), down.tolist(), strict=True)
            if math.isfinite(y)
        )
        drawn += f'<path class="{style(curve.colour)} dots" {shared} d="{dots}"/>'
    return drawn
