"""The whole page: head, sections in order, style and script, nothing fetched from anywhere."""

import base64
import hashlib
import os
from pathlib import Path

from genjax.errors import UserError
from tools.report import figures, material, timing
from tools.report.charts import COLOURS, DASHES, render, swatch
from tools.report.curves import EARLY_HALF_LIFE, HALF_LIFE, groups
from tools.report.html import section, text
from tools.report.names import figure
from tools.report.samples import samples
from tools.runs import Run, scalars

HERE = Path(__file__).parent


def names(runs: list[Run]) -> list[str]:
    """A short name for each run: its folder, or its path where two folders are named alike."""
    short = [run.name for run in runs]
    if len(set(short)) == len(short):
        return short
    parent = Path(os.path.commonpath([run.path.parent for run in runs]))
    return [str(run.path.relative_to(parent)) for run in runs]


def page(runs: list[Run]) -> str:
    """The report as one HTML document that needs no network and no other file.

    Raises:
        UserError: a run has logged no metric yet.
    """
    for run in runs:
        logged = any(scalars(record) for record in run.metrics if record["kind"] != "baseline")
        if not logged:
            raise UserError(
                f"{run.path}: the run has logged nothing yet (no figures in metrics.jsonl).\n"
                "Wait for its first log line, or look at what its command printed."
            )
    labels = names(runs)
    single = len(runs) == 1
    title = labels[0] if single else f"{len(runs)} runs"
    head = _header(runs, labels)
    body = [
        section("Figures", figures.tiles(runs[0]), "figures") if single else "",
        "" if single else figures.overview(runs, labels),
        figures.ranking(runs, labels),
        _curves(runs, labels),
        samples(runs, labels),
        figures.evaluations(runs, labels),
        timing.wall_times(runs, labels),
        timing.profiles(runs, labels),
        material.configs(runs, labels),
        material.environments(runs, labels),
        material.events(runs, labels),
    ]
    style = (HERE / "page.css").read_text(encoding="utf-8")
    script = (HERE / "page.js").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = (
        "default-src 'none'; img-src data:; media-src data:; style-src 'unsafe-inline'; "
        f"script-src 'sha256-{digest}'"
    )
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n'
        f"<title>{text(title)}</title>\n<style>{style}</style></head>\n"
        f"<body>{head}<main>{chr(10).join(part for part in body if part)}</main>\n"
        f"<script>{script}</script></body></html>\n"
    )


def _header(runs: list[Run], labels: list[str]) -> str:
    if len(runs) > 1:
        title = f"{len(runs)} runs side by side"
        under = text(os.path.commonpath([run.path for run in runs]))
    else:
        run = runs[0]
        kind = run.config.get("kind")
        parts = [figures.state(run), text(material.when(run))]
        parts.insert(0, text(kind) if isinstance(kind, str) else "")
        resumes = sum("resume" in str(line.get("message", "")) for line in run.records("event"))
        parts.append(f"resumed {'once' if resumes == 1 else f'{resumes} times'}" if resumes else "")
        status = run.status()
        told = (
            f'<p class="ending {status.state}">{text(status.message)}</p>'
            if status.state in ("diverged", "stopped")
            else ""
        )
        title = labels[0]
        under = '<span class="dot"></span>'.join(f"<span>{part}</span>" for part in parts if part)
        return f'<header><h1>{text(title)}</h1><p class="sub">{under}</p>{told}</header>'
    return f'<header><h1>{text(title)}</h1><p class="sub">{under}</p></header>'


def _curves(runs: list[Run], labels: list[str]) -> str:
    blocks = []
    single = len(runs) == 1
    if not single:
        items = "".join(
            f'<button type="button" data-run="{index}">{swatch(index)}{text(label)}</button>'
            for index, label in enumerate(labels)
        )
        note = ""
        if len(runs) > COLOURS * DASHES:
            note = f'<p class="note">Lines repeat after {COLOURS * DASHES} runs.</p>'
        blocks.append(f'<div class="legend runs">{items}</div>{note}')
    for group in groups(runs, labels):
        charts = "".join(render(chart, legend=single and chart.large) for chart in group.charts)
        large = " large" if any(chart.large for chart in group.charts) else ""
        title = "" if large else f"<h3>{text(group.title)}</h3>"
        blocks.append(f'{title}<div class="charts{large}">{charts}</div>')
    last = max(record["step"] for run in runs for record in run.metrics)
    note = (
        '<p class="note">Over training steps. Faint: values as logged. Bold: their exponential '
        f"moving average with a half-life of {figure(HALF_LIFE * last, 3)} steps "
        f"({HALF_LIFE:.0%} of the longest run; early on {EARLY_HALF_LIFE:.0%} of the step). "
        "Validation is never smoothed.</p>"
    )
    return section("Curves", "".join(blocks) + note, "curves")
