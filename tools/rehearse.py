"""Rehearse a run on slices of TPUs that are not here: memory, collectives, least times.

`python -m tools.rehearse CONFIG.toml [key=value ...] --topology v5e:16x16`
"""

import argparse
import functools
import json
import logging
import sys
from collections.abc import Callable, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from rich.console import Console

from genjax.config import load
from genjax.errors import UserError
from genjax.families import FAMILIES
from genjax.run_config import RunConfig
from tools.rehearsal import topology as slices
from tools.rehearsal.chips import chip_of

USAGE_ERROR = 2
"""Exit code of the user's mistakes."""
DOES_NOT_FIT = 1
"""Exit code where some slice has no mesh that fits."""

_DESCRIPTION = """\
Compile the training step of a config with the TPU's own compiler, for slices that this machine
does not have, and say what it takes: memory of a chip, what the chips send to each other, the
least time of a step by their published peaks, and what the whole run costs. No TPU and no data
are needed. A large model takes the compiler minutes to half an hour, a form of its step at a time.

The step's time is a bound: compute, memory and network at their peaks, the longest of which it
takes at least; "not overlapped" is their sum. A real step lies between, or above: kernels rarely
reach the peaks.

exit codes: 0 all fit, 1 a slice has no mesh that fits, 2 a mistake in the command or config"""


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m tools.rehearse",
        description=_DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("config", type=Path, metavar="CONFIG.toml")
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    parser.add_argument(
        "--topology",
        action="append",
        required=True,
        metavar="SLICE",
        help=f"a slice, such as v5e:16x16, or several, such as 2*v5e:16x16; {slices.KNOWN}",
    )
    parser.add_argument("--debug", action="store_true", help="the config's small size, for seconds")
    parser.add_argument(
        "--search",
        nargs="?",
        type=int,
        const=4,
        metavar="N",
        help="compile up to N meshes in place of the config's (default 4), the fastest first",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures there")
    parser.add_argument(
        "--plot", type=Path, metavar="FILE.svg", help="draw predictions for 8 to 4096 chips there"
    )
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    options = _parser().parse_intermixed_args(arguments)
    logging.basicConfig(format="%(message)s", level=logging.WARNING)
    console = Console(highlight=False)
    errors = Console(stderr=True, highlight=False)
    try:
        if options.search is not None and options.search < 1:
            raise UserError(f"--search {options.search}: give 1 or more meshes to compile")
        config = load(options.config, options.overrides, debug=options.debug, schema=FAMILIES)
        for name in options.topology:
            chip_of(slices.split_slices(name)[1])
        slices.prepare()
        return _rehearse(
            config, options, console, functools.partial(errors.print, markup=False, soft_wrap=True)
        )
    except UserError as error:
        errors.print(str(error), markup=False, soft_wrap=True)
        return USAGE_ERROR
    except KeyboardInterrupt:
        return 130


def _rehearse(
    config: RunConfig, options: argparse.Namespace, console: Console, tell: Callable[[str], None]
) -> int:
    """Rehearse on each slice, and show it."""
    # Imported late: they import JAX, which reads what `prepare` set.
    from tools.rehearsal import scaling, tables
    from tools.rehearsal.plot import draw

    task = config.rehearsal_task()
    best: list[Any] = []
    every: list[Any] = []
    for name in options.topology:
        found = _on_slice(task, config, name, options.search, tell)
        every += found
        best.append(found[0])
        console.print(tables.summary(found))
        console.print()
        console.print(tables.details(found[0]))
        console.print()
        if any(one.collectives for one in found[0].variants):
            console.print(tables.collectives(found[0]))
            console.print()
            console.print(tables.longest(found[0]))
        for remark in dict.fromkeys(r for one in found[0].variants for r in one.remarks):
            console.print(f"note: {remark}", markup=False)
        console.print()
    if len(best) > 1:
        console.print(tables.summary(best))
        console.print()
    fitting = [one for one in best if one.fits]
    if options.json is not None:
        content = {
            "config": str(options.config),
            "debug": options.debug,
            "overrides": list(options.overrides),
            "versions": {name: metadata.version(name) for name in ("jax", "libtpu")},
            "rehearsals": [tables.values(one) for one in every],
            "scaling": [
                {
                    "topology": one.topology,
                    "assumptions": scaling.assumptions([one]),
                    "points": [vars(point) for point in scaling.predict(one)],
                }
                for one in fitting
            ],
        }
        _write(options.json, json.dumps(content, indent=2) + "\n", "--json")
    if options.plot is not None:
        if not fitting:
            raise UserError("--plot: no slice fits the run, so there is nothing to draw")
        _write(options.plot, draw(options.config.stem, config.steps, fitting), "--plot")
    return 0 if len(fitting) == len(best) else DOES_NOT_FIT


def _on_slice(
    task: Any, config: RunConfig, name: str, search: int | None, tell: Callable[[str], None]
) -> list[Any]:
    """The rehearsals of a run on a slice: of its own mesh, or of several, the fastest first."""
    from tools.rehearsal.rehearsal import rehearse
    from tools.rehearsal.search import candidates

    devices = slices.devices_of(name)
    chip = chip_of(slices.split_slices(name)[1])
    cores = len(devices) // len({(getattr(d, "slice_index", 0), tuple(d.coords)) for d in devices})
    meshes = [config.mesh]
    if search is not None:
        chosen = candidates(task, devices, chip, cores, config.seed, search)
        meshes = [one.mesh for one in chosen]
    found = [
        rehearse(task, mesh, devices, chip, name, seed=config.seed, steps=config.steps, tell=tell)
        for mesh in meshes
    ]
    return sorted(found, key=_order)


def _order(rehearsal: Any) -> tuple[bool, float]:
    """Those that fit first, by time; then those that do not, by what they need."""
    seconds = rehearsal.seconds()
    if not rehearsal.fits or seconds is None:
        return True, rehearsal.memory.used
    return False, seconds[0]


def _write(path: Path, text: str, option: str) -> None:
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise UserError(f"{option} {path} cannot be written: {error.strerror}") from error


if __name__ == "__main__":
    sys.exit(main())
