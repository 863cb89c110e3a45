"""A rehearsal in words: tables for people, plain values for programs."""

import math
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from rich.table import Table
from rich.text import Text

from tools.rehearsal.compilation import Memory
from tools.rehearsal.rehearsal import Rehearsal, mesh_words
from tools.rehearsal.roofline import collective_seconds

GIB = 2.0**30


def scaled(number: float, unit: str, base: int = 1000) -> str:
    """A number with a prefix: 3.7e9 as "3.7 GB"."""
    power = 0
    while abs(number) >= base and power < 5:
        number /= base
        power += 1
    prefix = ["", "k", "M", "G", "T", "P"][power]
    infix = "i" if base == 1024 and power else ""
    return f"{number:.3g} {prefix.upper() if base == 1024 else prefix}{infix}{unit}"


def duration(seconds: float) -> str:
    """A time in the unit that suits it."""
    for factor, unit in ((1.0, "s"), (1e-3, "ms"), (1e-6, "us")):
        if seconds >= factor:
            return f"{seconds / factor:.3g} {unit}"
    return "0" if seconds == 0 else f"{seconds * 1e9:.2g} ns"


def summary(rehearsals: Sequence[Rehearsal]) -> Table:
    """One column a rehearsal."""
    table = Table(box=None, pad_edge=False, padding=(0, 3, 0, 0))
    table.add_column("slice")
    for one in rehearsals:
        table.add_column(one.topology, justify="right")
    units = list(dict.fromkeys(unit for one in rehearsals for unit in one.units))
    columns = [_summary_cells(one, units) for one in rehearsals]
    for name in columns[0]:
        table.add_row(name, *(column[name] for column in columns))
    return table


def _summary_cells(rehearsal: Rehearsal, units: Sequence[str]) -> dict[str, Text]:
    """What a rehearsal says in each row."""
    memory, seconds, line = rehearsal.memory, rehearsal.seconds(), rehearsal.roofline
    cells = {
        "mesh": mesh_words(rehearsal.mesh),
        "chips": f"{rehearsal.fabric.chips:,}",
        "HBM of a chip": f"{_gib(memory.used)} of {memory.available / GIB:.4g} GiB",
        "fits": "yes" if rehearsal.fits else f"no, short {over(memory)}",
        "step, at least": "",
        "limited by": "",
        "not overlapped": "",
        **{f"{unit} a second, at most": "" for unit in units},
        "MFU, at most": "",
        "MFU, not overlapped": "",
        "chip-hours of the run": "",
    }
    if rehearsal.fits and seconds is not None and line is not None:
        bound, in_turn = seconds
        high, low = rehearsal.utilisation(bound), rehearsal.utilisation(in_turn)
        cells |= {
            "step, at least": duration(bound),
            "limited by": line.limit,
            "not overlapped": duration(in_turn),
            "MFU, at most": "not known" if high is None else _percent(high),
            "MFU, not overlapped": "not known" if low is None else _percent(low),
            "chip-hours of the run": f"{_hours(rehearsal, bound)} to {_hours(rehearsal, in_turn)}",
        }
        for unit in units:
            cells[f"{unit} a second, at most"] = f"{rehearsal.units.get(unit, 0) / bound:,.0f}"
    style = "" if rehearsal.fits else "bold red"
    return {name: Text(cell, style=style if name == "fits" else "") for name, cell in cells.items()}


def _hours(rehearsal: Rehearsal, seconds: float) -> str:
    hours = rehearsal.chip_hours(seconds)
    return f"{hours:,.0f}" if hours >= 100 else f"{hours:.2g}"


def over(memory: Memory) -> str:
    """By how much a step does not fit."""
    if math.isinf(memory.used):
        return "by an unknown size"
    return f"by {max(memory.used - memory.available, 0) / GIB:.4g} GiB"


def _gib(size: float) -> str:
    return "?" if math.isinf(size) else f"{size / GIB:.3g}"


def _percent(share: float) -> str:
    return f"{100 * share:.3g}%"


def details(rehearsal: Rehearsal) -> Table:
    """Memory, work and times of each form of a step."""
    table = Table(box=None, pad_edge=False)
    table.add_column("")
    for one in rehearsal.variants:
        title = one.name or "every step"
        share = "" if one.share == 1 else f", {100 * one.share:.3g}% of steps"
        table.add_column(f"{title}{share}", justify="right")
    memories = [one.memory for one in rehearsal.variants]
    lines = [one.roofline for one in rehearsal.variants]
    rows: dict[str, list[str]] = {
        "memory of a chip": [f"{_gib(one.used)} GiB" for one in memories],
        "  train state": [scaled(one.state, "B", 1024) for one in memories],
        "  batch": [scaled(one.batch, "B", 1024) for one in memories],
        "  temporaries": [f"{_gib(one.temporary)} GiB" for one in memories],
        "  program": [scaled(one.program, "B", 1024) for one in memories],
        "arithmetic, all chips": [scaled(one.flops, "FLOP") for one in rehearsal.variants],
        "memory traffic of a device": [scaled(one.traffic, "B") for one in rehearsal.variants],
        "time by compute": ["" if one is None else duration(one.compute) for one in lines],
        "time by memory": ["" if one is None else duration(one.memory) for one in lines],
        "time by network": ["" if one is None else duration(one.network) for one in lines],
    }
    for name, cells in rows.items():
        table.add_row(name, *cells)
    return table


