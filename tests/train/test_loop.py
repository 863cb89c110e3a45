"""The loop, on the toy task: trains, shards, saves, resumes with identical bits, guards."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest

from genjax.parallel.mesh import MeshConfig
from genjax.run_config import CheckpointConfig, LogConfig
from tests.toy import Toy, ToyConfig
from tests.train.running import StopAt, arrays, lines, run_toy
from train.loop import Outcome

ONE = MeshConfig(data=1)


def config(**changes):
    settings = {
        "steps": 20,
        "mesh": ONE,
        "checkpoint": CheckpointConfig(every=5),
        "log": LogConfig(every=1),
        "evaluation": 10,
    }
    return ToyConfig(**(settings | changes))


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    folder = tmp_path_factory.mktemp("straight")
    return folder, run_toy(config(), folder)


def losses(folder):
    return {line["step"]: line["loss"] for line in lines(folder, "train")}


def test_trains_and_evaluates(straight):
    folder, result = straight
    assert result.outcome is Outcome.FINISHED and result.step == 20
    curve = losses(folder)
    assert sorted(curve) == list(range(1, 21))
    assert curve[20] < 0.3 * curve[1]
    validation = lines(folder, "validation")
    assert [line["step"] for line in validation] == [10, 20]
    assert validation[-1]["protocol"] == "ten batches"
    assert result.figures["mean_squared_error"] == validation[-1]["mean_squared_error"]


def test_carry_counts_examples_and_variants_are_used(straight):
    folder, _ = straight
    named, position = arrays(folder, config())
    assert named["carry/seen"] == [20 * 16]
    assert position == {"next_index": 20}


@pytest.mark.parametrize("stop_at", [3, 5, 7])
def test_stopped_and_resumed_equals_straight(straight, tmp_path, stop_at):
    folder, _ = straight
    first = run_toy(config(), tmp_path, stop=StopAt(stop_at))
    assert first.outcome is Outcome.INTERRUPTED and "SIGTERM" in first.message
    second = run_toy(config(), tmp_path)
    assert second.outcome is Outcome.FINISHED
    assert losses(tmp_path) == losses(folder)
    expected, position = arrays(folder, config())
    found, found_position = arrays(tmp_path, config())
    assert found_position == position
    for name in expected:
        np.testing.assert_array_equal(found[name], expected[name], err_msg=name)


def test_stop_during_an_evaluation_still_evaluates_when_resumed(straight, tmp_path):
    class StopInEvaluation(Toy):
        def figures(self, sums):
            raise AssertionError("the evaluation was to be interrupted")

    stop = StopAt(10**9)
    task = StopInEvaluation(config())
    batches = task.evaluation(None).batches

    class Watched(list):
        def __getitem__(self, index):
            if index == 4:
                stop.step = 0
            return super().__getitem__(index)

    evaluation = dataclasses.replace(task.evaluation(None), batches=Watched(batches))
    task.evaluation = lambda shard: evaluation
    first = run_toy(config(), tmp_path, task=task, stop=stop)
    assert (first.outcome, first.step) == (Outcome.INTERRUPTED, 10)
    run_toy(config(), tmp_path)
    folder, _ = straight
    assert lines(tmp_path, "validation") == lines(folder, "validation")


def test_finished_run_says_so(straight):
    folder, _ = straight
    result = run_toy(config(), folder)
    assert result.outcome is Outcome.FINISHED
    assert "all 20 steps are done" in result.message
    assert sorted(losses(folder)) == list(range(1, 21))


@pytest.mark.parametrize(
    "mesh",
    [MeshConfig(data=8), MeshConfig(data=2, fsdp=4), MeshConfig(data=2, tensor=2, sequence=2)],
)
def test_sharded_run_equals_one_device_to_rounding(straight, tmp_path, mesh):
    folder, _ = straight
    run_toy(config(mesh=mesh), tmp_path)
    expected, found = losses(folder), losses(tmp_path)
    np.testing.assert_allclose(list(found.values()), list(expected.values()), rtol=2e-4)


def test_resumes_on_another_mesh(straight, tmp_path):
    folder, _ = straight
    run_toy(config(mesh=MeshConfig(data=2, fsdp=4)), tmp_path, stop=StopAt(8))
    result = run_toy(config(), tmp_path)
    assert result.outcome is Outcome.FINISHED
    found, expected = losses(tmp_path), losses(folder)
    np.testing.assert_allclose(found[20], expected[20], rtol=2e-3)


def test_nan_stops_and_names_the_last_good_checkpoint(tmp_path):
    class Breaks(Toy):
        def train_step(self, state, batch, variant=None):
            new, metrics = super().train_step(state, batch, variant)
            bad = jnp.where(state.step >= 7, jnp.nan, 1.0)
            return new, metrics | {"loss": metrics["loss"] * bad}

    result = run_toy(config(), tmp_path, task=Breaks(config()))
    assert result.outcome is Outcome.DIVERGED
    assert "loss is nan" in result.message
    assert f"step 5 ({tmp_path / 'checkpoints' / '5'})" in result.message
    assert sorted(int(path.name) for path in (tmp_path / "checkpoints").iterdir()) == [5]


def test_divergence_stops(tmp_path):
    result = run_toy(config(learning_rate=1e3), tmp_path)
    assert result.outcome is Outcome.DIVERGED
    assert "times the first" in result.message


def test_keeps_last_best_and_every(tmp_path):
    class Worsens(Toy):
        def figures(self, sums):
            return {"mean_squared_error": float(sums["count"])}

        def eval_step(self, state, batch):
            return state.carry, {"count": jnp.abs(state.step - 4.0)}

    keeping = CheckpointConfig(
        every=100, keep_last=1, keep_every=8, best_metric="mean_squared_error"
    )
    settings = config(checkpoint=keeping, evaluation=2)
    run_toy(settings, tmp_path, task=Worsens(settings))
    kept = sorted(int(path.name) for path in (tmp_path / "checkpoints").iterdir())
    assert kept == [4, 8, 16, 20]
