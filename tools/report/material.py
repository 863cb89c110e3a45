"""What a run is made of and what it made: samples, config, environment, events."""

import base64
import shlex
from datetime import UTC, datetime
from typing import Any

from tools.report.charts import swatch
from tools.report.html import details, section, table, text
from tools.runs import Record, Run

IMAGES = {".png": "png", ".jpg": "jpeg", ".jpeg": "jpeg", ".gif": "gif", ".webp": "webp"}
IMAGE_BYTES = 32 * 2**20
"""Images are embedded up to this much in all, newest first; beyond it their paths are shown."""
TIMES = ("started", "time", "date", "created")
"""Keys of environment.json that may say when a run began."""


def flat(tree: Any, prefix: str = "") -> dict[str, Any]:
    """Nested tables as one with dotted keys; empty tables stay as values."""
    if not isinstance(tree, dict) or not tree:
        return {prefix: tree} if prefix else {}
    found: dict[str, Any] = {}
    for key, value in tree.items():
        found |= flat(value, f"{prefix}.{key}" if prefix else str(key))
    return found


def when(run: Run) -> str:
    """When the run began, by its environment.json, else when it last wrote a metric."""
    for key in TIMES:
        value = run.environment.get(key)
        if isinstance(value, str) and value:
            return f"started {_moment(value)}"
        if isinstance(value, int | float) and not isinstance(value, bool):
            return f"started {datetime.fromtimestamp(value, UTC):%Y-%m-%d %H:%M} UTC"
    path = run.path / "metrics.jsonl"
    if not path.is_file():
        return ""
    return f"last written {datetime.fromtimestamp(path.stat().st_mtime, UTC):%Y-%m-%d %H:%M} UTC"


def samples(runs: list[Run], labels: list[str]) -> str:
    """Samples by step, newest first and open; several runs stand side by side."""
    budget = IMAGE_BYTES
    columns = []
    for index, (run, label) in enumerate(zip(runs, labels, strict=True)):
        by_step: dict[int, dict[Any, Record]] = {}
        for position, record in enumerate(run.samples):
            key = record["index"] if isinstance(record.get("index"), int) else f"line {position}"
            by_step.setdefault(record["step"], {})[key] = record
        blocks = []
        for step in sorted(by_step, reverse=True):
            parts = []
            for record in by_step[step].values():
                block, used = _sample(run, record, budget)
                budget -= used
                parts.append(block)
            count = f'<span class="count">{len(parts)}</span>' if len(parts) > 1 else ""
            body = f'<div class="samples">{"".join(parts)}</div>'
            blocks.append(details(f"step {step:,} {count}", body, is_open=not blocks, kind="step"))
        if blocks:
            title = f"<h3>{swatch(index)}{text(label)}</h3>" if len(runs) > 1 else ""
            columns.append(f'<div class="column">{title}{"".join(blocks)}</div>')
    many = " many" if len(columns) > 1 else ""
    body = f'<div class="columns{many}">{"".join(columns)}</div>' if columns else ""
    return section("Samples", body, "samples")


def configs(runs: list[Run], labels: list[str]) -> str:
    """The config of one run by table; of several side by side, what differs first."""
    tables = [flat(run.config) for run in runs]
    keys = list(dict.fromkeys(key for entries in tables for key in entries))
    if not keys:
        return ""
    if len(runs) == 1:
        by_table: dict[str, list[list[str]]] = {}
        for key in keys:
            parent, _, leaf = key.rpartition(".")
            by_table.setdefault(parent, []).append([text(leaf), _value(tables[0], key)])
        cards = "".join(
            f'<div class="card"><h3>{text(f"[{name}]" if name else "run")}</h3>'
            f"{table([], rows, kind='keys')}</div>"
            for name, rows in sorted(by_table.items(), key=lambda item: item[0] != "")
        )
        return section("Config", f'<div class="cards">{cards}</div>', "config")
    absent = object()
    differing = [
        key
        for key in keys
        if any(
            repr(entries.get(key, absent)) != repr(tables[0].get(key, absent)) for entries in tables
        )
    ]
    same = [key for key in keys if key not in set(differing)]
    head = ["Key", *(f"{swatch(index)}{text(label)}" for index, label in enumerate(labels))]
    rows = [[text(key), *(_value(entries, key) for entries in tables)] for key in differing]
    body = (
        table(head, rows, kind="compare", marks=["differs"] * len(rows))
        if rows
        else '<p class="note">The configs are equal.</p>'
    )
    if same:
        shared = [[text(key), _value(tables[0], key)] for key in same]
        noun = "key" if len(same) == 1 else "keys"
        body += details(f"{len(same)} {noun} equal in all runs", table([], shared, kind="keys"))
    return section("Config", body, "config")


