"""The task of predicting frames: what it trains, measures and refuses."""

import dataclasses
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from pydantic import ValidationError

from genjax.data.clip_source import ENDLESS
from genjax.errors import UserError
from genjax.task import Shard
from tests.video.small_predictions import CONDITIONINGS, MODELS, configured, task_of

QUICK = {("convlstm", "predict"), ("convlstm", "interpolate"), ("convlstm", "inpaint")}
EVERYTHING = [
    pytest.param(*names, marks=[] if names in QUICK else pytest.mark.slow)
    for names in itertools.product(MODELS, CONDITIONINGS)
]


def batch_of(task, count=4, split="train"):
    return dict(task.source.splits[split].read(np.arange(count)))


@functools.cache
def plain():
    """The task of the smallest config, its first state and its compiled step."""
    task = task_of(optimizer={"kind": "adamw", "learning_rate": 0.02}, steps=60)
    return task, jax.jit(task.init)(jax.random.key(0)), jax.jit(task.train_step)


def forward(task, state, *arguments):
    """The network's predictions of all frames."""
    variables = {"params": state.params["predictor"]}
    return jax.jit(task.network.apply)(variables, *arguments)


def states(task, steps=3):
    """The state after some steps, and the metrics of each."""
    state, found = jax.jit(task.init)(jax.random.key(0)), []
    step = jax.jit(task.train_step)
    for number in range(steps):
        state, metrics = step(state, task.dataset("train", Shard())[number])
        found.append({name: float(value) for name, value in metrics.items()})
    return state, found


@pytest.mark.parametrize(("model", "conditioning"), EVERYTHING)
def test_every_model_trains_and_is_measured_on_every_task(model, conditioning):
    task = task_of(model, conditioning)
    state, metrics = states(task, 2)
    assert all(np.isfinite(list(found.values())).all() for found in metrics)
    grads = {name: found["grad_norm"] for name, found in enumerate(metrics)}
    assert min(grads.values()) > 0
    evaluation = task.evaluation(Shard())
    totals, step = None, jax.jit(task.eval_step)
    for number in range(len(evaluation.batches)):
        _, sums = step(state, evaluation.batches[number])
        totals = task.combine(totals, jax.tree.map(np.asarray, sums))
    figures = task.figures(totals)
    assert figures["clips"] == 6 and np.isfinite(list(figures.values())).all()
    unknown = 3 if conditioning != "interpolate" else 2
    assert f"openstl_mse_frame_{unknown:02}" in figures
    assert f"openstl_mse_frame_{unknown + 1:02}" not in figures


@pytest.mark.parametrize(("model", "conditioning"), EVERYTHING)
def test_predictions_do_not_look_at_what_is_unknown(model, conditioning):
    task = task_of(model, conditioning)
    state = jax.jit(task.init)(jax.random.key(1))
    variables = task._variables(state)
    clips = jnp.asarray(task.source.clips("train", np.arange(2)), jnp.float32) / 255
    key, numbers = jax.random.key(2), jnp.arange(2)
    known = task.conditioning.mask(key, numbers, clips.shape[2:4])
    mask = task.view.mask(key, numbers, clips.shape[2:4])
    clips, known = np.asarray(clips), np.asarray(known)
    complete = jax.jit(task.view.complete)
    whole = complete(variables, clips, mask)
    hidden = complete(variables, np.where(known > 0, clips, np.float32(np.nan)), mask)
    np.testing.assert_array_equal(whole, hidden)
    np.testing.assert_array_equal(np.where(known > 0, whole, 0), np.where(known > 0, clips, 0))
    # And they do look at what is known.
    other = complete(variables, np.where(known > 0, 1 - clips, clips), mask)
    assert not np.allclose(np.where(known > 0, 0, whole), np.where(known > 0, 0, other))


def test_the_loss_is_the_weighted_sum_of_errors_of_all_next_frames():
    task = task_of(objective={"l1": 0.5, "l2": 2.0})
    _, state, _ = plain()
    batch = batch_of(task)
    clips = np.asarray(jax.jit(task.source.render)(batch), np.float64) / 255
    _, metrics = jax.jit(task.train_step)(state, batch)
    predicted = forward(task, state, jnp.asarray(clips, jnp.float32))
    error = np.asarray(predicted, np.float64)[:, 1:] - clips[:, 1:]
    expected = 0.5 * np.abs(error).mean() + 2 * (error**2).mean()
    assert float(metrics["loss"]) == pytest.approx(expected, rel=1e-5)
    # Without the known frames only the last three.
    task = task_of(objective={"known_frames": False})
    _, metrics = jax.jit(task.train_step)(state, batch)
    assert float(metrics["loss"]) == pytest.approx((error[:, 2:] ** 2).mean(), rel=1e-5)


