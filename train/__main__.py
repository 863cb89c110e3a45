"""`python -m train CONFIG.toml [key=value ...]`: train a model, or go on where it stopped."""

import argparse
import errno
import logging
import os
import re
import signal
import sys
import time
import zlib
from collections.abc import Sequence
from pathlib import Path

import jax
from rich.console import Console

from genjax.config import expand, load, print_help
from genjax.errors import UserError
from genjax.families import FAMILIES
from genjax.parallel import platform, processes
from genjax.run_config import RunConfig
from train import BEGAN
from train.last_words import end
from train.peers import Peers

USAGE_ERROR = 2
"""Exit code of the user's mistakes; `train.loop.Outcome` has the others."""

NOT_SAVED = 4
"""The same as `train.loop.Outcome.NOT_SAVED`, which is imported late."""

_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)

_PIPE_WIDTH = 120
"""Columns of a dry run's tables where no terminal has a width."""

_NAME_LENGTH = 160
"""Longest name of a sweep's run in letters; file systems allow 255 bytes."""

_DESCRIPTION = """\
Train the model of a config file. The same command on the same run directory goes on where it
stopped. key=value replaces a value of the file (optimizer.learning_rate=3e-4); key=a|b|c runs
each value in turn, several such keys every combination, each in its own run directory.

exit codes: 0 finished, 2 a mistake in the command, config or data, 3 diverged,
4 the last checkpoint or the log could not be saved, 5 no progress for faults.hang_minutes,
6 another of several processes was lost or failed, 75 interrupted and saved, 130 ended by a second
Ctrl-C. After 4 (once there is room), 5, 6 and 75 the same command goes on."""


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m train",
        description=_DESCRIPTION,
        add_help=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("config", nargs="?", type=Path, metavar="CONFIG.toml")
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    parser.add_argument("--workdir", type=Path, help="run directory (default: runs/NAME)")
    parser.add_argument("--debug", action="store_true", help="the config's small size, for seconds")
    parser.add_argument(
        "--dry-run", action="store_true", help="print layout, sizes and work, train nothing"
    )
    parser.add_argument(
        "--devices",
        type=int,
        metavar="N",
        help="with --dry-run: lay it out for N devices, which need not be here, nor the data",
    )
    several = parser.add_argument_group(
        "several processes",
        "Under SLURM (srun), Open MPI (mpirun) and on Cloud TPU the same command finds them by "
        "itself; elsewhere start it once for each process with these three.",
    )
    several.add_argument("--coordinator", metavar="HOST:PORT", help="where process 0 listens")
    several.add_argument("--num-processes", type=int, metavar="N", help="how many there are")
    several.add_argument("--process-id", type=int, metavar="I", help="which this is, from 0")
    parser.add_argument("-h", "--help", action="store_true", help="list every field of the config")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    parser = _parser()
    options = parser.parse_intermixed_args(arguments)
    logging.basicConfig(format="%(message)s", level=logging.WARNING)
    console = Console(stderr=True, highlight=False)
    try:
        if options.help:
            return _help(parser, options)
        if options.config is None:
            parser.print_usage(sys.stderr)
            return USAGE_ERROR
        return _run(options, console)
    except UserError as error:
        # Of several processes one speaks for all; what another has to say, it hears from that.
        if str(error) and processes.speaks():
            console.print(str(error), markup=False, soft_wrap=True)
        return USAGE_ERROR
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    except OSError as error:
        if error.errno not in _NO_ROOM:
            raise
        where = f" {error.filename}" if error.filename else ""
        console.print(
            f"cannot write{where} ({error.strerror}); make room, then run the same command again",
            markup=False,
            soft_wrap=True,
        )
        return NOT_SAVED


def _help(parser: argparse.ArgumentParser, options: argparse.Namespace) -> int:
    parser.print_help()
    print()
    if options.config is None:
        for kind, schema in FAMILIES.items():
            print(f'Fields of kind = "{kind}":')
            print_help(schema)
    else:
        (_, overrides), *_ = expand(options.overrides)
        config = load(options.config, overrides, debug=options.debug, schema=FAMILIES)
        print_help(type(config), config)
    return 0


