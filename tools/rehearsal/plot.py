"""Predicted scaling as a drawing: an SVG that stands alone."""

import math
from collections.abc import Callable, Sequence

from tools.rehearsal.rehearsal import Rehearsal, mesh_words
from tools.rehearsal.scaling import SIZES, Prediction, assumptions, efficiency, predict
from tools.report.charts import tick_label, ticks
from tools.report.html import attribute, text

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
"""Told apart by colour-blind readers (Okabe and Ito)."""

_WIDTH, _HEIGHT = 900, 470
_TOP, _BOTTOM = 96, 360
_PANELS = ((70, 430), (530, 880))
"""Left and right edges of the two panels."""
_NOTE_LETTERS = 150

_STYLE = (
    "text{font:12px system-ui,sans-serif;fill:#333}.title{font-weight:600;font-size:15px}"
    ".head{font-weight:600}.note{font-size:10.5px;fill:#666}.grid{stroke:#ddd}"
    ".curve{fill:none;stroke-width:2}.ideal{fill:none;stroke-width:1;stroke-dasharray:3 4}"
    ".here{stroke:#fff;stroke-width:1.5}.band{opacity:.15;stroke:none}"
)


def draw(name: str, steps: int, rehearsals: Sequence[Rehearsal]) -> str:
    """Rate and efficiency of a run's step from 8 to 4096 chips, as far as they are predicted.

    For each slice a band between the step in which all overlaps and that in which nothing does; a
    dot where it was compiled.

    Args:
        name: what to call the run.
        steps: how many it has.
        rehearsals: of steps that fit, one for each colour.
    """
    curves = [predict(one) for one in rehearsals]
    unit = next(iter(rehearsals[0].units), "steps")
    rates = [
        one.units / seconds
        for curve in curves
        for one in curve
        for seconds in (one.seconds, one.seconds_in_turn)
    ]
    low, high = _decades(rates)
    left, right = (_across(*panel) for panel in _PANELS)

    def down_log(value: float) -> float:
        share = math.log10(value / low) / math.log10(high / low)
        return _BOTTOM - share * (_BOTTOM - _TOP)

    def down_share(value: float) -> float:
        return _BOTTOM - min(value, 1.0) * (_BOTTOM - _TOP)

    title = f"Predicted scaling of {name} ({steps:,} steps)"
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}" '
        f'role="img" aria-label={attribute(title)}>',
        f'<style>{_STYLE}</style><rect width="{_WIDTH}" height="{_HEIGHT}" fill="#fff"/>',
        f'<text class="title" x="20" y="26">{text(title)}</text>',
        *_legend(rehearsals),
        _frame(
            _PANELS[0],
            left,
            f"{unit} a second",
            [(down_log(mark), tick_label(mark)) for mark in ticks(low, high, 6, log=True)],
        ),
        _frame(
            _PANELS[1],
            right,
            "share of perfect scaling",
            [(down_share(mark / 100), f"{mark}%") for mark in (0, 25, 50, 75, 100)],
        ),
    ]
    for number, (one, curve) in enumerate(zip(rehearsals, curves, strict=True)):
        colour = COLOURS[number % len(COLOURS)]
        upper = [(left(p.chips), down_log(p.units / p.seconds)) for p in curve]
        lower = [(left(p.chips), down_log(p.units / p.seconds_in_turn)) for p in curve]
        parts += [_band(upper, lower, colour), _line(upper, colour), _line(lower, colour)]
        parts += _ideal(curve, left, down_log, high, colour)
        shares = [
            (right(p.chips), down_share(e)) for p, e in zip(curve, efficiency(curve), strict=True)
        ]
        parts.append(_line(shares, colour))
        here = [place for place, p in enumerate(curve) if p.chips == one.fabric.chips]
        for place in here:
            for x, y in (upper[place], lower[place], shares[place]):
                parts.append(
                    f'<circle class="here" cx="{x:.1f}" cy="{y:.1f}" r="4.5" fill="{colour}"/>'
                )
    notes = [
        "Dots: compiled for that slice. Bands: from all of compute, memory and network overlapping "
        "to nothing overlapping (which the right panel shows), at the chips' published peaks.",
        assumptions(rehearsals) + ".",
    ]
    lines = [line for note in notes for line in _wrapped(note[0].upper() + note[1:])]
    parts += [
        f'<text class="note" x="20" y="{_BOTTOM + 44 + 14 * row}">{text(line)}</text>'
        for row, line in enumerate(lines)
    ]
    return "\n".join([*parts, "</svg>"]) + "\n"


