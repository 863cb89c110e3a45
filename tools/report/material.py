"""What a run is made of and what happened to it: config, environment, events."""

import shlex
from datetime import UTC, datetime
from typing import Any

from tools.report.charts import swatch
from tools.report.html import details, section, table, text
from tools.runs import Run

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