@pytest.mark.slow
def test_structural_similarity_is_a_loss_too():
    task, state, step = plain()
    similar = task_of(objective={"ssim": 1.0})
    _, pixels = step(state, batch_of(task))
    _, both = jax.jit(similar.train_step)(state, batch_of(task))
    assert 0 < both["loss"] - pixels["loss"] < 2
    assert both["grad_norm"] != pixels["grad_norm"]


def test_holes_are_trained_where_they_are():
    task = task_of("convlstm", "inpaint")
    state = jax.jit(task.init)(jax.random.key(0))
    batch = batch_of(task)
    _, metrics = jax.jit(task.train_step)(state, batch)
    clips = jnp.asarray(jax.jit(task.source.render)(batch), jnp.float32) / 255
    # The mask that the step drew, by its own keys.
    _, mask_key, _ = jax.random.split(state.step_key(), 3)
    mask = task.view.mask(mask_key, jnp.arange(len(clips)), clips.shape[2:4])
    predicted = forward(task, state, clips, mask)
    hole = np.broadcast_to(np.asarray(mask) == 0, clips.shape)
    expected = (np.asarray(predicted - clips, np.float64)[hole] ** 2).mean()
    assert float(metrics["loss"]) == pytest.approx(expected, rel=1e-4)


@pytest.mark.slow
def test_scheduled_sampling_makes_the_task_easier_at_first_and_the_same_at_last():
    task, state, step = plain()
    sampled = task_of(sampling={"kind": "scheduled", "steps": 2})
    batch = batch_of(task)
    # So that what is fed back differs from the truth.
    params = dict(state.params["predictor"])
    params["output_kernel"] = 5 * np.asarray(params["output_kernel"])
    state = dataclasses.replace(state, params={"predictor": params})
    _, alone = step(state, batch)
    sampled_step = jax.jit(sampled.train_step)
    _, fed = sampled_step(state, batch)
    assert float(fed["truth_probability"]) == 1.0
    clips = np.float32(jax.jit(task.source.render)(batch)) / 255
    forced = forward(task, state, clips, None, np.ones((4, 2), bool))
    expected = np.mean((np.asarray(forced) - clips)[:, 1:] ** 2)
    assert float(fed["loss"]) == pytest.approx(expected, rel=1e-5)
    assert float(fed["loss"]) != pytest.approx(float(alone["loss"]), rel=1e-3)
    late = dataclasses.replace(state, step=np.int32(2))
    _, after = sampled_step(late, batch)
    assert float(after["truth_probability"]) == 0.0
    assert float(after["loss"]) == pytest.approx(float(alone["loss"]), rel=1e-6)


def test_parts_of_a_batch_add_up():
    task, state, step = plain()
    parts = task_of(optimizer={"kind": "adamw", "learning_rate": 0.02, "accumulate": 2}, steps=60)
    _, expected = step(state, batch_of(task))
    _, found = jax.jit(parts.train_step)(state, batch_of(task))
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, rtol=1e-4, err_msg=name)


@pytest.mark.slow
def test_parts_of_a_batch_share_batch_statistics():
    # Each half is normalised by itself, so the losses are only about the same.
    whole, parts = (
        states(task_of("simvp", optimizer={"kind": "sgd", "accumulate": count}), 1)
        for count in (1, 2)
    )
    assert parts[1][0]["loss"] == pytest.approx(whole[1][0]["loss"], rel=0.05)
    for one, other in zip(*(jax.tree.leaves(s[0].carry) for s in (whole, parts)), strict=True):
        np.testing.assert_allclose(one, other, rtol=0.5, atol=0.05)


def test_a_network_learns():
    task, state, step = plain()
    losses = []
    for number in range(60):
        state, metrics = step(state, task.dataset("train", Shard())[number])
        losses.append(float(metrics["loss"]))
    assert np.mean(losses[-5:]) < 0.7 * losses[0]


@pytest.mark.parametrize(
    "model",
    ["convlstm", *(pytest.param(name, marks=pytest.mark.slow) for name in ("predrnn", "simvp"))],
)
def test_roll_outs_longer_than_trained(model):
    short, long = task_of(model), task_of(model, evaluation={"future": 8})
    state = jax.jit(short.init)(jax.random.key(0))
    clips = np.float32(long.evaluation_source.clips("validation", np.arange(2))) / 255
    numbers = jnp.arange(2)
    variables = short._variables(state)
    predict = jax.jit(short._predictions)
    first = predict(variables, clips[:, :6], numbers)
    whole = jax.jit(long._predictions)(variables, clips, numbers)
    assert whole.shape[1] == 3 + 8
    # Training goes on with clips of its own length.
    assert long.source.clip_shape[0] == 6
    np.testing.assert_allclose(whole[:, :6], first, rtol=1e-5, atol=1e-6)
    assert np.isfinite(whole).all()
    if model == "simvp":
        # Its second window begins with what it predicted in the first.
        again = predict(
            variables, np.concatenate([first[:, 3:], np.zeros_like(first[:, 3:])], 1), numbers
        )
        np.testing.assert_allclose(whole[:, 6:9], again[:, 3:], rtol=1e-5, atol=1e-6)
    _, sums = jax.jit(long.eval_step)(state, long.evaluation(Shard()).batches[0])
    assert sums["mse"].shape == (8,)


