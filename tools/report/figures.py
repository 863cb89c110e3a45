"""The figures at the head of the page: where runs stand, what they reached, beside baselines."""

import math
from dataclasses import dataclass

import numpy as np

from tools.report.charts import swatch
from tools.report.html import details, section, table, text
from tools.report.names import duration, figure, is_wall_time, leader, metric
from tools.runs import Record, Run, scalars

STATES = {
    "finished": "finished",
    "stopped": "stopped",
    "diverged": "diverged",
    "open": "no end recorded",
}

_MANY = 5
"""More tiles than this are smaller."""


@dataclass(frozen=True)
class Reached:
    """The validation figures of a run."""

    best: Record | None
    """The line with the best value of the ranking metric; None where no direction is known."""
    last: Record | None


def reached(run: Run) -> Reached:
    """The best and the last validation of a run."""
    lines = run.records("validation")
    if not lines:
        return Reached(None, None)
    main = leader([run], _names(lines))
    if main is None:
        return Reached(None, lines[-1])
    ranked = [line for line in lines if math.isfinite(scalars(line).get(main.name, math.nan))]
    pick = min if main.better == "lower" else max
    best = pick(ranked, key=lambda line: line[main.name]) if ranked else None
    return Reached(best, lines[-1])


def state(run: Run) -> str:
    """The status of a run and the steps it has made of those planned, as HTML."""
    status = run.status()
    planned = run.config.get("steps")
    of = f" of {planned:,}" if isinstance(planned, int) else ""
    return (
        f'<span class="state {status.state}">{STATES[status.state]}</span> '
        f"at step {status.step:,}{of}"
    )


def wall_time(run: Run) -> float:
    """Seconds that the run has taken, over all resumes; NaN if it logged none."""
    seconds = run.series("speed").get("seconds")
    return float(seconds.values[-1]) if seconds is not None else math.nan


def typical(run: Run, name: str) -> float:
    """The median of a figure of speed over the run, of goodput the last; NaN if it logged none."""
    series = run.series("speed").get(name)
    values = series.values[np.isfinite(series.values)] if series is not None else np.zeros(0)
    if not len(values):
        return math.nan
    return float(values[-1] if name == "goodput" else np.median(values))


def tiles(run: Run) -> str:
    """The headline of one run: validation and speed, as tiles."""
    got = reached(run)
    head = got.best or got.last
    cells = []
    for name in _names([head]) if head else []:
        if not metric(name).drawn:
            continue
        value, last = scalars(head or {})[name], scalars(got.last or {}).get(name, math.nan)
        note = f"best, at step {head['step']:,}" if head and got.best else "last"
        if got.best and got.last is not got.best:
            note += f"<br>last {text(figure(last))}"
        elif got.best:
            note += "<br>also the last"
        cells.append(_tile(metric(name).title, figure(value), note))
    many = " many" if len(cells) > _MANY else ""
    first = "".join(cells) or _tile("Validation", "none yet", _last_loss(run))
    protocol = str((head or {}).get("protocol", ""))
    told = f'<p class="protocol">Protocol: {text(protocol)}</p>' if protocol else ""
    speed = []
    for name in run.series("speed"):
        value = typical(run, name)
        if is_wall_time(name) or not math.isfinite(value):
            continue
        note = "of the wall time" if name == "goodput" else "median"
        speed.append(_tile(_short(name), _speed(name, value), note))
    total = wall_time(run)
    if math.isfinite(total):
        speed.append(_tile("Wall time", duration(total), "training, all resumes"))
    second = f'<div class="tiles lesser">{"".join(speed)}</div>' if speed else ""
    return f'<div class="tiles{many}">{first}</div>{told}{second}'


def overview(runs: list[Run], labels: list[str]) -> str:
    """Several runs as rows: status, best validation, speed; the best figure of a column marked."""
    rows = [reached(run) for run in runs]
    names = _names([line for got in rows for line in (got.best or got.last,) if line])
    speed = list(dict.fromkeys(name for run in runs for name in run.series("speed")))
    speed = [name for name in speed if not is_wall_time(name)]
    columns: list[list[float]] = [
        [scalars(got.best or got.last or {}).get(name, math.nan) for got in rows] for name in names
    ] + [[typical(run, name) for run in runs] for name in speed]
    tops = [_top(values, name) for name, values in zip([*names, *speed], columns, strict=True)]
    body = []
    for index, (run, label) in enumerate(zip(runs, labels, strict=True)):
        line = rows[index].best or rows[index].last
        cells = [
            f"{swatch(index)}{text(label)}",
            state(run),
            f"{line['step']:,}" if line else "none",
        ]
        for name, values, top in zip([*names, *speed], columns, tops, strict=True):
            shown = _speed(name, values[index]) if name in speed else figure(values[index])
            cells.append(_cell(values[index], shown, strong=values[index] == top))
        cells.append(text(duration(wall_time(run))))
        body.append(cells)
    head = ["Run", "Status", "Best at", *(text(_short(name)) for name in [*names, *speed])]
    protocols = {str(got.last.get("protocol", "")) for got in rows if got.last}
    told = "".join(
        f'<p class="protocol">Protocol: {text(protocol)}</p>' for protocol in protocols if protocol
    )
    if len(protocols) > 1:
        told = (
            '<p class="warning">These runs were validated under different protocols: '
            f"their figures do not compare.</p>{told}"
        )
    note = (
        '<p class="note">Each run at its best validation; speed is the median over the run, '
        "goodput its last value. Bold marks the best of a column.</p>"
    )
    return section("Runs", table([*head, "Wall time"], body, kind="numbers") + note + told, "runs")


