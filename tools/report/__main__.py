"""Write the report of one run, or of several side by side, as one HTML file.

python -m tools.report runs/demo
python -m tools.report runs/sweep/* --output sweep.html
"""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from genjax.errors import UserError
from tools.report.page import page
from tools.runs import Run, read_run

REPORT = "report.html"


def output_path(runs: list[Run]) -> Path:
    """Where a report goes by default: into the run, or into the parent that the runs share.

    Raises:
        UserError: the runs share no folder but the root of the file system.
    """
    if len(runs) == 1:
        return runs[0].path / REPORT
    parent = Path(os.path.commonpath([run.path.parent for run in runs]))
    if parent == Path(parent.anchor):
        raise UserError("These runs share no folder. Say where the report goes: --output FILE.")
    return parent / REPORT


def write_report(paths: Sequence[str | Path], output: str | Path | None = None) -> Path:
    """Write the report of these run directories and return its path.

    A wildcard over a folder of runs also catches the report written there before: files called
    report.html are passed over.

    Raises:
        UserError: a folder is no run or has logged nothing yet, one is given twice, or the
            report cannot be written.
    """
    folders = [path for path in map(Path, paths) if not (path.is_file() and path.name == REPORT)]
    if not folders:
        raise UserError("No run given, only an earlier report. Name the directory of a run.")
    runs = [read_run(path) for path in folders]
    for index, run in enumerate(runs):
        if any(run.path == other.path for other in runs[:index]):
            raise UserError(f"{run.path}: given twice. Name every run once.")
    target = output_path(runs) if output is None else Path(output)
    document = page(runs)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(document, encoding="utf-8")
    except OSError as error:
        raise UserError(
            f"{target}: cannot be written ({error.strerror}). Choose another --output FILE."
        ) from error
    return target


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; 0 on success, 2 on a mistake that the user can put right."""
    parser = argparse.ArgumentParser(
        prog="python -m tools.report",
        description="Write the report of one run, or of several side by side, as one HTML file.",
    )
    parser.add_argument("runs", metavar="RUN", nargs="+", help="a run directory")
    parser.add_argument(
        "--output",
        metavar="FILE",
        help="where the report goes (default: report.html in the run, or in the runs' parent)",
    )
    options = parser.parse_args(arguments)
    try:
        print(write_report(options.runs, options.output))
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
