"""`python -m train CONFIG.toml [key=value ...]`: train a model, or go on where it stopped."""

import argparse
import logging
import sys
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

_DESCRIPTION = """\
Train the model of a config file. The same command on the same run directory goes on where it
stopped. key=value replaces a value of the file (optimizer.learning_rate=3e-4); key=a|b|c runs
each value in turn, several such keys every combination, each in its own run directory.

exit codes: 0 finished, 2 a mistake in the command, config or data, 3 diverged,
4 the last checkpoint could not be saved, 75 interrupted and saved (the same command goes on)."""


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
    for label, overrides in grid:
        config = load(options.config, overrides, debug=options.debug, schema=FAMILIES)
        folder = (
            root / ",".join(f"{key}={value}" for key, value in label.items()) if label else root
        )
        runs.append((folder, config))
    platform.start(runs[0][1].platform)
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

    run = RunDirectory(folder)
    saved = load(run.config_file, schema=FAMILIES) if run.exists() else None
    with stop_on_signals() as stop, Progress(bar=config.log.progress) as progress:
        task = None if saved is not None else config.make_task()
        run.open(config, saved)
        try:
            if task is None:
                task = config.make_task(run.assets)
            else:
                task.save_assets(run.assets)
            result = train(task, config, run, stop, progress)
        finally:
            run.close()
        progress.tell(f"{result.message} ({folder})")
    return int(result.outcome)


if __name__ == "__main__":
    sys.exit(main())