def collective_rows(rehearsal: Rehearsal) -> list[dict[str, Any]]:
    """Collectives of an average step by kind and axes, the longest first.

    Each has "kind", "axes", "count", "bytes" and "seconds", per device.
    """
    sums: dict[tuple[str, tuple[str, ...]], list[float]] = defaultdict(lambda: [0.0, 0.0, 0.0])
    for variant in rehearsal.variants:
        for one in variant.collectives:
            total = sums[one.kind, one.axes]
            total[0] += variant.share * one.count
            total[1] += variant.share * one.total
            total[2] += variant.share * one.count * collective_seconds(one, rehearsal.fabric)
    rows = [
        {"kind": kind, "axes": list(axes), "count": count, "bytes": size, "seconds": seconds}
        for (kind, axes), (count, size, seconds) in sums.items()
    ]
    return sorted(rows, key=lambda row: -row["seconds"])


def collectives(rehearsal: Rehearsal) -> Table:
    """Collectives of an average step by kind and axes."""
    table = Table(box=None, pad_edge=False)
    table.add_column("collectives of a step")
    table.add_column("along")
    for name in ("count", "bytes of a group", "time"):
        table.add_column(name, justify="right")
    for row in collective_rows(rehearsal):
        table.add_row(
            row["kind"],
            " and ".join(row["axes"]),
            f"{row['count']:,.4g}",
            scaled(row["bytes"], "B"),
            duration(row["seconds"]),
        )
    return table


def largest(rehearsal: Rehearsal, count: int) -> list[dict[str, Any]]:
    """The collectives of an average step that take the longest, by what they serve.

    Each has "kind", "axes", "operation" (as JAX names it), "count", "bytes" of one and "seconds" of
    all of them.
    """
    rows = [
        {
            "kind": one.kind,
            "axes": list(one.axes),
            "operation": one.operation,
            "count": variant.share * one.count,
            "bytes": one.size,
            "seconds": variant.share * one.count * collective_seconds(one, rehearsal.fabric),
        }
        for variant in rehearsal.variants
        for one in variant.collectives
    ]
    return sorted(rows, key=lambda row: -row["seconds"])[:count]


def longest(rehearsal: Rehearsal) -> Table:
    """The few collectives that take the longest, and what they serve."""
    table = Table(box=None, pad_edge=False)
    for name in ("the longest of them", "times", "bytes of one", "time"):
        table.add_column(name, justify="left" if "longest" in name else "right")
    table.add_column("for", overflow="fold")
    for row in largest(rehearsal, 6):
        table.add_row(
            f"{row['kind']} along {' and '.join(row['axes'])}",
            f"{row['count']:,.4g}",
            scaled(row["bytes"], "B"),
            duration(row["seconds"]),
            Text(ending(row["operation"])),
        )
    return table


def ending(path: str, width: int = 60) -> str:
    """The last parts of an operation's path that a width has room for; one at least."""
    *parts, shown = path.replace("\\'", "'").split("/")
    for part in reversed(parts):
        if len(part) + 1 + len(shown) > width:
            break
        shown = f"{part}/{shown}"
    return shown[-width:]


def values(rehearsal: Rehearsal) -> dict[str, Any]:
    """A rehearsal as plain values, for JSON: bytes, seconds, operations; null for the unknown."""
    seconds, line = rehearsal.seconds(), rehearsal.roofline
    found: dict[str, Any] = {
        "topology": rehearsal.topology,
        "mesh": dict(rehearsal.mesh),
        "chips": rehearsal.fabric.chips,
        "devices": len(rehearsal.fabric.places),
        "fits": rehearsal.fits,
        "batch": dict(rehearsal.batch),
        "units_per_step": dict(rehearsal.units),
        "steps": rehearsal.steps,
        "model_flops": rehearsal.model_flops,
        "hbm": _memory_values(rehearsal.memory),
        "collectives": collective_rows(rehearsal),
        "longest_collectives": largest(rehearsal, 40),
        "variants": [
            {
                "name": one.name,
                "share": one.share,
                "hbm": _memory_values(one.memory),
                "flops": one.flops,
                "memory_traffic": one.traffic,
                "roofline": None
                if one.roofline is None
                else {
                    "compute": one.roofline.compute,
                    "memory": one.roofline.memory,
                    "network": one.roofline.network,
                },
                "remarks": list(one.remarks),
            }
            for one in rehearsal.variants
        ],
    }
    if seconds is not None and line is not None:
        bound, in_turn = seconds
        found |= {
            "limit": line.limit,
            "step_seconds": bound,
            "step_seconds_not_overlapped": in_turn,
            "units_per_second": {unit: count / bound for unit, count in rehearsal.units.items()},
            "mfu": rehearsal.utilisation(bound),
            "mfu_not_overlapped": rehearsal.utilisation(in_turn),
            "chip_hours": rehearsal.chip_hours(bound),
            "chip_hours_not_overlapped": rehearsal.chip_hours(in_turn),
        }
    return found


def _memory_values(memory: Memory) -> dict[str, Any]:
    fields = {
        "used": memory.used,
        "available": memory.available,
        "state": memory.state,
        "batch": memory.batch,
        "temporary": memory.temporary,
        "program": memory.program,
    }
    return {name: None if math.isinf(value) else round(value) for name, value in fields.items()} | {
        "fits": memory.fits
    }