def ranking(runs: list[Run], labels: list[str]) -> str:
    """Runs and baselines in one list, worst first, with bars; empty without baselines."""
    entries: list[tuple[str, dict[str, float], str]] = []
    seen = set()
    for run in runs:
        for title, figures in run.baselines().items():
            key = (title, tuple(f"{value:.4g}" for value in figures.values()))
            if key not in seen:
                seen.add(key)
                entries.append((text(title), figures, ""))
    if not entries:
        return ""
    names = _names([figures for _, figures, _ in entries])
    main = leader(runs, names)
    if main is None:
        return ""
    for index, (run, label) in enumerate(zip(runs, labels, strict=True)):
        got = reached(run)
        title = f"{swatch(index)}{text(label)}" if len(runs) > 1 else "this run"
        if got.best:
            entries.append((title, scalars(got.best), "own"))
    lower = main.better == "lower"

    def place(entry: tuple[str, dict[str, float], str]) -> float:
        value = entry[1].get(main.name, math.nan)
        return -math.inf if not math.isfinite(value) else -value if lower else value

    entries.sort(key=place)
    longest = (
        max(
            (abs(f[main.name]) for _, f, _ in entries if math.isfinite(f.get(main.name, math.nan))),
            default=0,
        )
        or 1
    )
    body = []
    for title, figures, _ in entries:
        value = figures.get(main.name, math.nan)
        share = 100 * abs(value) / longest if math.isfinite(value) else 0
        values = [figures.get(name, math.nan) for name in names]
        bar = f'<div class="bar"><i style="width:{share:.1f}%"></i></div>'
        body.append([title, bar, *(_cell(value) for value in values)])
    head = ["", "", *(text(metric(name).title) for name in names)]
    marks = [mark for _, _, mark in entries]
    title = metric(main.name).title
    title = text(title if title[:2].isupper() else title.lower())
    note = (
        f'<p class="note">Worst first, bars by {title}; a run stands with its best validation.</p>'
    )
    return section(
        "Beside the baselines",
        table(head, body, kind="numbers ranking", marks=marks) + note,
        "rank",
    )


def evaluations(runs: list[Run], labels: list[str]) -> str:
    """What the evaluation tool has written after training, newest first."""
    blocks = []
    for run, label in zip(runs, labels, strict=True):
        for index, record in enumerate(reversed(run.evaluations)):
            numbers = scalars(record)
            words = {
                k: v
                for k, v in record.items()
                if k not in numbers and k not in ("step", "baselines") and v not in ({}, None)
            }
            step = record.get("step")
            title = " ".join(
                part
                for part in (
                    text(label) if len(runs) > 1 else "",
                    f"step {step:,}" if isinstance(step, int) else "evaluation",
                )
                if part
            )
            figures = "".join(
                f"<div><dt>{text(metric(name).title)}</dt><dd>{text(figure(value))}</dd></div>"
                for name, value in numbers.items()
            )
            told = "".join(
                f'<p class="protocol">{text(name)}: {text(value)}</p>'
                for name, value in words.items()
            )
            body = f'<dl class="figures">{figures}</dl>{_beside(record)}{told}'
            blocks.append(details(title, body, is_open=index == 0))
    return section("Evaluations", "".join(blocks), "evaluations")


def _beside(record: Record) -> str:
    """The baselines of an evaluation as a table, each with the figures that it has."""
    baselines = record.get("baselines")
    if not isinstance(baselines, list) or not baselines:
        return ""
    rows = [line for line in baselines if isinstance(line, dict)]
    figures = [scalars(row) for row in rows]
    names = _names(figures)
    cells = [
        [text(row.get("name", "")), *(_cell(values.get(name, math.nan)) for name in names)]
        for row, values in zip(rows, figures, strict=True)
    ]
    head = ["Baselines", *(text(metric(name).title) for name in names)]
    return table(head, cells, kind="numbers beside")


def _names(lines: list[Record]) -> list[str]:
    return list(dict.fromkeys(name for line in lines for name in scalars(line)))


def _top(values: list[float], name: str) -> float:
    finite = [value for value in values if math.isfinite(value)]
    better = metric(name).better
    if len(finite) < 2 or better is None:
        return math.nan
    return min(finite) if better == "lower" else max(finite)


def _cell(value: float, shown: str = "", *, strong: bool = False) -> str:
    if not math.isfinite(value):
        return '<span class="none">none</span>'
    told = text(shown or figure(value))
    return f"<b>{told}</b>" if strong else told


def _short(name: str) -> str:
    return "MFU" if name == "mfu" else metric(name).title


def _speed(name: str, value: float) -> str:
    """A figure of speed with its unit, three significant figures."""
    if name in ("mfu", "goodput", "input_wait"):
        return f"{100 * value:.1f}%"
    if name == "step_time":
        return f"{1000 * value:.3g} ms" if value < 1 else f"{figure(value, 3)} s"
    if name == "compile_seconds":
        return f"{figure(value, 3)} s"
    return figure(value, 3)


def _tile(title: str, value: str, note: str) -> str:
    """One tile; `note` is HTML."""
    return (
        f'<div class="tile"><div class="title">{text(title)}</div>'
        f'<div class="value">{text(value)}</div><div class="under">{note}</div></div>'
    )


def _last_loss(run: Run) -> str:
    series = run.series("train").get("loss")
    if series is None:
        return "no validation has been logged"
    return f"last training loss {text(figure(float(series.values[-1])))}"
