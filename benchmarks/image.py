"""Speed of the image models, beside PyTorch where it is installed.

    python -m benchmarks.image [--only NAME ..] [--cores 1] [--no-compiled-peer] [--record FILE]
    python -m benchmarks.image --check

Prints, for whole steps of GANs (discriminator, generator, optimizers, average): the time of a
step, images a second, the time to compile (for PyTorch, of the first calls), memory (on a CPU that
of the compiled program, on a GPU the most that was taken), and MFU: the share of the device's own
matrix-product ceiling that the analytic FLOPs reach. Lazy regularisers are averaged: each kind of
step is timed by itself, and weighed by how often it comes. Ratios are to the fastest PyTorch:
eager on a CPU, in either layout; compiled on a GPU. Below 1 is faster.

On a CPU: DCGAN and StyleGAN2 at 64 px, and resampling against the depthwise convolution. On an
accelerator: DCGAN, StyleGAN2 at 256 px in bfloat16, and R3GAN in its CIFAR-10 size. --check
compares, for the same parameters and inputs, what both sides compute.
"""

import argparse
import os
import platform
import sys
from collections.abc import Callable
from functools import cache, partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks import image_steps, resampling
from benchmarks.harness import (
    Factory,
    Timing,
    compare,
    has_torch,
    limit_cores,
    matmul_ceiling,
    write_record,
)

Row = dict[str, Any]

_ceiling = cache(matmul_ceiling)

EAGER = ("torch, channels last", "torch, channels first")
COMPILED = "torch compiled"


def measure(
    name: str, game: image_steps.Game, options: argparse.Namespace, blocks: int, block_size: int
) -> list[Row]:
    """A game's step by genjax and, where there is one, by PyTorch."""
    peers: dict[str, Factory] = {}
    if options.torch_device and game.model["kind"] != "r3gan":
        torch = partial(image_steps.torch_step, game, options.torch_device)
        peers = {EAGER[0]: partial(torch, True), EAGER[1]: partial(torch, False)}
        if options.compiled_peer:
            peers[COMPILED] = partial(torch, True, True)
    references = [COMPILED] if options.backend != "cpu" and COMPILED in peers else EAGER
    peers["genjax"] = partial(image_steps.genjax_step, game)
    timings = compare(
        peers,
        options.blocks or blocks,
        block_size,
        references if len(peers) > 1 else (),
    )
    ideal = timings["genjax"].facts["flops"] / _ceiling(game.model["dtype"])
    return [_row(name, peer, time, game.batch_size, ideal) for peer, time in timings.items()]


def _row(
    name: str, peer: str, timing: Timing, images: int | None = None, ideal: float | None = None
) -> Row:
    return {
        "what": name,
        "by": peer,
        "milliseconds": 1e3 * timing.median,
        "milliseconds_10_90": [1e3 * timing.low, 1e3 * timing.high],
        "milliseconds_by_kind": {kind: 1e3 * value for kind, value in timing.parts.items()},
        "ratio": timing.ratio,
        "images_per_second": None if images is None else images / timing.median,
        # A compiler that works at the first call is part of it.
        "compile_seconds": timing.facts.get("compile_seconds", timing.first),
        "memory_bytes": timing.facts.get("memory"),
        "mfu": None if ideal is None else ideal / timing.median,
    }


def measure_dcgan(options: argparse.Namespace) -> list[Row]:
    """DCGAN at 64 px, as published; on an accelerator a larger batch too."""
    sizes = (64,) if options.backend == "cpu" else (64, 512)
    rows = []
    for batch_size in sizes:
        name = f"DCGAN 64 px, batch {batch_size}"
        rows += measure(name, image_steps.dcgan(batch_size), options, 8, 2)
    return rows


def measure_stylegan2(options: argparse.Namespace) -> list[Row]:
    """StyleGAN2: at 64 px, narrow unless asked for the real width, or at 256 px."""
    if options.backend != "cpu":
        rows = []
        for batch_size in (32, 64):
            name = f"StyleGAN2 256 px, bfloat16, batch {batch_size}"
            game = image_steps.stylegan2(256, batch_size, 16384, 512, "bfloat16")
            rows += measure(name, game, options, 5, 3)
        return rows
    base, most = (16384, 512) if options.large else (4096, 256)
    name = f"StyleGAN2 64 px, batch 16, channels {base // 64} to {most}"
    return measure(name, image_steps.stylegan2(64, 16, base, most), options, 6, 1)


