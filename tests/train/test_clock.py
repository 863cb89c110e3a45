"""Where a run's wall time goes, with a clock that stands still between two moves."""

import json

import pytest

from tests.toy import ToyConfig
from tests.train.running import StopAt, lines, run_toy
from train.clock import Clock, earlier_sessions
from train.run_directory import RunDirectory

pytestmark = pytest.mark.fast


class Time:
    """A clock that moves when told."""

    def __init__(self, now=100.0):
        self.now = now

    def __call__(self):
        return self.now

    def passes(self, seconds):
        self.now += seconds


def test_all_wall_time_is_accounted_for():
    time = Time()
    clock = Clock(0, began=90.0, now=time)
    time.passes(5)
    clock.begin()
    time.passes(8)
    clock.move(7, "compilation")
    time.passes(40)
    with clock.spending("saving"):
        time.passes(2)
        with clock.spending("evaluation"):
            time.passes(10)
        time.passes(1)

    @clock.spending("samples")
    def sample():
        time.passes(4)

    for _ in range(2):
        sample()
    time.passes(10)
    assert clock.account() == {
        "seconds": 10 + 5 + 8 + 40 + 2 + 10 + 1 + 8 + 10,
        "goodput": round((1 + 40 + 10) / 94, 4),
        "seconds_startup": 15,
        "seconds_compilation": 7,
        "seconds_saving": 3,
        "seconds_evaluation": 10,
        "seconds_samples": 8,
    }


def test_time_is_accounted_for_when_what_was_done_fails():
    time = Time()
    clock = Clock(0, now=time)
    clock.begin()
    with pytest.raises(OSError), clock.spending("saving"):
        time.passes(3)
        raise OSError
    time.passes(1)
    assert clock.account() == {"seconds": 4, "goodput": 0.25, "seconds_saving": 3}


@pytest.mark.parametrize(("out_of_work", "counted"), [(True, 2.0), (False, 0.0)])
def test_a_wait_counts_where_the_devices_ran_out_of_work(out_of_work, counted):
    time = Time()
    clock = Clock(0, now=time)
    clock.begin()
    time.passes(3)
    with clock.waiting(lambda: out_of_work):
        time.passes(2)
    assert clock.read(5) == (1.0, counted / 5)
    assert clock.account().get("seconds_input", 0.0) == counted
    time.passes(4)
    assert clock.read(9) == (1.0, 0.0)
    assert clock.read(9) is None


def test_pauses_and_compilation_are_not_part_of_a_step():
    time = Time()
    clock = Clock(0, now=time)
    clock.begin()
    time.passes(30)
    clock.restart(1)
    time.passes(2)
    with clock.paused({}):
        time.passes(50)
    time.passes(2)
    assert clock.read(5) == (1.0, 0.0)


def log(run, *entries):
    run.folder.mkdir(parents=True, exist_ok=True)
    text = "".join(json.dumps({"kind": "speed"} | entry) + "\n" for entry in entries)
    run.metrics_file.write_text(text)


def test_steps_that_are_done_again_were_lost(tmp_path):
    run = RunDirectory(tmp_path / "run")
    assert earlier_sessions(run, 0) == {}
    log(
        run,
        {"step": 1, "compile_seconds": 9.0},
        {"step": 40, "seconds": 60.0, "seconds_startup": 20.0},
        {"step": 50, "seconds": 75.0, "seconds_startup": 20.0, "seconds_saving": 2.0},
    )
    # Training was 40 s at step 40, and 53 s at step 50.
    saved = {"startup": 20.0, "saving": 2.0}
    assert earlier_sessions(run, 40) == saved | {"training": 40.0, "lost": 13.0}
    assert earlier_sessions(run, 50) == saved | {"training": 53.0, "lost": 0.0}
    assert earlier_sessions(run, 0) == saved | {"training": 0.0, "lost": 53.0}
    # A session that ends as soon as it has begun takes nothing away.
    time = Time()
    clock = Clock(40, earlier_sessions(run, 40), now=time)
    time.passes(5)
    log(run, {"step": 40} | clock.account())
    assert earlier_sessions(run, 40) == {
        "startup": 25.0,
        "saving": 2.0,
        "training": 40.0,
        "lost": 13.0,
    }


def test_a_log_without_an_account_was_all_training(tmp_path):
    run = RunDirectory(tmp_path / "run")
    log(run, {"step": 40, "seconds": 60.0}, {"step": 50, "seconds": 80.0})
    assert earlier_sessions(run, 40) == {"training": 60.0, "lost": 20.0}


def test_a_run_accounts_for_its_sessions(tmp_path):
    """Stopped at step 5, its checkpoint of step 4 taken away: step 5 is lost and done again."""
    config = ToyConfig(steps=8, evaluation=8, checkpoint={"every": 4}, log={"every": 2})
    folder = tmp_path / "run"
    # It asks twice at step 4.
    run_toy(config, folder, stop=StopAt(6))
    first = lines(folder, "speed")[-1]
    assert first["step"] == 5 and first["seconds_compilation"] > 0 and first["seconds_saving"] > 0
    (folder / "checkpoints" / "5").rename(tmp_path / "away")
    result = run_toy(config, folder)
    entries = [entry for entry in lines(folder, "speed") if "seconds" in entry]
    again = next(entry for entry in entries if entry.get("seconds_lost"))
    assert again["step"] == 4 and again["seconds"] >= first["seconds"]
    seconds = [entry["seconds"] for entry in entries]
    assert seconds == sorted(seconds)
    last = entries[-1]
    parts = sum(value for name, value in last.items() if name.startswith("seconds_"))
    assert last["step"] == 8 and last["seconds_evaluation"] > 0
    assert last["goodput"] == pytest.approx(1 - parts / last["seconds"], abs=0.01)
    assert f"(goodput {last['goodput']:.0%})" in result.message
    timed = [entry for entry in entries if "step_time" in entry]
    assert timed and all(0 <= entry["input_wait"] <= 1 for entry in timed)
