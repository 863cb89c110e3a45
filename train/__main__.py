"""`python -m train CONFIG.toml [key=value ...]`: train a model, or go on where it stopped."""

import argparse
import errno
import logging
import re
import signal
import sys
import zlib
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from genjax.config import expand, load, print_help
from genjax.errors import UserError
from genjax.families import FAMILIES
from genjax.parallel import platform
from genjax.run_config import RunConfig

USAGE_ERROR = 2
"""Exit code of the user's mistakes; `train.loop.Outcome` has the others."""

NOT_SAVED = 4
"""The same as `train.loop.Outcome.NOT_SAVED`, which is imported late."""

_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)

_NAME_LENGTH = 160
"""Longest name of a sweep's run in letters; file systems allow 255 bytes."""

_DESCRIPTION = """\
Train the model of a config file. The same command on the same run directory goes on where it
stopped. key=value replaces a value of the file (optimizer.learning_rate=3e-4); key=a|b|c runs
each value in turn, several such keys every combination, each in its own run directory.

exit codes: 0 finished, 2 a mistake in the command, config or data, 3 diverged,
4 the last checkpoint or the log could not be saved, 75 interrupted and saved (the same command
goes on), 130 ended by a second Ctrl-C."""


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
        "--dry-run", action="store_true", help="print sizes and work, train nothing"
    )
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
    grid = expand(options.overrides)
    name = options.config.stem + ("-debug" if options.debug else "")
    root = options.workdir or Path("runs") / name
    runs: list[tuple[Path, RunConfig]] = []
    names = _run_names([label for label, _ in grid])
    for run_name, (_, overrides) in zip(names, grid, strict=True):
        config = load(options.config, overrides, debug=options.debug, schema=FAMILIES)
        runs.append((root / run_name, config))
    cache = {"compilation_cache": None} if options.dry_run else {}
    platform.start(runs[0][1].platform.model_copy(update=cache))
    worst = 0
    for folder, config in runs:
        if options.dry_run:
            _dry_run(config, console)
            continue
        if len(runs) > 1:
            console.print(f"run {folder}", markup=False)
        outcome = _train(config, folder)
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


def _dry_run(config: RunConfig, console: Console) -> None:
    from train.dry_run import dry_run

    dry_run(config.make_task(), config, Console(highlight=False))


def _train(config: RunConfig, folder: Path) -> int:
    """Train one run; returns its exit code."""
    # Imported late, so that help and mistakes in a config need not wait for it.
    from train.loop import train
    from train.progress import Progress
    from train.run_directory import RunDirectory
    from train.signals import stop_on_signals
    from train.writers import has_trained

    run = RunDirectory(folder)
    saved = load(run.config_file, schema=FAMILIES) if run.exists() else None
    with stop_on_signals() as stop, Progress(bar=config.log.progress) as progress:
        task = None if saved is not None else config.make_task()
        if task is None:
            run.open(config, saved)
        else:
            run.open(config, None, task.save_assets)
        try:
            if task is None:
                task = config.make_task(run.assets)
            result = train(task, config, run, stop, progress)
        except UserError:
            if saved is None and not has_trained(run):
                run.discard()
            raise
        finally:
            run.close()
        progress.tell(f"{result.message} ({folder})")
    return int(result.outcome)


if __name__ == "__main__":
    sys.exit(main())
