"""Prediction runs in the real loop: stopped anywhere and resumed, they equal unbroken ones."""

import pytest

from genjax.config import dump
from tests.train.processes import finished, run, start, wait_for
from tests.train.running import StopAt, arrays, lines, run_toy
from tests.video.small_predictions import configured
from train.loop import Outcome

RUN = {
    "steps": 8,
    "log": {"every": 1},
    "checkpoint": {"every": 100},
    "evaluation": {"every": 8, "count": 4},
    "samples": {"every": 8, "count": 1},
}
RUNS = {
    # The probability of the truth is on its way at every step, and so are its draws.
    "scheduled": configured(sampling={"kind": "scheduled", "steps": 10}, **RUN),
    "reverse": configured(
        "predrnn", sampling={"kind": "reverse", "begin": 2, "steps": 12, "rise": 4.0}, **RUN
    ),
    "statistics": configured("simvp", "inpaint", **RUN),
}


def assert_equal_runs(config, broken, unbroken):
    for kind in ("train", "validation", "baseline"):
        assert lines(broken, kind) == lines(unbroken, kind) != []
    expected, position = arrays(unbroken, config)
    found, found_position = arrays(broken, config)
    assert found_position == position and found.keys() == expected.keys()
    for name, array in expected.items():
        assert found[name].tobytes() == array.tobytes(), name


@pytest.mark.parametrize(
    "name",
    [name if name == "scheduled" else pytest.param(name, marks=pytest.mark.slow) for name in RUNS],
)
def test_a_stopped_run_goes_on_bit_by_bit(tmp_path, name):
    config = RUNS[name]

    def go(folder, stop=None):
        return run_toy(config, folder, task=config.make_task(), stop=stop)

    assert go(tmp_path / "unbroken").outcome is Outcome.FINISHED
    result = go(tmp_path / "broken", StopAt(5))
    assert (result.outcome, result.step) == (Outcome.INTERRUPTED, 5)
    assert go(tmp_path / "broken").outcome is Outcome.FINISHED
    assert_equal_runs(config, tmp_path / "broken", tmp_path / "unbroken")
    if name == "scheduled":
        chances = [line["truth_probability"] for line in lines(tmp_path / "broken", "train")]
        assert chances == pytest.approx([1 - step / 10 for step in range(8)])


@pytest.mark.slow
def test_a_killed_run_goes_on_bit_by_bit(tmp_path):
    config = configured(
        sampling={"kind": "scheduled", "steps": 300},
        **RUN
        | {
            "steps": 300,
            "checkpoint": {"every": 10, "keep_last": 30},
            "evaluation": {"every": 300, "count": 4},
            "samples": {"every": 300, "count": 1},
        },
    )
    file = tmp_path / "prediction.toml"
    file.write_text(dump(config))
    unbroken, broken = tmp_path / "unbroken", tmp_path / "broken"
    code, said = run(file, "--workdir", unbroken, toy=False)
    assert code == 0, said
    with finished(start(file, "--workdir", broken, toy=False)) as process:
        wait_for(lambda: (broken / "checkpoints" / "40").exists())
        process.kill()
        process.wait()
    kept = [int(path.name) for path in (broken / "checkpoints").iterdir() if path.name.isdigit()]
    assert max(kept) < 300, "killed in the middle"
    code, said = run(file, "--workdir", broken, toy=False)
    assert code == 0, said
    assert_equal_runs(config, broken, unbroken)
