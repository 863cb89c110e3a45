"""`python -m tools.evaluate RUN [key=value ...]`: measure a trained model on a whole split.

key=value replaces a value of the run's config below `evaluation` or `data.source`, such as
evaluation.protocol=sliding or data.source.path=other.txt; a|b measures each in turn. The figures
are printed with their protocol, beside those of trivial models, and added to evaluations.jsonl.
Of another data.source the part kept for validation is measured (all of a validation_path), and the
trivial models are counted on the rest.
"""

import argparse
import json
import sys
import time
from collections.abc import Sequence
from typing import Any

import jax
from rich.console import Console
from rich.table import Table
from rich.text import Text

from genjax.config import expand
from genjax.errors import UserError
from genjax.task import Shard
from tools.trained import Trained, add_run_arguments, load_trained, run_config
from train.evaluate import Evaluator

_ALLOWED = ("evaluation.", "data.source.")
_MANY = 6
"""More figures than this stand below each other, a column for each model."""
_COLUMN = 10
"""Letters of the widest numbers, such as 1,000,000."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m tools.evaluate",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_run_arguments(parser)
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    options = parser.parse_intermixed_args(arguments)
    try:
        for override in options.overrides:
            if not override.startswith(_ALLOWED):
                raise UserError(
                    f"{override}: an evaluation can change {' and '.join(_ALLOWED)}* only; "
                    "the rest belongs to the run"
                )
        for _, overrides in expand(options.overrides):
            config = run_config(options.run, overrides)
            evaluate(load_trained(options.run, config, options.step), overrides)
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    return 0


def evaluate(trained: Trained, overrides: dict[str, Any]) -> dict[str, Any]:
    """Measure one protocol, print it, and add it to the run's evaluations.

    Args:
        trained: the model, with the config to measure it by.
        overrides: what differs from the run's own config, for the record.

    Raises:
        UserError: the family has no evaluation, or its data does not fit.
    """
    evaluation = trained.task.evaluation(Shard())
    if evaluation is None:
        raise UserError(f"{trained.run.folder}: models of this kind have no evaluation")
    began = time.perf_counter()
    with jax.set_mesh(trained.mesh):
        figures = Evaluator(trained.task, trained.mesh)(trained.state, evaluation)
    seconds = time.perf_counter() - began
    baselines = trained.task.baselines()
    _print(trained, evaluation.name, evaluation.protocol, figures, baselines, seconds)
    record = {
        "step": trained.step,
        "name": evaluation.name,
        "protocol": evaluation.protocol,
        **figures,
        "baselines": baselines,
        "overrides": overrides,
    }
    path = trained.run.folder / "evaluations.jsonl"
    try:
        with path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")
    except OSError as error:
        raise UserError(
            f"{path} cannot be written ({error.strerror}); the figures stand above"
        ) from error
    return figures


def _print(
    trained: Trained,
    name: str,
    protocol: str,
    figures: dict[str, float],
    baselines: list[dict[str, Any]],
    seconds: float,
) -> None:
    console = Console(highlight=False)
    console.print(f"{trained.run.folder}, {name}: {protocol} ({seconds:.1f} s)", markup=False)
    console.print(figures_table(f"step {trained.step}", figures, baselines, console.width))


def figures_table(
    model: str, figures: dict[str, float], baselines: Sequence[dict[str, Any]], width: int
) -> Table:
    """The figures of a model above those of trivial ones, or beside them where they are many.

    Args:
        model: what the model is called.
        figures: its figures; those alone are shown.
        baselines: trivial models, each with its "name" and those of the figures that it has.
        width: columns of the terminal.
    """
    rows = [{"name": model, **figures}, *baselines]
    titles = [figure.replace("_", " ") for figure in figures]
    table = Table(box=None, pad_edge=False, header_style="bold")
    needed = max(len(str(row["name"])) for row in rows) + sum(
        max(_COLUMN, max(map(len, title.split()), default=0)) + 2 for title in titles
    )
    if len(figures) <= _MANY and needed <= width:
        table.add_column("model", overflow="fold")
        for title in titles:
            table.add_column(title, justify="right", min_width=_COLUMN)
        for row in rows:
            values = [_number(row.get(figure)) for figure in figures]
            table.add_row(Text(str(row["name"])), *values)
        return table
    table.add_column("figure", overflow="fold")
    for row in rows:
        table.add_column(Text(str(row["name"])), justify="right", min_width=_COLUMN)
    for figure, title in zip(figures, titles, strict=True):
        table.add_row(Text(title), *(_number(row.get(figure)) for row in rows))
    return table


def _number(value: float | None) -> str:
    """Counts whole; small numbers with three digits that say something, others four decimals."""
    if value is None:
        return ""
    if float(value).is_integer() and abs(value) > 1e3:
        return f"{value:,.0f}"
    return f"{value:.2e}" if 0 < abs(value) < 1e-3 else f"{value:.4f}"


if __name__ == "__main__":
    sys.exit(main())