def _decades(values: Sequence[float]) -> tuple[float, float]:
    low, high = math.log10(min(values)), math.log10(max(values))
    return 10.0 ** math.floor(low), 10.0 ** max(math.ceil(high), math.floor(low) + 1)


def _across(left: float, right: float) -> Callable[[float], float]:
    first, last = math.log2(SIZES[0]), math.log2(SIZES[-1])
    return lambda chips: left + (math.log2(chips) - first) / (last - first) * (right - left)


def _frame(
    panel: tuple[int, int],
    across: Callable[[float], float],
    title: str,
    marks: Sequence[tuple[float, str]],
) -> str:
    left, right = panel
    grid = "".join(
        f'<path class="grid" d="M{left} {y:.1f}H{right}"/>'
        f'<text x="{left - 8}" y="{y + 4:.1f}" text-anchor="end">{text(label)}</text>'
        for y, label in marks
    )
    bottom = "".join(
        f'<text x="{across(size):.1f}" y="{_BOTTOM + 18}" text-anchor="middle">{size}</text>'
        for size in SIZES
    )
    return (
        f'<text class="head" x="{left}" y="{_TOP - 12}">{text(title)}</text>{grid}{bottom}'
        f'<text x="{right}" y="{_TOP - 12}" text-anchor="end" class="note">chips, log axis</text>'
    )


def _legend(rehearsals: Sequence[Rehearsal]) -> list[str]:
    parts, x = [], 20.0
    for number, one in enumerate(rehearsals):
        label = f"{one.topology}, {mesh_words(one.mesh)}"
        colour = COLOURS[number % len(COLOURS)]
        parts.append(
            f'<path d="M{x:.0f} 50h22" stroke="{colour}" stroke-width="3"/>'
            f'<text x="{x + 28:.0f}" y="54">{text(label)}</text>'
        )
        x += 50 + 6.6 * len(label)
    return parts


def _path(points: Sequence[tuple[float, float]]) -> str:
    return "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in points)


def _line(points: Sequence[tuple[float, float]], colour: str) -> str:
    return f'<path class="curve" stroke="{colour}" d="{_path(points)}"/>' if points else ""


def _band(
    upper: Sequence[tuple[float, float]], lower: Sequence[tuple[float, float]], colour: str
) -> str:
    if not upper:
        return ""
    return f'<path class="band" fill="{colour}" d="{_path([*upper, *reversed(lower)])}Z"/>'


def _ideal(
    curve: Sequence[Prediction],
    across: Callable[[float], float],
    down: Callable[[float], float],
    high: float,
    colour: str,
) -> list[str]:
    """Perfect scaling from the smallest number of chips."""
    if not curve:
        return []
    first, last = curve[0], curve[-1]
    rate = first.units / first.seconds
    top = min(rate * last.chips / first.chips, high)
    ends = [
        (across(first.chips), down(rate)),
        (across(first.chips * top / rate), down(top)),
    ]
    return [f'<path class="ideal" stroke="{colour}" d="{_path(ends)}"/>']


def _wrapped(note: str) -> list[str]:
    lines, line = [], ""
    for word in note.split():
        if len(line) + len(word) > _NOTE_LETTERS:
            lines.append(line)
            line = ""
        line = f"{line} {word}".strip()
    return [*lines, line]