def _run(options: argparse.Namespace, console: Console) -> int:
    if options.devices is not None and (not options.dry_run or options.devices < 1):
        raise UserError(
            f"--devices {options.devices}: give a number of at least 1, together with --dry-run; "
            "training takes the devices that mesh asks for"
        )
    grid = expand(options.overrides)
    name = options.config.stem + ("-debug" if options.debug else "")
    root = options.workdir or Path("runs") / name
    runs: list[tuple[Path, RunConfig]] = []
    names = _run_names([label for label, _ in grid])
    for run_name, (_, overrides) in zip(names, grid, strict=True):
        config = load(options.config, overrides, debug=options.debug, schema=FAMILIES)
        runs.append((root / run_name, config))
    cache = {"compilation_cache": None} if options.dry_run else {}
    how = runs[0][1].platform.model_copy(update=cache)
    platform.start(how)
    place = processes.place_from_flags(
        options.coordinator, options.num_processes, options.process_id
    )
    if not options.dry_run:
        processes.connect(place, how.start_timeout, lambda why: end(USAGE_ERROR, why))
    outcome = _train_all(runs, options, console)
    processes.disconnect()
    return outcome


def _train_all(
    runs: list[tuple[Path, RunConfig]], options: argparse.Namespace, console: Console
) -> int:
    """Train or describe each run; returns the worst exit code."""
    worst, began = 0, BEGAN
    with Peers(runs[0][1].faults.lost_seconds).watch() as peers:
        for folder, config in runs:
            if options.dry_run:
                _dry_run(config, options.devices)
                continue
            if len(runs) > 1 and processes.speaks():
                console.print(f"run {folder}", markup=False)
            outcome = _train(config, folder, began, peers)
            began = time.perf_counter()
            worst = max(worst, outcome)
            if outcome == 75:
                break
    return worst


def _run_names(labels: list[dict[str, str]]) -> list[str]:
    """A folder name for each run of a sweep, "key=value,key=value"; "" where nothing is swept."""
    exact = [",".join(f"{key}={value}" for key, value in label.items()) for label in labels]
    # Values may be paths or quoted texts.
    plain = [re.sub(r"[^\w.,=+-]+", "_", name) for name in exact]
    return [
        name
        if plain.count(name) == 1 and len(name) <= _NAME_LENGTH
        # Two values became the same name: tell them apart by the value alone, whatever the sweep.
        else f"{name[:_NAME_LENGTH]}-{zlib.crc32(full.encode()):08x}"
        for name, full in zip(plain, exact, strict=True)
    ]


def _dry_run(config: RunConfig, devices: int | None) -> None:
    from train.dry_run import dry_run

    # A machine that has not the devices need not have the data.
    task = config.make_task() if devices is None else config.rehearsal_task()
    # In a file or a pipe rich would take 80 columns, too few for paths.
    console = Console(highlight=False)
    if not console.is_terminal and "COLUMNS" not in os.environ:
        console.width = _PIPE_WIDTH
    dry_run(task, config, console, devices)


def _train(config: RunConfig, folder: Path, began: float, peers: Peers) -> int:
    """Train one run, in a session that began then; returns its exit code."""
    # Imported late, so that help and mistakes in a config need not wait for it.
    from train.agreement import agreed
    from train.loop import train
    from train.progress import Progress
    from train.run_directory import RunDirectory
    from train.signals import stop_on_signals
    from train.writers import has_trained

    run = RunDirectory(folder)
    peers.checkpoints = run.checkpoints
    # The first process alone looks for the run that it may be about to start: a machine that found
    # no such folder on a shared disk may go on to find none for a minute.
    found: list[bool] = []
    processes.first_does(lambda: found.append(run.exists()))
    exists = bool(processes.agree(int(any(found))))
    saved = load(run.config_file, schema=FAMILIES) if exists else None
    show = Progress(bar=config.log.progress, quiet=not processes.is_first())
    with stop_on_signals() as own_stop, agreed(own_stop) as stop, show as progress:
        task = None if saved is not None else config.make_task()
        save_assets = None if task is None else task.save_assets
        processes.first_does(lambda: run.open(config, saved, save_assets))
        if not run.appears():
            raise UserError(
                f"{folder}: process {jax.process_index()} does not see what the first process "
                "wrote there; choose a --workdir that all machines share"
            )
        try:
            if task is None:
                task = config.make_task(run.assets)
            result = train(task, config, run, stop, progress, began, peers)
        except UserError:
            if saved is None and processes.is_first() and not has_trained(run):
                run.discard()
            raise
        finally:
            run.close()
        progress.tell(f"{result.message} ({folder})")
    return int(result.outcome)


if __name__ == "__main__":
    sys.exit(main())
