import json
import math

import numpy as np
import pytest
from fabricate import BASELINES, fabricate_run, write_lines

from genjax.errors import UserError
from tools.runs import read_run


def bare_run(path, records):
    path.mkdir()
    write_lines(path / "metrics.jsonl", records)
    return read_run(path)


def test_reads_every_file_of_a_run(tmp_path):
    run = read_run(fabricate_run(tmp_path / "demo", steps=500))
    assert run.name == "demo"
    assert run.config["optimizer"]["schedule"]["peak"] == 1e-3
    assert run.environment["git_commit"] == "9f2c1e4b7a"
    assert run.series("train")["loss"].steps.tolist() == list(range(10, 501, 10))
    assert set(run.baselines()) == set(BASELINES)
    assert run.baselines()["unigram"]["nats_per_token"] == BASELINES["unigram"]
    assert len(run.records("validation")) == 2
    assert "protocol" not in run.series("validation")
    assert {sample["step"] for sample in run.samples} == {125, 250, 375, 500}
    assert run.evaluations[0]["split"] == "test"
    assert run.unreadable == {}


def test_truncated_last_line_is_left_out_in_silence(tmp_path):
    path = fabricate_run(tmp_path / "demo", steps=100, validate_every=None)
    whole = read_run(path)
    with (path / "metrics.jsonl").open("ab") as file:
        file.write('{"kind": "train", "step": 110, "loss": 3.1, "note": "é'.encode()[:-1])
    run = read_run(path)
    assert run.metrics == whole.metrics
    assert run.unreadable == {}


def test_last_line_without_line_end_counts_if_it_is_whole(tmp_path):
    path = fabricate_run(tmp_path / "demo", steps=100, validate_every=None)
    with (path / "metrics.jsonl").open("a") as file:
        file.write('{"kind": "train", "step": 110, "loss": 3.1}')
    assert read_run(path).series("train")["loss"].steps[-1] == 110


def test_broken_lines_inside_are_left_out_and_numbered(tmp_path):
    path = tmp_path / "demo"
    path.mkdir()
    lines = [
        '{"kind": "train", "step": 1, "loss": 2.0}',
        '{"kind": "train", "st{"kind": "event", "step": 1, "message": "resumed from step 1"}',
        '{"kind": "train", "loss": 2.0}',
        '{"kind": "train", "step": true, "loss": 2.0}',
        "[1, 2]",
        '{"kind": "train", "step": 2, "loss": 1.5}',
    ]
    (path / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    run = read_run(path)
    assert run.series("train")["loss"].steps.tolist() == [1, 2]
    assert run.unreadable == {"metrics.jsonl": [2, 3, 4, 5]}


def test_steps_written_twice_by_a_resume_count_once(tmp_path):
    def line(step, loss):
        return {"kind": "train", "step": step, "loss": loss}

    first = [line(10, 5.0), line(20, 4.0), line(30, 3.0), line(40, 2.5)]
    again = [line(25, 3.6), line(30, 3.1)]
    event = {"kind": "event", "step": 20, "message": "resumed from step 20"}
    series = bare_run(tmp_path / "demo", [*first, event, *again]).series("train")["loss"]
    assert series.steps.tolist() == [10, 20, 25, 30]
    assert series.values.tolist() == [5.0, 4.0, 3.6, 3.1]


def test_null_is_nan_and_flags_and_text_are_no_numbers(tmp_path):
    record = {"kind": "train", "step": 1, "loss": None, "skipped": True, "note": "warm"}
    nan = {"kind": "train", "step": 2, "loss": math.nan, "note": "nan in it"}
    series = bare_run(tmp_path / "demo", [record, nan]).series("train")
    assert list(series) == ["loss"]
    assert all(math.isnan(value) for value in series["loss"].values)
    told = [{"kind": "train", "step": i, "loss": t} for i, t in enumerate(["nan", "inf", "-inf"])]
    values = bare_run(tmp_path / "told", told).series("train")["loss"].values
    np.testing.assert_array_equal(values, [math.nan, math.inf, -math.inf])


@pytest.mark.parametrize(
    ("messages", "state", "told"),
    [
        (["saved step 5"], "open", ""),
        (["saved step 5", "finished at step 9"], "finished", "finished at step 9"),
        (["Run finished"], "finished", "Run finished"),
        (
            ["interrupted by SIGTERM, saved step 9"],
            "stopped",
            "interrupted by SIGTERM, saved step 9",
        ),
        (["stopped at step 9", "resumed from step 9"], "open", ""),
        (["stopped at step 9", "resumed from step 9", "finished"], "finished", "finished"),
        (["loss is not finite"], "diverged", "loss is not finite"),
        (["stopped at step 9: loss is nan; no"], "diverged", "stopped at step 9: loss is nan; no"),
        (["step 9 could not be saved; room"], "stopped", "step 9 could not be saved; room"),
        (["stopped by SIGTERM: saved"], "stopped", "stopped by SIGTERM: saved"),
        (["disk full; training goes on", "finished: 9 steps"], "finished", "finished: 9 steps"),
        (["diverged at step 7: loss nan"], "diverged", "diverged at step 7: loss nan"),
        (["saved the unfinished epoch", "skipped a record that was killed"], "open", ""),
    ],
)
def test_status_follows_the_events(tmp_path, messages, state, told):
    records = [{"kind": "event", "step": 9, "message": message} for message in messages]
    status = bare_run(tmp_path / "demo", records).status()
    assert (status.state, status.message, status.step) == (state, told, 9)


def test_missing_folder_file_and_foreign_folder_are_refused(tmp_path):
    with pytest.raises(UserError, match="no such folder"):
        read_run(tmp_path / "nowhere")
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(UserError, match="a file, not a folder"):
        read_run(tmp_path / "notes.txt")
    with pytest.raises(UserError, match=r"not a run.*config\.toml"):
        read_run(tmp_path)


def test_a_broken_config_names_the_file(tmp_path):
    path = fabricate_run(tmp_path / "demo", steps=10)
    (path / "config.toml").write_text("kind = ")
    with pytest.raises(UserError, match=r"config\.toml"):
        read_run(path)
    (path / "config.toml").unlink()
    assert read_run(path).config == {}
    (path / "environment.json").write_text(json.dumps([1]))
    with pytest.raises(UserError, match=r"environment\.json: holds no table"):
        read_run(path)
