"""`python -m tools.checkpoint RUN [list|verify|prune|export]`: the checkpoints of a run.

list shows them, verify reads every array and compares it with its checksum, prune deletes, export
writes parameters as a safetensors file. No accelerator and none of the run's data is needed.
`RUN ACTION --help` tells an action's options.
"""

import argparse
import importlib.metadata
import json
import math
import sys
import time
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import jax
import numpy as np
from rich.console import Console
from rich.table import Table
from rich.text import Text

from genjax.config import dump
from genjax.errors import UserError
from genjax.parallel import platform
from genjax.run_config import CheckpointConfig, RunConfig
from tools.trained import chosen_step, run_config
from train.checkpoint import Checkpoints
from train.checkpoint_files import CorruptCheckpointError
from train.run_directory import RunDirectory
from train.storage_errors import reason


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    parser = _parser()
    options = parser.parse_args(arguments)
    action = options.action or "list"
    if options.json and action != "list":
        parser.error(f"--json belongs to list, not to {action}")
    # Whoever trains here may hold the accelerator.
    jax.config.update("jax_platforms", "cpu")
    run = RunDirectory(options.run)
    try:
        config = run_config(options.run)
        platform.start(config.platform)
        if action == "prune" and options.yes:
            _lock(run)
        with closing(Checkpoints(run.checkpoints)) as checkpoints:
            match action:
                case "verify":
                    return 1 if verify(checkpoints, config, options.step) else 0
                case "prune":
                    prune(checkpoints, config, options)
                case "export":
                    export(checkpoints, config, options.step, options.output, options.content)
                case _:
                    show(checkpoints, config.checkpoint, as_json=options.json)
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    finally:
        run.close()
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m tools.checkpoint",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("run", type=Path, metavar="RUN", help="run directory")
    parser.add_argument("--json", action="store_true", help="list: as JSON")
    actions = parser.add_subparsers(dest="action", title="actions")

    listing = actions.add_parser("list", help="what there is, and why it is kept (the default)")
    # Without a default of its own, or it would take back what stands before the action.
    listing.add_argument("--json", action="store_true", default=argparse.SUPPRESS, help="as JSON")

    checking = actions.add_parser(
        "verify", help="compare every array with its checksum; exit code 1 if one is damaged"
    )
    checking.add_argument("--step", help='only this checkpoint: "newest", "best" or a step')

    pruning = actions.add_parser("prune", help="delete checkpoints, never the newest intact one")
    which = pruning.add_mutually_exclusive_group(required=True)
    which.add_argument("--keep", type=int, metavar="N", help="keep the N newest")
    which.add_argument("--before", type=int, metavar="STEP", help="delete those before this step")
    pruning.add_argument(
        "--keep-best", action="store_true", help="also keep the best by checkpoint.best_metric"
    )
    pruning.add_argument("--yes", action="store_true", help="delete, instead of telling what would")

    exporting = actions.add_parser("export", help="write a safetensors file")
    exporting.add_argument(
        "--step", default="newest", help='checkpoint: "newest" (default), "best" or a step'
    )
    exporting.add_argument(
        "--output", type=Path, required=True, metavar="FILE", help="the new file"
    )
    content = exporting.add_mutually_exclusive_group()
    for name, text in {
        "params": "the parameters as trained (default: averaged where there is an average)",
        "ema": "the averages alone",
        "all": "the whole state, with the optimizer's, under params/, ema/, opt_state/, ...",
    }.items():
        content.add_argument(
            f"--{name}", dest="content", action="store_const", const=name, help=text
        )
    exporting.set_defaults(content="evaluation")
    return parser


# ---- list ----------------------------------------------------------------------------------------


def show(checkpoints: Checkpoints, keeping: CheckpointConfig, *, as_json: bool) -> None:
    """Print the checkpoints of a run, oldest first."""
    damaged = sorted(path.name for path in (checkpoints.folder.parent / "damaged").glob("*"))
    rows = described(checkpoints, keeping)
    if as_json:
        print(json.dumps({"checkpoints": rows, "set_aside": damaged}, indent=2))
        return
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("step", justify="right")
    table.add_column("written", no_wrap=True)
    table.add_column("size", justify="right", no_wrap=True)
    table.add_column("kept as", no_wrap=True)
    table.add_column("evaluation", overflow="fold")
    for row in rows:
        figures = "  ".join(
            f"{name} {value if isinstance(value, str) else format(value, '.5g')}"
            for name, value in row["figures"].items()
        )
        when = row["written"][:16].replace("T", " ")
        kept = ", ".join(row["kept"])
        table.add_row(str(row["step"]), when, size_text(row["bytes"]), kept, Text(figures))
    if rows:
        Console(highlight=False).print(table)
    else:
        print("no checkpoint yet")
    if damaged:
        print(f"set aside as damaged, in {checkpoints.folder.parent / 'damaged'}: ", end="")
        print(", ".join(damaged))


