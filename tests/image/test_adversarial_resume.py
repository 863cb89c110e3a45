"""Runs of the real loop: stopped anywhere and resumed, they equal unbroken ones."""

import numpy as np
import pytest

from genjax.config import dump
from genjax.errors import UserError
from tests.image.small_gans import DCGAN, DENSE, POINTS, STYLEGAN2, configured, styled
from tests.train.processes import finished, run, start, wait_for
from tests.train.running import StopAt, arrays, lines, run_toy
from train.loop import Outcome
from train.run_directory import RunDirectory

LAZY = {
    "r1_gamma": 1.0,
    "penalty_interval": 4,
    "path_length_weight": 2.0,
    "path_length_interval": 3,
}
# Moves by a tenth at each adjustment, so that the probability is on its way.
ADA = {
    "kind": "ada",
    "categories": ["blit"],
    "initial_probability": 0.4,
    "interval": 2,
    "adjustment_images": 160,
}
RUN = {
    "mesh": {"data": 1},
    "log": {"every": 1},
    "checkpoint": {"every": 100},
    "evaluation": {"every": 6, "count": 16},
    "samples": {"every_images": 8 * 6, "count": 4},
}

GAMES = {
    "styles": styled(steps=9, objective=LAZY, augmentation=ADA, data={"mirror": True}, **RUN),
    "dcgan": configured(DCGAN, steps=7, augmentation={"kind": "diffaugment"}, **RUN),
    "stylegan2": configured(
        STYLEGAN2, steps=9, objective=LAZY, augmentation=ADA, data={"mirror": True}, **RUN
    ),
}


def go(config, folder, stop=None):
    """Train in a folder, as a new task each time."""
    return run_toy(config, folder, task=config.make_task(), stop=stop)


def assert_equal_runs(config, broken, unbroken):
    for kind in ("train", "validation", "baseline"):
        assert lines(broken, kind) == lines(unbroken, kind) != []
    names = {path.name for path in (unbroken / "samples").rglob("*.png")}
    for name in names:
        pairs = zip(
            sorted((unbroken / "samples").rglob(name)),
            sorted((broken / "samples").rglob(name)),
            strict=True,
        )
        for one, other in pairs:
            assert one.read_bytes() == other.read_bytes(), one
    expected, position = arrays(unbroken, config)
    found, found_position = arrays(broken, config)
    assert found_position == position and found.keys() == expected.keys()
    for name, array in expected.items():
        assert found[name].tobytes() == array.tobytes(), name
    return expected


def check_stopped_run(tmp_path, name):
    config = GAMES[name]
    assert go(config, tmp_path / "unbroken").outcome is Outcome.FINISHED
    broken = tmp_path / "broken"
    # After five steps the last R1 is one step ago, the next three away; path lengths and the
    # controller are in the middle of their intervals.
    result = go(config, broken, StopAt(5))
    assert (result.outcome, result.step) == (Outcome.INTERRUPTED, 5)
    if name != "dcgan":
        half_way, _ = arrays(broken, config)
        assert half_way["carry/augmentation/count"] == 8
        assert half_way["carry/monitors/r1_penalty"] != 0
        assert half_way["carry/path_length_mean"] != 0
    assert go(config, broken).outcome is Outcome.FINISHED
    return assert_equal_runs(config, broken, tmp_path / "unbroken")


@pytest.mark.slow
def test_a_stopped_run_with_lazy_regularisers_and_ada_equals_an_unbroken_one(tmp_path):
    state = check_stopped_run(tmp_path, "styles")
    assert 0 < state["carry/augmentation/probability"] != np.float32(0.4)
    assert any(name.startswith("ema/generator/") for name in state)
    # Nine steps of the loss, and three of each regulariser.
    assert state["opt_state/discriminator/count"] == 9 + 3
    assert state["opt_state/generator/count"] == 9 + 3


def test_a_stopped_run_with_batch_statistics_equals_an_unbroken_one(tmp_path):
    state = check_stopped_run(tmp_path, "dcgan")
    moved = [name for name in state if name.startswith("carry/statistics/")]
    assert any("generator" in name for name in moved)
    assert all(state[name].any() for name in moved)


@pytest.mark.slow
def test_a_stopped_run_of_stylegan2_equals_an_unbroken_one(tmp_path):
    check_stopped_run(tmp_path, "stylegan2")


@pytest.mark.slow
def test_a_killed_run_of_stylegan2_equals_an_unbroken_one(tmp_path):
    config = GAMES["stylegan2"]
    config = config.model_copy(
        update={
            "steps": 12,
            "checkpoint": config.checkpoint.model_copy(update={"every": 1, "keep_last": 12}),
        }
    )
    (tmp_path / "gan.toml").write_text(dump(config))
    broken, unbroken = tmp_path / "broken", tmp_path / "unbroken"
    code, said = run(tmp_path / "gan.toml", "--workdir", unbroken, toy=False)
    assert code == 0, said
    resumed = []
    for target in (3, 6):
        with finished(start(tmp_path / "gan.toml", "--workdir", broken, toy=False)) as process:
            wait_for(lambda target=target: (broken / "checkpoints" / str(target)).exists())
            process.kill()
            process.wait()
        steps = (broken / "checkpoints").iterdir()
        resumed.append(max(int(path.name) for path in steps if path.name.isdigit()))
    assert all(step < 12 for step in resumed), "killed in the middle"
    code, said = run(tmp_path / "gan.toml", "--workdir", broken, toy=False)
    assert code == 0, said
    assert_equal_runs(config, broken, unbroken)


# ---- what a run refuses --------------------------------------------------------------------------


def test_another_architecture_is_refused(tmp_path):
    config = configured(DENSE, POINTS, steps=2, **RUN)
    go(config, tmp_path)
    other = configured(DENSE | {"generator_sizes": [7]}, POINTS, steps=2, **RUN)
    with pytest.raises(UserError, match=r"another config:\n.*generator_sizes"):
        RunDirectory(tmp_path).open(other, config)
    # Past that, as by a config edited by hand, the checkpoint itself says it.
    with pytest.raises(UserError, match=r"belongs to another model: .*generator/hidden0") as caught:
        go(other, tmp_path)
    assert "float32[6]" in str(caught.value) and "float32[7]" in str(caught.value)


@pytest.mark.parametrize("loss", ["non_saturating", "wasserstein"])
def test_networks_that_explode_end_the_run(tmp_path, loss):
    game = {
        "generator_optimizer": {"learning_rate": 1e25},
        "discriminator_optimizer": {"learning_rate": 1e25},
    }
    config = configured(DENSE, POINTS, steps=20, objective={"loss": loss}, **game, **RUN)
    result = go(config, tmp_path)
    assert result.outcome is Outcome.DIVERGED and result.step < 20
    first = result.message.splitlines()[0]
    assert any(f"{name} is " in first for name in lines(tmp_path, "train")[-1])
    assert "nan" in first or "inf" in first
    assert "objective.r1_gamma" in result.message
    assert "discriminator_optimizer.learning_rate" in result.message
