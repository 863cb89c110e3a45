"""The report's tables of wall time and of a profile's operations."""

import json

import pytest
from fabricate import fabricate_run
from test_report import report

from tools.report.timing import spent
from tools.runs import read_run

ACCOUNT = {
    "seconds": 1000.0,
    "goodput": 0.8,
    "seconds_startup": 100.0,
    "seconds_lost": 60.0,
    "seconds_input": 40.0,
}


def timed_run(path, **account):
    line = {"kind": "speed", "step": 100, **ACCOUNT, "input_wait": 0.05} | account
    return fabricate_run(path, steps=100, extra=[line])


def profile(path, **changes):
    operation = {
        "program": "jit_train_step",
        "name": "fusion.12",
        "source": "jvp(Transformer)/layers_0/mlp/dot_general",
        "seconds": 0.0125,
        "share": 0.6,
        "count": 11,
    }
    table = {
        "steps": [10, 20],
        "devices": 4,
        "idle_share": 0.034,
        "operations": [operation],
        "others": {"names": 72, "seconds": 0.008, "share": 0.4, "count": 900},
    }
    (path / "profile").mkdir()
    (path / "profile" / "top_operations.json").write_text(json.dumps(table | changes))


def test_wall_time_is_what_the_run_accounts_for(tmp_path):
    path = timed_run(tmp_path / "run")
    assert spent(read_run(path)) == {"training": 800, "startup": 100, "input": 40, "lost": 60}
    page, _ = report(path)
    for said in (
        "Goodput 80.0% of the wall time",
        "Input wait 5.0%",
        "Training steps that were kept (goodput) 80.0% 13 min 20 s",
        "Steps done again after an interruption 6.0% 1 min 0 s",
    ):
        assert said in page.text, said
    # Parts of the wall time have a table, and no charts or tiles of their own.
    assert "Seconds" not in page.text


def test_wall_times_of_several_runs_stand_side_by_side(tmp_path):
    one = timed_run(tmp_path / "one")
    two = timed_run(tmp_path / "two", goodput=0.7, seconds_saving=100.0)
    three = fabricate_run(tmp_path / "three", steps=50)
    page, _ = report(one, two, three)
    assert "(goodput) 80.0% 70.0%" in page.text
    assert "Waiting for checkpoints 10.0%" in page.text


def test_a_profile_shows_its_operations(tmp_path):
    path = timed_run(tmp_path / "run")
    profile(path)
    page, _ = report(path)
    for said in (
        "fusion.12",
        "jit_train_step",
        "60.0% 12.5 ms 11 jvp(Transformer)/layers_0/mlp/dot_general",
        "72 others 40.0% 8 ms 900",
        "Steps 10 to 20. The devices did nothing in 3.4% of the time. Means over the 4 devices",
    ):
        assert said in page.text, said


@pytest.mark.parametrize("broken", ["", "[]", '{"operations": 3}', "{"])
def test_a_run_without_either_has_neither_section(tmp_path, broken):
    path = fabricate_run(tmp_path / "run", steps=50)
    (path / "profile").mkdir()
    (path / "profile" / "top_operations.json").write_text(broken)
    _, source = report(path)
    assert 'id="operations"' not in source and 'id="wall-time"' not in source


def test_what_a_profile_says_is_escaped(tmp_path):
    evil = "<img src=x onerror=alert(1)>"
    path = fabricate_run(tmp_path / "run", steps=50)
    operation = {"name": evil, "program": evil, "source": evil, "seconds": evil, "share": 1e999}
    profile(path, operations=[operation, 3], others=[], steps=[evil, evil], idle_share=None)
    page, _ = report(path)
    assert not page.all("img") and page.text.count(evil) == 5