def described(checkpoints: Checkpoints, keeping: CheckpointConfig) -> list[dict[str, Any]]:
    """What there is to say of each checkpoint, oldest first.

    Returns:
        For each its "step", when it was "written" (ISO 8601), its "bytes" on disk, the "figures"
        of the evaluation at that step (empty if there was none; "nan" and "inf" as text) and what
        it is "kept" as: "last", "best", "every N".
    """
    steps = checkpoints.steps()
    best = None
    if keeping.best_metric is not None:
        best = checkpoints.best(keeping.best_metric, keeping.best_is)
    rows = []
    for step in steps:
        try:
            written, size = checkpoints.written(step), _bytes(checkpoints, step)
        except FileNotFoundError:
            # The training that goes on has just deleted it.
            continue
        every = keeping.keep_every
        reasons = {
            "last": step in steps[-keeping.keep_last :],
            "best": step == best,
            f"every {every}": every is not None and step % every == 0,
        }
        rows.append(
            {
                "step": step,
                "written": time.strftime("%Y-%m-%dT%H:%M:%S%z", time.localtime(written)),
                "bytes": size,
                "figures": {
                    name: value if math.isfinite(value) else str(value)
                    for name, value in checkpoints.figures(step).items()
                },
                "kept": [name for name, holds in reasons.items() if holds],
            }
        )
    return rows


def _bytes(checkpoints: Checkpoints, step: int) -> int:
    files = (checkpoints.folder / str(step)).rglob("*")
    return sum(file.stat().st_size for file in files if file.is_file())


def size_text(count: int) -> str:
    """A number of bytes with three digits, such as 1.25 MB."""
    value, unit = float(count), 0
    while value >= 999.5 and unit < 4:
        value, unit = value / 1000, unit + 1
    return f"{value:.3g} {('B', 'kB', 'MB', 'GB', 'TB')[unit]}"


# ---- verify --------------------------------------------------------------------------------------


def verify(checkpoints: Checkpoints, config: RunConfig, step: str | None) -> list[int]:
    """Compare every array of the checkpoints with its checksum, and print what is damaged.

    Args:
        checkpoints: those of a run; they are not changed.
        config: the run's config.
        step: one of them, as `--step` names it, or None for all.

    Returns:
        The steps of damaged checkpoints.

    Raises:
        UserError: there is no such checkpoint.
    """
    steps = _some(checkpoints)
    if step is not None:
        number = chosen_step(checkpoints, config, step)
        steps = [steps[-1] if number is None else number]
    damaged = []
    for number in steps:
        problems = checkpoints.files.problems(number)
        if problems and not (checkpoints.folder / str(number)).exists():
            print(f"step {number}: deleted meanwhile")
        elif problems:
            damaged.append(number)
            print(f"step {number}: DAMAGED", *problems, sep="\n  ", flush=True)
        else:
            print(
                f"step {number}: intact, {len(checkpoints.files.names(number))} arrays", flush=True
            )
    if damaged:
        print(f"{len(damaged)} of {len(steps)} checkpoints damaged")
    return damaged


def _some(checkpoints: Checkpoints) -> list[int]:
    steps = checkpoints.steps()
    if not steps:
        raise UserError(f"{checkpoints.folder} holds no checkpoint yet; train longer")
    return steps


# ---- prune ---------------------------------------------------------------------------------------


def _lock(run: RunDirectory) -> None:
    """Keep the run from being trained, before anything is looked at."""
    try:
        run.lock("wait for it, or stop it first")
    except OSError as error:
        raise UserError(f"{run.folder}: cannot be changed ({error.strerror})") from error


def prune(checkpoints: Checkpoints, config: RunConfig, options: argparse.Namespace) -> None:
    """Delete checkpoints, or tell which would be without `--yes`.

    Args:
        checkpoints: those of a run that is not being trained.
        config: the run's config.
        options: "keep" or "before", "keep_best" and "yes" of the command line.

    Raises:
        UserError: no checkpoint is intact, there is no best one, or the files cannot be changed.
    """
    if options.keep is not None and options.keep < 1:
        raise UserError(f"--keep {options.keep}: at least one checkpoint stays; give 1 or more")
    doomed = _doomed(checkpoints, config, options)
    try:
        total = sum(_bytes(checkpoints, step) for step in doomed)
        for step in doomed:
            if options.yes:
                checkpoints.delete(step)
            print(f"{'deleted' if options.yes else 'would delete'} step {step}", flush=True)
    except OSError as error:
        raise UserError(
            f"{error.filename or checkpoints.folder}: cannot be changed ({error.strerror})"
        ) from error
    what = f"{len(doomed)} checkpoint{'' if len(doomed) == 1 else 's'}, {size_text(total)}"
    if not doomed:
        print("nothing to delete")
    else:
        print(f"{what} freed" if options.yes else f"{what}; add --yes to delete")