def measure_r3gan(options: argparse.Namespace) -> list[Row]:
    """R3GAN of CIFAR-10's size, both penalties at each step."""
    if options.backend == "cpu":
        return []
    game = image_steps.r3gan(512, "bfloat16")
    return measure("R3GAN 32 px, bfloat16, batch 512", game, options, 5, 3)


def measure_resampling(options: argparse.Namespace) -> list[Row]:
    """Upsampling by genjax's form for CPUs; other backends have the depthwise one themselves."""
    if options.backend != "cpu":
        return []
    rows = []
    for gradient in (False, True):
        peers: dict[str, Factory] = {
            form: partial(resampling.upsampling, form, gradient) for form in ("depthwise", "genjax")
        }
        shape = "x".join(map(str, resampling.SHAPE))
        name = f"upsampling {shape}{', forward and back' if gradient else ''}"
        timings = compare(peers, options.blocks or 3, 2)
        rows += [_row(name, form, timing) for form, timing in timings.items()]
    return rows


def print_table(rows: list[Row]) -> None:
    """Print rows for people."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("what", no_wrap=True)
    table.add_column("by", no_wrap=True)
    for heading in ("ms", "ratio", "images/s", "compile", "memory", "MFU"):
        table.add_column(heading, justify="right", no_wrap=True)

    def cell(value: float | None, form: Callable[[float], str]) -> str:
        return "" if value is None else form(value)

    for row in rows:
        table.add_row(
            row["what"],
            row["by"],
            f"{row['milliseconds']:.2f}",
            f"{row['ratio']:.3g}",
            cell(row["images_per_second"], lambda value: f"{value:,.1f}"),
            cell(row["compile_seconds"], lambda value: f"{value:.1f} s"),
            cell(row["memory_bytes"], lambda value: f"{value / 2**20:.1f} MiB"),
            cell(row["mfu"], lambda value: f"{100 * value:.0f}%"),
        )
        for kind, value in row["milliseconds_by_kind"].items():
            if len(row["milliseconds_by_kind"]) > 1:
                table.add_row(f"  {kind}", "", f"{value:.2f}")
    Console(width=130, highlight=False).print(table)


def check() -> bool:
    """Compare what both sides compute; prints each error, and tells whether all are small."""
    from benchmarks import image_check

    games = {
        "DCGAN 64 px": image_steps.dcgan(4),
        "StyleGAN2 64 px": image_steps.stylegan2(64, 4, 4096, 256),
    }
    errors = {"upsampling": image_check.check_resampling()}
    if has_torch():
        errors |= {name: image_check.check_game(game) for name, game in games.items()}
    for name, figures in errors.items():
        for figure, error in figures.items():
            print(f"{name:16} {figure:24} {error:.1e}")
    worst = max(error for figures in errors.values() for error in figures.values())
    print(f"greatest relative error {worst:.1e}, allowed {image_check.TOLERANCE:.0e}")
    return worst <= image_check.TOLERANCE


def _devices(options: argparse.Namespace) -> None:
    """Find out where JAX works, and PyTorch beside it."""
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
        f"{_ceiling('float32') / 1e9:.0f} GFLOP/s, XLA_FLAGS={os.environ.get('XLA_FLAGS', '')!r}"
    )


def main() -> None:
    """Measure, print, and record if asked."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.image",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    measurements: dict[str, Callable[[argparse.Namespace], list[Row]]] = {
        "dcgan": measure_dcgan,
        "stylegan2": measure_stylegan2,
        "r3gan": measure_r3gan,
        "resampling": measure_resampling,
    }
    parser.add_argument("--only", nargs="+", choices=tuple(measurements), default=measurements)
    parser.add_argument("--cores", type=int, help="processor cores to use (default: all)")
    parser.add_argument("--blocks", type=int, help="timed blocks of each peer, for a quick look")
    parser.add_argument("--large", action="store_true", help="StyleGAN2 64 px in its real width")
    parser.add_argument(
        "--no-compiled-peer",
        dest="compiled_peer",
        action="store_false",
        help="leave torch.compile out",
    )
    parser.add_argument("--record", type=Path, help="also write the results here as JSON")
    parser.add_argument("--check", action="store_true", help="compare results instead of times")
    options = parser.parse_args()
    if options.check:
        sys.exit(0 if check() else 1)
    _devices(options)
    rows = [row for name in options.only for row in measurements[name](options)]
    print_table(rows)
    if options.record:
        write_record(options.record, rows)


if __name__ == "__main__":
    main()
