"""Where a run's time went: its wall time, and the operations of the steps that it profiled."""

import json
import math
from typing import Any

from tools.report.charts import swatch
from tools.report.html import details, section, table, text
from tools.report.names import duration, figure
from tools.runs import Record, Run, scalars

SPENT = {
    "training": "Training steps that were kept (goodput)",
    "startup": "Start-up, to the first step of each session",
    "compilation": "Compiling",
    "evaluation": "Evaluation",
    "samples": "Samples",
    "saving": "Waiting for checkpoints",
    "input": "Devices waiting for data",
    "profiling": "Profiling",
    "lost": "Steps done again after an interruption",
}
"""What wall time goes into, in the order of the table, and how the page calls it."""


def spent(run: Run) -> dict[str, float]:
    """Seconds of wall time by what they went into; empty for a run that did not log it."""
    lines = [line for line in run.records("speed") if "goodput" in line and "seconds" in line]
    if not lines:
        return {}
    figures = scalars(lines[-1])
    others = {
        name.removeprefix("seconds_"): value
        for name, value in figures.items()
        if name.startswith("seconds_") and math.isfinite(value)
    }
    found = {"training": figures["seconds"] - sum(others.values())} | others
    order = [*SPENT, *(kind for kind in found if kind not in SPENT)]
    return {kind: max(found[kind], 0.0) for kind in order if kind in found}


def wall_times(runs: list[Run], labels: list[str]) -> str:
    """What the wall time went into: of one run as bars, of several as shares side by side."""
    columns = [spent(run) for run in runs]
    kinds = list(dict.fromkeys(kind for column in columns for kind in column))
    if not kinds:
        return ""
    kinds.sort(key=lambda kind: list(SPENT).index(kind) if kind in SPENT else len(SPENT))
    totals = [sum(column.values()) or math.nan for column in columns]

    def share(column: dict[str, float], total: float, kind: str) -> str:
        return f"{100 * column[kind] / total:.1f}%" if kind in column else ""

    if len(runs) == 1:
        (column,), (total,) = columns, totals
        rows = [
            [
                text(SPENT.get(kind, kind)),
                _bar(column[kind] / total),
                share(column, total, kind),
                text(duration(column[kind])),
            ]
            for kind in kinds
        ]
        marks = ["own" if kind == "training" else "" for kind in kinds]
        body = table(["", "", "Share", "Time"], rows, kind="numbers ranking", marks=marks)
    else:
        head = ["", *(f"{swatch(index)}{text(label)}" for index, label in enumerate(labels))]
        rows = [
            [
                text(SPENT.get(kind, kind)),
                *(share(*pair, kind) for pair in zip(columns, totals, strict=True)),
            ]
            for kind in kinds
        ]
        body = table(head, rows, kind="compare")
    note = (
        '<p class="note">Of all sessions of the run, without the time between them and what came '
        "after the last line of a session that was killed.</p>"
    )
    return section("Wall time", body + note, "wall-time")


def read_profile(run: Run) -> Record:
    """The table of operations that a run's profile left; empty without one that can be read."""
    try:
        found = json.loads((run.path / "profile" / "top_operations.json").read_text("utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) and isinstance(found.get("operations"), list) else {}


def profiles(runs: list[Run], labels: list[str]) -> str:
    """The operations that take longest, of each run that was profiled."""
    blocks = []
    for index, (run, label) in enumerate(zip(runs, labels, strict=True)):
        profile = read_profile(run)
        rows = [line for line in profile.get("operations", []) if isinstance(line, dict)]
        if not rows:
            continue
        body = _operations(rows, profile.get("others")) + _about(profile)
        blocks.append(details(f"{swatch(index)}{text(label)}", body) if len(runs) > 1 else body)
    return section("Top operations", "".join(blocks), "operations")


def _operations(rows: list[Record], others: Any) -> str:
    head = ["Operation", "", "Share", "Time", "Runs", "Where in the model"]
    cells = []
    for line in rows:
        name = f"<code>{text(line.get('name', ''))}</code>"
        if line.get("program"):
            name += f'<br><span class="none">{text(line["program"])}</span>'
        cells.append([name, *_measured(line), text(line.get("source", ""))])
    if isinstance(others, dict):
        names = _number(others, "names")
        cells.append([text(f"{figure(names)} others"), *_measured(others), ""])
    return table(head, cells, kind="numbers ranking operations")


def _measured(line: Record) -> list[str]:
    share = _number(line, "share")
    return [
        _bar(share),
        f"{100 * share:.1f}%",
        text(f"{figure(1000 * _number(line, 'seconds'), 3)} ms"),
        text(figure(_number(line, "count"))),
    ]


def _about(profile: Record) -> str:
    """What was measured, and how much of the time the devices did nothing."""
    steps = profile.get("steps")
    parts = []
    if isinstance(steps, list) and len(steps) == 2:
        parts.append(f"Steps {steps[0]} to {steps[1]}.")
    idle = _number(profile, "idle_share")
    parts.append(f"The devices did nothing in {100 * idle:.1f}% of the time.")
    devices = _number(profile, "devices")
    parts.append(f"Means over the {figure(devices)} device{'' if devices == 1 else 's'} traced.")
    parts.append("A loop's or call's time is without what runs inside of it.")
    return f'<p class="note">{text(" ".join(parts))}</p>'


def _number(line: Record, name: str) -> float:
    value = scalars(line).get(name, 0.0)
    return value if math.isfinite(value) else 0.0


def _bar(share: float) -> str:
    return f'<div class="bar"><i style="width:{100 * min(max(share, 0.0), 1.0):.1f}%"></i></div>'