def environments(runs: list[Run], labels: list[str]) -> str:
    """The command to run it again, then versions, devices and the rest of environment.json."""
    blocks = []
    for index, (run, label) in enumerate(zip(runs, labels, strict=True)):
        command = run.environment.get("command")
        if isinstance(command, list):
            command = shlex.join(str(part) for part in command)
        body = f"<h4>To run it again</h4><pre>{text(command)}</pre>" if command else ""
        rest = flat({k: v for k, v in run.environment.items() if k != "command"})
        if rest:
            rows = [[text(key), _value(rest, key)] for key in rest]
            body += table([], rows, kind="keys")
        body += f'<p class="note">Folder: <code>{text(run.path)}</code></p>'
        if len(runs) > 1:
            body = details(f"{swatch(index)}{text(label)}", body)
        blocks.append(body)
    return section("Environment", "".join(blocks), "environment")


def events(runs: list[Run], labels: list[str]) -> str:
    """Resumes, saves and interruptions in the order they happened, and lines that did not read."""
    blocks = []
    for index, (run, label) in enumerate(zip(runs, labels, strict=True)):
        rows = [
            [f"{record['step']:,}", text(record.get("message", ""))]
            for record in run.records("event")
        ]
        body = table(["Step", "Event"], rows, kind="events") if rows else ""
        for name, numbers in run.unreadable.items():
            some = ", ".join(str(number) for number in numbers[:5])
            more = " and more" if len(numbers) > 5 else ""
            body += (
                f'<p class="warning">{text(name)}: {len(numbers)} '
                f"unreadable line{'s' if len(numbers) > 1 else ''} left out "
                f"({some}{more}).</p>"
            )
        if body and len(runs) > 1:
            body = details(f"{swatch(index)}{text(label)}", body)
        blocks.append(body)
    return section("Events", "".join(blocks), "events")


def _moment(written: str) -> str:
    """A time in ISO 8601 as people read it; any other text as it stands."""
    try:
        moment = datetime.fromisoformat(written)
    except ValueError:
        return written
    return f"{moment:%Y-%m-%d %H:%M} {moment.tzname() or ''}".strip()


def _value(entries: dict[str, Any], key: str) -> str:
    if key not in entries:
        return '<span class="none">not set</span>'
    value = entries[key]
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list) and value and not any(isinstance(part, dict) for part in value):
        if len(value) > 1 and isinstance(value[0], str) and all(p == value[0] for p in value):
            return text(f"{len(value)} x {value[0]}")
        return text(", ".join(str(part) for part in value))
    if value is None or value == "":
        return f'<span class="none">{"none" if value is None else "empty"}</span>'
    return text(value)


def _sample(run: Run, record: Record, budget: int) -> tuple[str, int]:
    """A sample as HTML, and the bytes of the images in it."""
    extras = {
        key: value
        for key, value in record.items()
        if key not in ("step", "index", "text", "image", "kind") and value is not None
    }
    caption = ", ".join(f"{text(key)}: {text(value)}" for key, value in extras.items())
    body, used = "", 0
    if "image" in record:
        body, used = _image(run, str(record["image"]), budget)
    if "text" in record:
        body += f"<pre>{text(record['text'])}</pre>"
    if not body:
        body = '<p class="note">This sample has neither text nor an image.</p>'
        caption = caption or "empty"
    index = record.get("index")
    number = f"<b>{index}</b> " if isinstance(index, int) else ""
    return f'<figure class="sample"><figcaption>{number}{caption}</figcaption>{body}</figure>', used


def _image(run: Run, name: str, budget: int) -> tuple[str, int]:
    path = (run.path / name).resolve()
    kind = IMAGES.get(path.suffix.lower())
    if not path.is_relative_to(run.path) or not path.is_file():
        return f'<p class="note">No such file in the run: {text(name)}</p>', 0
    size = path.stat().st_size
    if kind is None or size > budget:
        return f'<p class="note">Not shown here: {text(name)}</p>', 0
    data = base64.b64encode(path.read_bytes()).decode("ascii")
    return f'<img alt="{text(name)}" src="data:image/{kind};base64,{data}">', size
