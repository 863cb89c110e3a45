"""Speed of the video models, beside PyTorch where it is installed.

    python -m benchmarks.video [--only NAME ..] [--cores 1] [--no-compiled-peer] [--record FILE]
    python -m benchmarks.video --check

Prints, for whole training steps of predictors (forward, backward, clipping, Adam): the time of a
step, clips and frames a second, the time to compile (for PyTorch, of the first calls), memory (on
a CPU that of the compiled program, on a GPU the most that was taken), and MFU: the share of the
device's own matrix-product ceiling that the analytic FLOPs reach. Ratios are to the fastest
PyTorch: eager on a CPU, in either layout; compiled on a GPU. Below 1 is faster.

On a CPU: a small ConvLSTM, PredRNN and SimVP on 32 px, and ConvLSTM-S on 64 px with one clip a
step. On an accelerator: ConvLSTM-S and SimVP-S on 64 px with 16 clips. Anywhere: the memory of
ConvLSTM-S with and without remat, as compiled, and how fast generated clips are made. --check
compares, for the same parameters and clips, what both sides compute.
"""

import argparse
import sys
from collections.abc import Callable
from functools import partial
from typing import Any

from benchmarks import video_steps
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
from benchmarks.video_steps import Case

NOT_MEASURED = "not measured on a GPU"


def measure(
    name: str,
    case: Case,
    options: argparse.Namespace,
    blocks: int,
    block_size: int,
    compiled_peer: bool = True,
) -> list[Row]:
    """A network's step by genjax and, where there is one, by PyTorch."""
    peers: dict[str, Factory] = {}
    if options.torch_device and video_steps.has_peer(case):
        torch = partial(video_steps.torch_step, case, options.torch_device)
        peers = {EAGER[0]: partial(torch, True), EAGER[1]: partial(torch, False)}
        if options.compiled_peer and compiled_peer:
            peers[COMPILED] = partial(torch, True, True)
    references = fastest_of(peers, options.backend)
    peers["genjax"] = partial(video_steps.genjax_step, case)
    timings = compare(peers, options.blocks or blocks, block_size, references)
    ideal = timings["genjax"].facts["flops"] / ceiling(case.dtype)
    units = {"clips": case.batch_size, "frames": case.batch_size * case.frames}
    return [row(name, peer, timing, units, ideal) for peer, timing in timings.items()]


def measure_convlstm(options: argparse.Namespace) -> list[Row]:
    """The small ConvLSTM of the configs."""
    case = video_steps.from_config("moving_mnist_32_convlstm")
    return measure(f"ConvLSTM 32 px, batch {case.batch_size}", case, options, 6, 2)


def measure_predrnn(options: argparse.Namespace) -> list[Row]:
    """PredRNN as wide and as deep as the small ConvLSTM."""
    model = {"kind": "predrnn", "features": 64, "num_layers": 2, "kernel_size": 3}
    case = Case(32, 8, model)
    # On a CPU, compiling is measured once.
    compiled = options.backend != "cpu"
    return measure("PredRNN 32 px, batch 8", case, options, 4, 1, compiled)


def measure_simvp(options: argparse.Namespace) -> list[Row]:
    """The small SimVP of the configs."""
    case = video_steps.from_config("moving_mnist_32_simvp")
    return measure(f"SimVP 32 px, batch {case.batch_size}", case, options, 5, 1)


def measure_convlstm_s(options: argparse.Namespace) -> list[Row]:
    """ConvLSTM-S: one clip on a CPU, and what only an accelerator can do."""
    rows = []
    if options.backend == "cpu":
        case = video_steps.convlstm_s(1)
        rows = measure("ConvLSTM-S 64 px, batch 1", case, options, 2, 1, compiled_peer=False)
    return rows + _on_accelerator("ConvLSTM-S 64 px", video_steps.convlstm_s, options)


def measure_simvp_s(options: argparse.Namespace) -> list[Row]:
    """SimVP-S with gated attention, on an accelerator."""
    return _on_accelerator("SimVP gSTA-S 64 px", video_steps.simvp_s, options)


def _on_accelerator(
    name: str, make: Callable[[int, str], Case], options: argparse.Namespace
) -> list[Row]:
    """Rows of both types of computation, or what says that there are none."""
    rows: list[Row] = []
    for dtype in ("float32", "bfloat16"):
        what = f"{name}, {dtype}, batch 16"
        if options.backend == "cpu":
            rows.append({"what": what, "by": NOT_MEASURED})
        else:
            rows += measure(what, make(16, dtype), options, 5, 3)
    return rows


def measure_remat(options: argparse.Namespace) -> list[Row]:
    """Memory of ConvLSTM-S's compiled step; the ratio of the first row is to the second."""
    del options
    found = {
        by: video_steps.compiled_memory(video_steps.convlstm_s(16, remat=remat))
        for by, remat in (("remat", True), ("everything kept", False))
    }
    whole = found["everything kept"]["memory_bytes"]
    what = "ConvLSTM-S 64 px, batch 16: compiled"
    return [
        {"what": what, "by": by, "ratio": memory["memory_bytes"] / whole, **memory}
        for by, memory in found.items()
    ]


def measure_clips(options: argparse.Namespace) -> list[Row]:
    """Generated clips: described on the host, drawn as well, and read ahead as the loop does."""
    sources: dict[str, dict[str, Any]] = {
        "moving digits 32 px": {"kind": "moving_digits", "size": 32},
        "moving digits 64 px": {"kind": "moving_digits", "size": 64, "digit_size": 28},
        "shape motion 32 px": {"kind": "shape_motion", "size": 32},
    }
    batch_size, batches, frames = 16, 50, 20
    units = {"clips": batch_size * batches, "frames": batch_size * batches * frames}
    rows = []
    for name, source in sources.items():
        peers: dict[str, Factory] = {
            how: partial(video_steps.clips_made, source, how, batch_size, batches)
            for how in video_steps.MADE
        }
        timings = compare(peers, options.blocks or 4, 1)
        what = f"{name}: {batches} batches of {batch_size}"
        rows += [row(what, how, timing, units) for how, timing in timings.items()]
    return rows


def check() -> bool:
    """Compare what both sides compute; prints each error, and tells whether all are small."""
    from benchmarks import video_check

    if not has_torch():
        print("PyTorch is not installed: nothing to compare with")
        return False
    errors = {name: video_check.check_case(case) for name, case in video_check.CASES.items()}
    for name, figures in errors.items():
        for figure, error in figures.items():
            print(f"{name:16} {figure:36} {error:.1e}")
    worst = max(error for figures in errors.values() for error in figures.values())
    print(f"greatest relative error {worst:.1e}, allowed {video_check.TOLERANCE:.0e}")
    return worst <= video_check.TOLERANCE


def main() -> None:
    """Measure, print, and record if asked."""
    measurements: dict[str, Callable[[argparse.Namespace], list[Row]]] = {
        "convlstm": measure_convlstm,
        "convlstm_s": measure_convlstm_s,
        "predrnn": measure_predrnn,
        "simvp": measure_simvp,
        "simvp_s": measure_simvp_s,
        "remat": measure_remat,
        "clips": measure_clips,
    }
    options = make_parser("video", __doc__, measurements).parse_args()
    if options.check:
        sys.exit(0 if check() else 1)
    find_devices(options)
    rows = [found for name in options.only for found in measurements[name](options)]
    print_table(rows, ("clips", "frames"))
    if options.record:
        write_record(options.record, rows)


if __name__ == "__main__":
    main()
