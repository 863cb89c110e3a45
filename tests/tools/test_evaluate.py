"""The table of an evaluation, whatever its figures are."""

import pytest
from rich.console import Console

from tools.evaluate import figures_table

pytestmark = pytest.mark.fast

FIGURES = {
    "fid_digits": 12.3456,
    "kid_digits": 0.000123,
    "precision": 0.75,
    "recall": 0.5,
    "coverage": 0.625,
    "inception_score_digits": 8.125,
    "conditioning_accuracy": 0.9,
    "images": 50_000.0,
}
BASELINES = [
    {"name": "real images against real images (floor)", "fid_digits": 0.25, "kid_digits": -1.5e-5},
    {"name": "[bold]noise", "fid_digits": float("nan"), "conditioning_accuracy": 0.1},
]


def rows(figures, baselines=BASELINES, width=100):
    console = Console(width=width, highlight=False)
    with console.capture() as capture:
        console.print(figures_table("step 20", figures, baselines, width))
    return [line.rstrip() for line in capture.get().splitlines()]


def test_a_few_figures_stand_beside_each_other():
    few = {name: FIGURES[name] for name in ("fid_digits", "kid_digits")}
    head, model, floor, noise = rows(few)
    assert head.split() == ["model", "fid", "digits", "kid", "digits"]
    assert model.split() == ["step", "20", "12.3456", "1.23e-04"]
    assert floor.endswith("(floor)      0.2500   -1.50e-05")
    assert noise.split() == ["[bold]noise", "nan"]


@pytest.mark.parametrize("width", [80, 200])
def test_many_figures_stand_below_each_other(width):
    lines = rows(FIGURES, width=width)
    found = {line.rsplit("  ", 1)[0].split("  ")[0]: line.split() for line in lines}
    assert found["precision"] == ["precision", "0.7500"]
    assert found["images"] == ["images", "50,000"]
    assert found["fid digits"][2:] == ["12.3456", "0.2500", "nan"]
    assert found["kid digits"][2:] == ["1.23e-04", "-1.50e-05"]
    assert any("[bold]noise" in line for line in lines)
    assert max(map(len, lines)) <= width


def test_what_does_not_fit_beside_each_other_stands_below():
    few = {name: FIGURES[name] for name in list(FIGURES)[:5]}
    assert rows(few, width=60)[-1].split() == ["coverage", "0.6250"]
    assert len(rows(few, BASELINES[1:], width=100)) == 3
