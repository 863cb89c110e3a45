"""Runs that are killed or told to stop, in processes of their own: they go on with equal bits."""

import json
import os
import random
import shutil
import signal
import time
from pathlib import Path

import jax
import numpy as np
import pytest

from genjax.config import load
from genjax.families import FAMILIES
from genjax.parallel.mesh import MeshConfig, make_mesh
from genjax.parallel.partition import state_shardings
from genjax.run_config import CheckpointConfig, LogConfig
from tests.toy import Toy, ToyConfig
from tests.train.processes import TOY, finished, run, start, wait_for
from tests.train.running import StopAt, run_toy
from train.checkpoint import Checkpoints, flatten
from train.loop import Outcome

DEMO = str(Path(__file__).parents[2] / "configs" / "text" / "demo.toml")
SMALL = ["--debug", "steps=40", "checkpoint.every=2", "log.every=1", "evaluation.every=10"]
SMALL += ["samples.every=40", "model.dropout=0.1", "log.progress=false"]
LSTM = ["model={kind='lstm', num_layers=1, hidden_size=16, hidden_dropout=0.1}"]
LSTM += ["data.batching={kind='streams', batch_size=4, sequence_length=16}"]
MODELS = {
    "transformer": [*SMALL],
    "lstm": [*(setting for setting in SMALL if "model." not in setting), *LSTM],
}


def entries(folder, kind):
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [entry for entry in map(json.loads, lines) if entry["kind"] == kind]


def losses(folder):
    return [
        (entry["step"], entry["loss"], entry["grad_norm"]) for entry in entries(folder, "train")
    ]


def newest(folder):
    """Arrays and position of a language model's newest checkpoint."""
    config = load(folder / "config.toml", schema=FAMILIES)
    task = config.make_task(folder / "assets")
    shapes = jax.eval_shape(task.init, jax.random.key(0))
    checkpoints = Checkpoints(folder / "checkpoints")
    mesh = make_mesh(MeshConfig(data=1))
    restored = checkpoints.restore(shapes, state_shardings(shapes, (), mesh))
    checkpoints.close()
    arrays = {name: np.asarray(array) for name, array in flatten(restored.state).items()}
    return restored.step, restored.position, arrays


def finished_steps(folder):
    """The steps of finished checkpoints."""
    if not (folder / "checkpoints").exists():
        return [0]
    return [int(path.name) for path in (folder / "checkpoints").iterdir() if path.name.isdigit()]


def killed_again_and_again(folder, arguments, kills, seed):
    """Kill a run at random moments, then let it end; returns the steps it resumed from."""
    rng = random.Random(seed)
    resumed = []
    for _ in range(kills):
        before = max(finished_steps(folder), default=0)
        with finished(start(*arguments, toy=False)) as process:
            target = before + rng.randint(1, 6)
            wait_for(
                lambda target=target: (
                    max(finished_steps(folder), default=0) >= target or process.poll() is not None
                ),
            )
            time.sleep(rng.uniform(0, 0.1))
            process.kill()
            process.wait()
        resumed.append(max(finished_steps(folder), default=0))
    code, said = run(*arguments, toy=False)
    assert code == 0, said
    return resumed


def check_killed_run_equals_unbroken(tmp_path, model, kills, seed):
    unbroken, broken = tmp_path / "unbroken", tmp_path / "broken"
    code, said = run(DEMO, *MODELS[model], "--workdir", unbroken, toy=False)
    assert code == 0, said
    arguments = (DEMO, *MODELS[model], "--workdir", broken)
    resumed = killed_again_and_again(broken, arguments, kills, seed)
    told = [entry["message"] for entry in entries(broken, "event") if "resumed" in entry["message"]]
    assert any(0 < step < 40 for step in resumed), "killed in the middle"
    for step in resumed:
        assert step == 40 or step == 0 or f"resumed from step {step}" in told
    assert losses(broken) == losses(unbroken)
    assert entries(broken, "validation") == entries(unbroken, "validation")
    assert entries(broken, "baseline") == entries(unbroken, "baseline")
    assert (broken / "samples.jsonl").read_bytes() == (unbroken / "samples.jsonl").read_bytes()
    step, position, arrays = newest(broken)
    expected_step, expected_position, expected = newest(unbroken)
    assert (step, position) == (expected_step, expected_position)
    assert step == 40
    assert arrays.keys() == expected.keys()
    if model == "lstm":
        assert any(name.startswith("carry/") for name in arrays)
    for name, array in expected.items():
        assert arrays[name].tobytes() == array.tobytes(), name


@pytest.mark.parametrize(
    "model",
    [pytest.param(name, marks=pytest.mark.slow) if name == "lstm" else name for name in MODELS],
)
def test_killed_runs_equal_unbroken_ones(tmp_path, model):
    check_killed_run_equals_unbroken(tmp_path, model, kills=2, seed=0)


@pytest.mark.slow
@pytest.mark.parametrize("model", MODELS)
def test_runs_killed_often_equal_unbroken_ones(tmp_path, model):
    check_killed_run_equals_unbroken(tmp_path, model, kills=10, seed=1)


