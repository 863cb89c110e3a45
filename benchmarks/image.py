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
import sys
from collections.abc import Callable
from functools import partial

from benchmarks import image_steps, resampling
from benchmarks.command import (
    COMPILED,
    EAGER,
    Row,
    ceiling,
    fastest_of,
    find_devices,
    make_parser,
    print_table,
    row,
)
from benchmarks.harness import Factory, compare, has_torch, write_record


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
    references = fastest_of(peers, options.backend)
    peers["genjax"] = partial(image_steps.genjax_step, game)
    timings = compare(
        peers,
        options.blocks or blocks,
        block_size,
        references,
    )
    ideal = timings["genjax"].facts["flops"] / ceiling(game.model["dtype"])
    units = {"images": game.batch_size}
    return [row(name, peer, timing, units, ideal) for peer, timing in timings.items()]


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
        rows += [row(name, form, timing) for form, timing in timings.items()]
    return rows


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


def main() -> None:
    """Measure, print, and record if asked."""
    measurements: dict[str, Callable[[argparse.Namespace], list[Row]]] = {
        "dcgan": measure_dcgan,
        "stylegan2": measure_stylegan2,
        "r3gan": measure_r3gan,
        "resampling": measure_resampling,
    }
    parser = make_parser("image", __doc__, measurements)
    parser.add_argument("--large", action="store_true", help="StyleGAN2 64 px in its real width")
    options = parser.parse_args()
    if options.check:
        sys.exit(0 if check() else 1)
    find_devices(options)
    rows = [found for name in options.only for found in measurements[name](options)]
    print_table(rows, ("images",))
    if options.record:
        write_record(options.record, rows)


if __name__ == "__main__":
    main()