def _doomed(checkpoints: Checkpoints, config: RunConfig, options: argparse.Namespace) -> list[int]:
    """The steps to delete, oldest first."""
    steps = _some(checkpoints)
    if options.keep is not None:
        doomed = steps[: -options.keep]
    else:
        doomed = [step for step in steps if step < options.before]
    if options.keep_best:
        metric = config.checkpoint.best_metric
        best = checkpoints.best(metric, config.checkpoint.best_is) if metric else None
        if best is None:
            raise UserError(
                "--keep-best: no checkpoint was saved with a figure of checkpoint.best_metric "
                f"({metric or 'not set'}); leave --keep-best out"
            )
        doomed = [step for step in doomed if step != best]
    if not doomed:
        return []
    for step in reversed(steps):
        problems = checkpoints.files.problems(step)
        if not problems:
            if step in doomed:
                print(f"step {step} stays: it is the newest intact one")
            return [one for one in doomed if one != step]
        print(f"step {step} is damaged: {problems[0]}", file=sys.stderr)
    raise UserError(f"{checkpoints.folder}: no checkpoint is intact, so none is deleted")


# ---- export --------------------------------------------------------------------------------------


def export(
    checkpoints: Checkpoints, config: RunConfig, step: str, output: Path, content: str
) -> None:
    """Write arrays of a checkpoint as a safetensors file.

    The arrays have their "/"-joined paths as names: of parameters from the network's name on, of
    a whole state from its field on. The file's metadata are texts: "config" (the run's, as TOML),
    "kind", "step", "content" and "genjax_version".

    Args:
        checkpoints: those of the run.
        config: the run's config.
        step: which one, as `--step` names it; "newest" passes over damaged ones.
        output: the new file.
        content: "evaluation" (averages where there are some, as evaluations use), "params", "ema"
            or "all".

    Raises:
        UserError: safetensors is not installed, the checkpoint is not there or damaged, it has
            none of these arrays, or the file cannot be written.
    """
    try:
        from safetensors import SafetensorError
        from safetensors.numpy import save_file
    except ImportError as error:
        raise UserError(
            "export needs the `safetensors` library, which is not installed.\n"
            "Install it: pip install 'genjax[export]'"
        ) from error
    if output.exists() or not output.parent.is_dir():
        what = "exists already" if output.exists() else f"there is no folder {output.parent}"
        raise UserError(f"--output {output}: {what}; choose another name")
    steps = _some(checkpoints)
    chosen = chosen_step(checkpoints, config, step)
    arrays: dict[str, np.ndarray] | None = None
    number = steps[-1]
    for number in reversed(steps) if chosen is None else [chosen]:
        try:
            arrays = _read(checkpoints, number, content)
            break
        except CorruptCheckpointError as error:
            print(f"the checkpoint of step {number} is damaged: {error}", file=sys.stderr)
    if arrays is None:
        raise UserError("nothing is exported; `verify` tells all that is damaged")
    metadata = {
        "config": dump(config),
        "kind": str(getattr(config, "kind", "")),
        "step": str(number),
        "content": content,
        "genjax_version": _version(),
    }
    part = output.with_name(f"{output.name}.part")
    try:
        part.touch()
        # The library makes a new file that nobody else may read.
        mode = part.stat().st_mode
        save_file(arrays, part, metadata)
        part.chmod(mode)
        part.replace(output)
    except (SafetensorError, OSError) as error:
        part.unlink(missing_ok=True)
        raise UserError(f"--output {output}: cannot be written ({reason(error)})") from error
    count = sum(array.size for array in arrays.values())
    print(
        f"{output}: step {number}, {len(arrays)} arrays, {count:,} values, "
        f"{size_text(output.stat().st_size)}"
    )


def _read(checkpoints: Checkpoints, step: int, content: str) -> dict[str, np.ndarray]:
    """The arrays to export, by their names in the file, each compared with its checksum."""
    arrays = {}
    for path, array, problem in checkpoints.files.read_arrays(
        step, _chosen(checkpoints, step, content)
    ):
        if problem:
            raise CorruptCheckpointError(problem)
        # The file takes bytes in the order of the rows; this keeps scalars scalars.
        name = path if content == "all" else path.partition("/")[2]
        arrays[name] = np.asarray(array, order="C")
    return arrays


def _chosen(checkpoints: Checkpoints, step: int, content: str) -> list[str]:
    """The paths in the train state of what is exported."""
    names = checkpoints.files.names(step)
    if content == "all":
        return names
    averaged = {name.split("/")[1] for name in names if name.startswith("ema/")}
    if content == "ema" and not averaged:
        raise UserError("--ema: the run keeps no averages of its parameters; leave it out")
    chosen = []
    for name in names:
        field, _, rest = name.partition("/")
        network = rest.partition("/")[0]
        as_evaluated = "ema" if network in averaged else "params"
        wanted = as_evaluated if content == "evaluation" else content
        if field == wanted and field in ("params", "ema"):
            chosen.append(name)
    return chosen


def _version() -> str:
    try:
        return importlib.metadata.version("genjax")
    except importlib.metadata.PackageNotFoundError:
        return "not installed as a package"


if __name__ == "__main__":
    sys.exit(main())
