"""The loop, on the toy task: trains, shards, saves, resumes with identical bits, guards."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest

from genjax.media import ImageSample
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


class Judged(Toy):
    """A task whose evaluations find what a list says."""

    def __init__(self, config, values):
        super().__init__(config)
        self.values = dict(zip(range(2, 100, 2), values, strict=False))

    def eval_step(self, state, batch):
        return state.carry, {"step": state.step}

    def combine(self, totals, sums):
        return sums

    def figures(self, sums):
        return {"score": self.values[int(sums["step"])]}


def judged(**changes):
    keeping = CheckpointConfig(every=100, keep_last=1, best_metric="score")
    settings = {"checkpoint": keeping, "evaluation": 2, "divergence_evaluations": 2}
    return config(**(settings | changes))


def test_a_figure_that_stays_far_worse_stops_the_run(tmp_path):
    settings = judged()
    values = [9.0, 4.0, 13.0, 5.0, 12.1, 13.0, 1.0, 1.0, 1.0, 1.0]
    result = run_toy(settings, tmp_path, task=Judged(settings, values))
    assert (result.outcome, result.step) == (Outcome.DIVERGED, 12)
    assert result.message.startswith("stopped at step 12: score is 13, over 3 times worse than")
    best = tmp_path / "checkpoints" / "4"
    assert f"the best checkpoint by score is step 4 ({best})" in result.message
    assert result.message.endswith("\nlower learning_rate and start in a new --workdir")
    assert sorted(int(path.name) for path in best.parent.iterdir()) == [4, 10]
    assert lines(tmp_path, "event")[-1]["message"] == result.message
    # The same command finds the same again.
    again = run_toy(settings, tmp_path, task=Judged(settings, values))
    assert (again.outcome, again.message) == (result.outcome, result.message)
    assert [line["score"] for line in lines(tmp_path, "validation")] == values[:6]


@pytest.mark.parametrize("stop_at", [9, 11])
def test_a_run_that_goes_on_judges_by_what_was_before(tmp_path, stop_at):
    settings = judged()
    values = [4.0, float("nan"), 5.0, 13.0, 14.0]
    first = run_toy(settings, tmp_path, task=Judged(settings, values), stop=StopAt(stop_at))
    assert first.outcome is Outcome.INTERRUPTED
    result = run_toy(settings, tmp_path, task=Judged(settings, values))
    assert (result.outcome, result.step) == (Outcome.DIVERGED, 10)
    assert "score is 14" in result.message and "its best 4" in result.message


def test_a_score_may_be_the_better_the_higher(tmp_path):
    settings = judged(
        checkpoint=CheckpointConfig(every=100, keep_last=1, best_metric="score", best_is="highest")
    )
    values = [1.0, 9.0, 8.0, 3.1, 2.9, 3.5, 2.9, 2.9, 8.0, 8.0]
    result = run_toy(settings, tmp_path, task=Judged(settings, values))
    assert (result.outcome, result.step) == (Outcome.DIVERGED, 16)
    assert "the best checkpoint by score is step 4" in result.message


class Draws(Toy):
    """A task with samples that are images: their pixels tell the step."""

    def samples(self, state, key):
        pixels = np.full((4, 4, 1), int(state.step), np.uint8)
        yield ImageSample(index=0, name="grid", image=pixels, caption={"what": "generated"})


def drawn(folder):
    """What the log says of samples, and the values of their pixels."""
    from PIL import Image

    entries = lines(folder, None, "samples.jsonl")
    return {
        entry["step"]: (entry["image"], int(np.asarray(Image.open(folder / entry["image"])).max()))
        for entry in entries
    }


def test_images_are_kept_of_every_step(tmp_path):
    settings = config(samples=5, evaluation=None)
    run_toy(settings, tmp_path, task=Draws(settings))
    assert drawn(tmp_path) == {
        step: (f"samples/{step:08d}/grid.png", step) for step in (5, 10, 15, 20)
    }


@pytest.mark.parametrize("step", [10, 20])
def test_samples_that_a_stop_left_out_are_made_up(tmp_path, step):
    """Stopped in the evaluation before them, in the middle and at the end of a run."""
    settings = config(samples=10)
    stop = StopAt(10**9)
    task = Draws(settings)

    class Watched(list):
        def __getitem__(self, index):
            if index == 4 and task.steps == step:
                stop.step = 0
            return super().__getitem__(index)

    evaluation = task.evaluation(None)
    evaluation = dataclasses.replace(evaluation, batches=Watched(evaluation.batches))
    task.evaluation = lambda shard: evaluation
    task.steps = 0
    variant = task.variant

    def counted(number):
        task.steps = number + 1
        return variant(number)

    task.variant = counted
    first = run_toy(settings, tmp_path, task=task, stop=stop)
    assert (first.outcome, first.step) == (Outcome.INTERRUPTED, step)
    assert step not in drawn(tmp_path)
    assert run_toy(settings, tmp_path, task=Draws(settings)).outcome is Outcome.FINISHED
    expected = {step: (f"samples/{step:08d}/grid.png", step) for step in (10, 20)}
    assert drawn(tmp_path) == expected
    assert [line["step"] for line in lines(tmp_path, "validation")] == [10, 20]
    # Nothing is owed any more.
    assert run_toy(settings, tmp_path, task=Draws(settings)).outcome is Outcome.FINISHED
    assert len(lines(tmp_path, None, "samples.jsonl")) == 2


@pytest.mark.parametrize("carry", [None, {}, {"seen": np.full(1, 7.0, np.float32)}])
def test_an_evaluation_starts_from_its_own_carry_or_the_states(tmp_path, carry):
    class Tells(Toy):
        def evaluation(self, shard):
            return dataclasses.replace(super().evaluation(shard), carry=carry)

        def eval_step(self, state, batch):
            return state.carry, {"seen": state.carry.get("seen", -jnp.ones(1))}

        def combine(self, totals, sums):
            return sums

        def figures(self, sums):
            return {"seen": float(sums["seen"][0])}

    settings = config(steps=3, evaluation=3)
    result = run_toy(settings, tmp_path, task=Tells(settings))
    expected = 3 * 16 if carry is None else 7.0 if carry else -1.0
    assert result.figures == {"seen": expected}