# ---- signals -------------------------------------------------------------------------------------


@pytest.fixture
def toy(tmp_path):
    """Arguments of a toy run that lasts, and its folder."""
    (tmp_path / "toy.toml").write_text(TOY)
    folder = tmp_path / "run"
    return (
        tmp_path / "toy.toml",
        "steps=1000",
        "checkpoint.every=500",
        "--workdir",
        folder,
    ), folder


def logged(folder):
    return (folder / "metrics.jsonl").exists() and len(entries(folder, "train")) > 1


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_saves_and_ends_with_75(toy, number):
    arguments, folder = toy
    with finished(start(*arguments, TOY_SLEEP="0.05")) as process:
        wait_for(lambda: logged(folder), process)
        process.send_signal(number)
        if number == signal.SIGTERM:
            process.send_signal(number)
        said, _ = process.communicate(timeout=60)
    assert process.returncode == 75, said
    name = signal.Signals(number).name
    assert f"stopped by {name}: saved step" in said and "the same command goes on" in said
    assert said.count("saved step") == 1 and "Traceback" not in said and len(said.splitlines()) < 6
    (step,) = finished_steps(folder)
    assert step == losses(folder)[-1][0]


def test_stopped_again_in_the_evaluation_that_it_owes(tmp_path):
    config = ToyConfig(
        steps=12,
        mesh=MeshConfig(data=1),
        checkpoint=CheckpointConfig(every=5),
        log=LogConfig(every=1),
        evaluation=5,
    )
    run_toy(config, tmp_path / "unbroken")
    folder = tmp_path / "broken"
    # Polled once in each step without a pause: the sixth is in the evaluation.
    for stop in (StopAt(7), StopAt(1), StopAt(4)):
        result = run_toy(config, folder, stop=stop)
        assert (result.outcome, result.step) == (Outcome.INTERRUPTED, 5)
        assert "SIGTERM" in result.message
        assert entries(folder, "validation") == []

    # In the last evaluation: all steps are done, the run is not.
    class StopsAtTheEnd(Toy):
        def variant(self, step):
            stop.polls = 10**6 if step == 11 else stop.polls
            return super().variant(step)

    stop = StopAt(10**6 + 3)
    result = run_toy(config, folder, task=StopsAtTheEnd(config), stop=stop)
    assert (result.outcome, result.step) == (Outcome.INTERRUPTED, 12)
    assert run_toy(config, folder).outcome is Outcome.FINISHED
    assert entries(folder, "validation") == entries(tmp_path / "unbroken", "validation")
    assert losses(folder) == losses(tmp_path / "unbroken")


def test_what_diverges_after_a_pause_is_measured_by_the_first_loss(tmp_path):
    """The guard compares with the first loss of the run, not of the session."""

    class Grows(Toy):
        def train_step(self, state, batch, variant=None):
            new, metrics = super().train_step(state, batch, variant)
            return new, metrics | {"loss": 1.0 + state.step}

    config = ToyConfig(steps=12, mesh=MeshConfig(data=1), log=LogConfig(every=1))
    run_toy(config, tmp_path, task=Grows(config), stop=StopAt(2))
    result = run_toy(config, tmp_path, task=Grows(config))
    assert result.outcome is Outcome.DIVERGED and "times the first 1;" in result.message


def test_a_second_interrupt_ends_at_once(toy):
    arguments, folder = toy
    with finished(start(*arguments, TOY_SLEEP="20")) as process:
        wait_for(lambda: (folder / "metrics.jsonl").exists(), process)
        process.send_signal(signal.SIGINT)
        time.sleep(0.8)
        assert process.poll() is None
        process.send_signal(signal.SIGINT)
        said, _ = process.communicate(timeout=5)
    assert process.returncode == 130, said
    assert "Traceback" not in said


@pytest.mark.skipif(shutil.which("timeout") is None, reason="needs coreutils")
def test_timeout_that_signals_twice_is_one_request(toy):
    """`timeout` signals its child, then its whole group, the child again."""
    arguments, folder = toy
    settings = {"shell_prefix": ("timeout", "-s", "INT", "6"), "TOY_SLEEP": "0.05"}
    code, said = run(*arguments, **settings)
    assert code == 124 and "saved step" in said, said
    assert finished_steps(folder) != [0]


def test_terminated_in_the_first_compilation(tmp_path):
    arguments = (DEMO, *MODELS["transformer"], "--workdir", tmp_path / "run")
    environment = {"JAX_COMPILATION_CACHE_DIR": str(tmp_path / "cache")}
    with finished(start(*arguments, toy=False, **environment)) as process:
        # Baselines are logged just before the first step, which compiles.
        log = tmp_path / "run" / "metrics.jsonl"
        wait_for(lambda: log.exists() and "trigram" in log.read_text(), process)
        os.kill(process.pid, signal.SIGTERM)
        said, _ = process.communicate(timeout=90)
    assert process.returncode == 75, said
    assert "saved step 1 of 40" in said and finished_steps(tmp_path / "run") == [1]
