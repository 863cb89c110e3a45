"""What the commands that measure models share: options, devices, rows and their table."""

import argparse
import os
import platform
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.harness import Factory, Timing, has_torch, limit_cores, matmul_ceiling

Row = dict[str, Any]

Measurements = Mapping[str, Callable[[argparse.Namespace], list[Row]]]
"""What can be asked for by name."""

EAGER = ("torch, channels last", "torch, channels first")
COMPILED = "torch compiled"

ceiling = cache(matmul_ceiling)


def make_parser(name: str, description: str | None, only: Measurements) -> argparse.ArgumentParser:
    """The options that all have."""
    parser = argparse.ArgumentParser(
        prog=f"python -m benchmarks.{name}",
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--only", nargs="+", choices=tuple(only), default=tuple(only))
    parser.add_argument("--cores", type=int, help="processor cores to use (default: all)")
    parser.add_argument("--blocks", type=int, help="timed blocks of each peer, for a quick look")
    parser.add_argument(
        "--no-compiled-peer",
        dest="compiled_peer",
        action="store_false",
        help="leave torch.compile out",
    )
    parser.add_argument("--record", type=Path, help="also write the results here as JSON")
    parser.add_argument("--check", action="store_true", help="compare results instead of times")
    return parser


def find_devices(options: argparse.Namespace) -> None:
    """Find out where JAX works, and PyTorch beside it: `backend` and `torch_device`."""
    # Several processes share a GPU: none may take most of its memory at once.
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    # JAX counts the cores when it starts.
    cores = limit_cores(options.cores)
    import jax

    options.backend = jax.default_backend()
    options.torch_device = None
    if has_torch() and options.backend == "cpu":
        options.torch_device = "cpu"
    elif has_torch() and options.backend == "gpu":
        import torch

        options.torch_device = "cuda" if torch.cuda.is_available() else None
    torch_version = f"torch {version('torch')}" if options.torch_device else "no PyTorch beside it"
    print(
        f"jax {version('jax')}, {torch_version}, {jax.devices()[0].device_kind}, "
        f"{cores} cores ({platform.machine()}), float32 matrix products reach "
        f"{ceiling('float32') / 1e9:.0f} GFLOP/s, XLA_FLAGS={os.environ.get('XLA_FLAGS', '')!r}"
    )
    # On shared cores PyTorch's threads wait for one another, up to 30 times as long as alone.
    print(f"load average {os.getloadavg()[0]:.1f}: times mean something on a quiet machine alone")


def fastest_of(peers: Mapping[str, Factory], backend: str) -> Sequence[str]:
    """The peers of PyTorch that ratios are to: compiled on an accelerator, else eager."""
    asked = (COMPILED,) if backend != "cpu" and COMPILED in peers else EAGER
    return [name for name in asked if name in peers]


def row(
    what: str,
    by: str,
    timing: Timing,
    units: Mapping[str, int] | None = None,
    ideal: float | None = None,
) -> Row:
    """What is recorded of a peer.

    Args:
        what: the work.
        by: the peer.
        timing: its times.
        units: what a call works through, such as `{"images": 64}`.
        ideal: seconds of a call that would reach the device's ceiling.
    """
    rates = {f"{unit}_per_second": count / timing.median for unit, count in (units or {}).items()}
    return {
        "what": what,
        "by": by,
        "milliseconds": 1e3 * timing.median,
        "milliseconds_10_90": [1e3 * timing.low, 1e3 * timing.high],
        "milliseconds_by_kind": {kind: 1e3 * value for kind, value in timing.parts.items()},
        "ratio": timing.ratio,
        **rates,
        # A compiler that works at the first call is part of it.
        "compile_seconds": timing.facts.get("compile_seconds", timing.first),
        "memory_bytes": timing.facts.get("memory"),
        "mfu": None if ideal is None else ideal / timing.median,
    }


def print_table(rows: list[Row], units: Sequence[str]) -> None:
    """Print rows for people, with the rates of these units."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("what", no_wrap=True)
    table.add_column("by", no_wrap=True)
    rates = [f"{unit}/s" for unit in units]
    for heading in ("ms", "ratio", *rates, "compile", "memory", "MFU"):
        table.add_column(heading, justify="right", no_wrap=True)

    def cell(value: float | None, form: Callable[[float], str]) -> str:
        return "" if value is None else form(value)

    for found in rows:
        table.add_row(
            found["what"],
            found["by"],
            cell(found.get("milliseconds"), lambda value: f"{value:.2f}"),
            cell(found.get("ratio"), lambda value: f"{value:.3g}"),
            *(
                cell(found.get(f"{unit}_per_second"), lambda value: f"{value:,.1f}")
                for unit in units
            ),
            cell(found.get("compile_seconds"), lambda value: f"{value:.1f} s"),
            cell(found.get("memory_bytes"), lambda value: f"{value / 2**20:.1f} MiB"),
            cell(found.get("mfu"), lambda value: f"{100 * value:.0f}%"),
        )
        kinds = found.get("milliseconds_by_kind", {})
        for kind, value in kinds.items() if len(kinds) > 1 else ():
            table.add_row(f"  {kind}", "", f"{value:.2f}")
    Console(width=140, highlight=False).print(table)