def test_trivial_predictions_stand_beside():
    task = task_of(evaluation={"count": 5})
    table = {row.pop("name"): row for row in task.baselines()}
    assert set(table) == {"black frame", "mean image", "mean of known", "copy last"}
    clips = task.source.clips("validation", task.evaluation(Shard()).batches.order)
    truth = clips[:, 3:].astype(np.float64) / 255
    assert table["black frame"]["openstl_mse"] == pytest.approx(
        (truth**2).sum((2, 3, 4)).mean(), rel=1e-5
    )
    last = clips[:, 2:3].astype(np.float64) / 255
    assert table["copy last"]["openstl_mae"] == pytest.approx(
        np.abs(truth - last).sum((2, 3, 4)).mean(), rel=1e-5
    )
    assert all(row["clips"] == 5 for row in table.values())
    between = {row["name"] for row in task_of("convlstm", "interpolate").baselines()}
    assert between == {"black frame", "mean image", "mean of known", "copy nearest", "cross fade"}
    holes = {row["name"] for row in task_of("simvp", "inpaint").baselines()}
    assert holes == {"black", "mean image", "mean of known"}


def test_training_clips_are_drawn_without_end():
    task = task_of()
    assert len(task.source.splits["train"]) == ENDLESS
    one, other = task.dataset("train", Shard())[0], task.dataset("train", Shard())[1]
    assert any(not np.array_equal(one[name], other[name]) for name in one)
    halves = [task.dataset("train", Shard(index, 2))[0] for index in range(2)]
    for name, array in one.items():
        np.testing.assert_array_equal(array, np.concatenate([half[name] for half in halves]))


def test_samples_are_strips_of_the_same_clips():
    task, state, _ = plain()
    (strip,) = task.samples(state, jax.random.key(0))
    # Two clips, two rows each, six frames of 64 pixels and gaps of 2.
    assert strip.image.shape == (4 * 66 - 2, 6 * 66 - 2, 1)
    clips = task.shown_clips("validation", 2)
    np.testing.assert_array_equal(strip.image[:64:4, :64:4], clips[0, 0])
    assert (strip.image[66:130, :64] == 255).all()


@pytest.mark.fast
@pytest.mark.parametrize(
    ("tables", "message"),
    [
        ({"evaluation": {"split": "test"}}, r'evaluation.split: .* has no split "test"; one of'),
        ({"checkpoint": {"best_metric": "fvd"}}, "checkpoint.best_metric: no figure 'fvd'; one of"),
        (
            {"model": {"patch_size": 5}},
            "do not divide into patches of side 5; change model.patch_size, or data.source.size",
        ),
        (
            {"objective": {"ssim": 1.0}, "data": {"source": {"kind": "moving_digits", "size": 8}}},
            "objective.ssim: frames of 8 x 8 pixels are smaller",
        ),
    ],
)
def test_what_does_not_fit_is_told_before_training(tables, message):
    if "data" in tables:
        tables["data"]["source"]["digit_size"] = 8
    with pytest.raises(UserError, match=message):
        task_of(**tables)


@pytest.mark.fast
@pytest.mark.parametrize(
    ("model", "conditioning", "tables", "message"),
    [
        ("simvp", "predict", {"sampling": {"kind": "scheduled"}}, "sampling.kind"),
        ("simvp", "predict", {"objective": {"known_frames": False}}, "objective.known_frames"),
        ("convlstm", "inpaint", {"evaluation": {"future": 3}}, "evaluation.future: 3 is for"),
        (
            "convlstm",
            "interpolate",
            {"sampling": {"kind": "scheduled"}},
            "is for conditioning.kind",
        ),
        ("convlstm", "inpaint", {"sampling": {"kind": "reverse"}}, "is for conditioning.kind"),
        ("convlstm", "inpaint", {"objective": {"known_frames": False}}, "does nothing here"),
        (
            "simvp",
            "predict",
            {"model": {"translator": "inception"}},
            'mlp_ratio is for translator = "gsta"',
        ),
        ("convlstm", "predict", {"objective": {"l2": 0.0}}, "are all 0, so nothing is trained"),
        (
            "convlstm",
            "predict",
            {
                "conditioning": {"kind": "predict", "past": 1, "future": 1},
                "sampling": {"kind": "scheduled"},
            },
            "has no step to draw for",
        ),
        ("convlstm", "predict", {"model": {"kernel_size": 4}}, "4 is even"),
    ],
)
def test_configs_that_contradict_themselves(model, conditioning, tables, message):
    with pytest.raises((UserError, ValidationError), match=message):
        configured(model, conditioning, **tables)
