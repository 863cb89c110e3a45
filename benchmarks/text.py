"""Speed of the language models, beside PyTorch where it is installed.

    python -m benchmarks.text [--only NAME ..] [--cores 1] [--no-compiled-peer] [--record FILE]

Prints, for training steps of transformers, recurrent layers, the training loop and decoding: the
time of a step, tokens a second, the time to compile (for PyTorch, of the first call), the memory
of the compiled program, and MFU: the share of the machine's own matrix-product ceiling that the
analytic FLOPs reach. Ratios are to PyTorch, eager, on the same shapes: below 1 is faster.
"""

import argparse
import os
import platform
from collections.abc import Callable
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks import recurrent, transformer
from benchmarks.decoding import decoding_speed
from benchmarks.harness import (
    Factory,
    Timing,
    compare,
    has_torch,
    limit_cores,
    matmul_ceiling,
    write_record,
)
from benchmarks.loop import loop_overhead

Row = dict[str, Any]

TRANSFORMERS = {
    "transformer 4x128, context 64, batch 12": transformer.Shape(12, 64, 4, 4, 128),
    "transformer 6x384, context 256, batch 8": transformer.Shape(8, 256, 6, 6, 384),
}
LAYERS = (recurrent.Shape(20, 35, 650), recurrent.Shape(32, 128, 512))


def _rows(
    name: str, peers: dict[str, Factory], tokens: int, ceiling: float, blocks: int, size: int
) -> list[Row]:
    timings = compare(peers, blocks, size)
    flops = timings["genjax"].facts["flops"]
    return [_row(name, peer, timing, tokens, flops / ceiling) for peer, timing in timings.items()]


def _row(name: str, peer: str, timing: Timing, tokens: int, ideal: float) -> Row:
    return {
        "what": name,
        "by": peer,
        "milliseconds": 1e3 * timing.median,
        "milliseconds_10_90": [1e3 * timing.low, 1e3 * timing.high],
        "ratio": timing.ratio,
        "tokens_per_second": tokens / timing.median,
        # A compiler that works at the first call is part of it.
        "compile_seconds": timing.facts.get("compile_seconds", timing.first),
        "memory_bytes": timing.facts.get("memory"),
        "mfu": ideal / timing.median,
    }


def measure_transformers(ceiling: float, compiled_peer: bool) -> list[Row]:
    """Whole training steps: forward, backward, clipping, AdamW."""
    rows = []
    for name, shape in TRANSFORMERS.items():
        peers: dict[str, Factory] = {}
        if has_torch():
            peers["torch eager"] = partial(transformer.torch_step, shape)
        if has_torch() and compiled_peer:
            peers["torch compiled"] = partial(transformer.torch_step, shape, True)
        peers["genjax"] = partial(transformer.genjax_step, shape)
        tokens = shape.batch_size * shape.context_length
        small = shape.hidden_size < 256
        rows += _rows(name, peers, tokens, ceiling, *((12, 20) if small else (6, 3)))
    return rows


def measure_layers(ceiling: float) -> list[Row]:
    """One recurrent layer, forward and backward."""
    rows = []
    for shape in LAYERS:
        for cell in ("lstm", "gru"):
            peers: dict[str, Factory] = {}
            if has_torch():
                peers["torch eager"] = partial(recurrent.torch_pass, cell, shape)
            peers["genjax"] = partial(recurrent.genjax_pass, cell, shape)
            name = f"{cell} layer B{shape.batch_size} T{shape.length} H{shape.hidden_size}"
            rows += _rows(name, peers, shape.batch_size * shape.length, ceiling, 8, 5)
    return rows


def measure_loop() -> list[Row]:
    """The training loop against its jitted step alone."""
    overhead = loop_overhead()
    return [
        {
            "what": "training loop, configs/text/demo.toml",
            "by": name,
            "milliseconds": 1e3 * seconds,
            "ratio": seconds / overhead.step,
        }
        for name, seconds in (("jitted step", overhead.step), ("genjax", overhead.loop))
    ]


def measure_decoding() -> list[Row]:
    """Decoding a batch of one, with the cache and without."""
    speed = decoding_speed()
    return [
        {
            "what": "decoding 256 tokens, 4x128, batch 1",
            "by": name,
            "milliseconds": 1e3 / tokens_per_second,
            "ratio": speed.uncached / tokens_per_second,
            "tokens_per_second": tokens_per_second,
        }
        for name, tokens_per_second in (
            ("without cache", speed.uncached),
            ("genjax", speed.cached),
        )
    ]


def print_table(rows: list[Row]) -> None:
    """Print rows for people."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("what", no_wrap=True)
    table.add_column("by", no_wrap=True)
    for heading in ("ms", "ratio", "tokens/s", "compile", "memory", "MFU"):
        table.add_column(heading, justify="right", no_wrap=True)

    def cell(value: float | None, form: Callable[[float], str]) -> str:
        return "" if value is None else form(value)

    for row in rows:
        table.add_row(
            row["what"],
            row["by"],
            f"{row['milliseconds']:.2f}",
            f"{row['ratio']:.2f}",
            cell(row.get("tokens_per_second"), lambda value: f"{value:,.0f}"),
            cell(row.get("compile_seconds"), lambda value: f"{value:.1f} s"),
            cell(row.get("memory_bytes"), lambda value: f"{value / 2**20:.1f} MiB"),
            cell(row.get("mfu"), lambda value: f"{100 * value:.0f}%"),
        )
    Console(width=130, highlight=False).print(table)


def main() -> None:
    """Measure, print, and record if asked."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.text",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    names = ("transformers", "layers", "loop", "decoding")
    parser.add_argument("--only", nargs="+", choices=names, default=names)
    parser.add_argument("--cores", type=int, help="processor cores to use (default: all)")
    parser.add_argument("--no-compiled-peer", action="store_true", help="leave torch.compile out")
    parser.add_argument("--record", type=Path, help="also write the results here as JSON")
    options = parser.parse_args()
    cores = limit_cores(options.cores)
    ceiling = matmul_ceiling()
    torch = f"torch {version('torch')}" if has_torch() else "torch not installed: no peer"
    print(
        f"jax {version('jax')}, {torch}, {cores} cores ({platform.machine()}), "
        f"matrix products reach {ceiling / 1e9:.0f} GFLOP/s, "
        f"XLA_FLAGS={os.environ.get('XLA_FLAGS', '')!r}"
    )
    measurements: dict[str, Callable[[], list[Row]]] = {
        "transformers": lambda: measure_transformers(ceiling, not options.no_compiled_peer),
        "layers": lambda: measure_layers(ceiling),
        "loop": measure_loop,
        "decoding": measure_decoding,
    }
    rows = [row for name in options.only for row in measurements[name]()]
    print_table(rows)
    if options.record:
        write_record(options.record, rows)


if __name__ == "__main__":
    main()
