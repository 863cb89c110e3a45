"""The guards: which values they let pass, and what they say of the others."""

import math

import pytest

from genjax.config import check
from genjax.errors import UserError
from genjax.run_config import CheckpointConfig
from genjax.text.language_modeling_config import LanguageModelingConfig
from tests.toy import ToyConfig
from train.guard import DivergenceGuard, FigureGuard

pytestmark = pytest.mark.fast

NAN = math.nan


def answers(values, *, patience=1, best_is="lowest"):
    """Whether the guard stops after each value, at 3 times worse."""
    guard = FigureGuard("fid", 3.0, patience, best_is)
    return [guard.problem(value) is not None for value in values]


def test_a_loss_is_measured_by_the_first():
    guard = DivergenceGuard(3.0)
    assert guard.problem({"loss": 2.0}) is None
    assert guard.problem({"loss": 6.0, "grad_norm": 1.0}) is None
    assert guard.problem({"loss": 6.1}) == "loss is 6.1, over 3 times the first 2"
    assert guard.problem({"discriminator_loss": 99.0, "generator_loss": -99.0}) is None
    assert guard.problem({"discriminator_loss": NAN}) == "discriminator_loss is nan"


@pytest.mark.parametrize(
    ("values", "stops"),
    [
        # Measured by the best so far, not by the first.
        ([90.0, 10.0, 30.0, 30.1], [False, False, False, True]),
        ([10.0, 29.0, 5.0, 15.0, 15.1], [False, False, False, False, True]),
        ([NAN], [True]),
        # Noise below zero is no measure, but it does not disarm the guard.
        ([0.4, -1e-5, 0.5, 1.3], [False, False, False, True]),
        ([-1e-5, 0.4, 1.3], [False, False, True]),
    ],
)
def test_a_figure_is_measured_by_its_best(values, stops):
    assert answers(values) == stops


def test_a_score_is_measured_the_other_way_round():
    assert answers([0.2, 0.6, 0.2, 0.19], best_is="highest") == [False, False, False, True]


def test_only_evaluations_in_a_row_count():
    values = [10.0, 31.0, 32.0, 29.0, 31.0, NAN, 50.0]
    assert answers(values, patience=3) == [False] * 6 + [True]


def test_it_says_what_it_compared():
    guard = FigureGuard("fid", 3.0, 2, "lowest")
    said = [guard.problem(value) for value in (10.0, 31.0, 50.0)]
    assert said[:2] == [None, None]
    assert said[2] == (
        "fid is 50, over 3 times worse than its best 10, as in each of the last 2 evaluations"
    )


def test_the_figure_to_judge_by_must_be_there():
    with pytest.raises(UserError, match=r"checkpoint\.best_metric, which is not set"):
        check({"divergence_evaluations": 2, "evaluation": 5}, ToyConfig)
    tree = {"divergence_evaluations": 2, "checkpoint": {"best_metric": "mean_squared_error"}}
    with pytest.raises(UserError, match="this config asks for none"):
        check(tree, ToyConfig)
    assert check(tree | {"evaluation": 5}, ToyConfig).divergence_evaluations == 2


def test_configs_from_before_the_fields_still_load():
    assert check({"checkpoint": {"best_metric": "loss"}}, ToyConfig).checkpoint == (
        CheckpointConfig(best_metric="loss", best_is="lowest")
    )


def test_the_advice_names_keys_that_a_config_has():
    advice = LanguageModelingConfig().divergence_advice()
    assert advice == "lower optimizer.learning_rate or optimizer.clip_norm"
    assert ToyConfig().divergence_advice() == "lower learning_rate"
