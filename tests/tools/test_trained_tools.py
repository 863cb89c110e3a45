"""Generating from a run and measuring it, from the command line."""

import json

import pytest

from tools import evaluate, generate
from train.__main__ import main as train

CONFIG = """
kind = "language_modeling"
steps = 2
data.source = { kind = "files", path = "%s" }
data.batching = { kind = "windows", batch_size = 2, sequence_length = 16 }
model = { kind = "transformer", num_layers = 1, num_heads = 1, hidden_size = 8 }
samples.max_tokens = 2
mesh.data = 1
platform.compilation_cache = ""
"""


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    (folder / "text.txt").write_text("the cat sat on the mat. " * 40)
    (folder / "other.txt").write_text("the dog sat on the cat. " * 20)
    (folder / "config.toml").write_text(CONFIG % (folder / "text.txt"))
    assert train([str(folder / "config.toml"), "--workdir", str(folder / "run")]) == 0
    return folder / "run"


def test_the_run_may_stand_behind_options_with_values(run, capsys):
    words = ["--step", "2", "--prompt", "the " * 99, str(run), "--max-tokens", "3"]
    assert generate.main(words) == 0
    assert capsys.readouterr().out.startswith("the")
    assert generate.main([str(run.parent / "nowhere")]) == 2
    assert "nowhere does not exist" in capsys.readouterr().err


def test_another_text_is_measured_and_recorded(run):
    other = run.parent / "other.txt"
    arguments = [f"data.source.validation_path={other}", "evaluation.protocol=chunks|sliding"]
    assert evaluate.main([str(run), *arguments]) == 0
    records = [json.loads(line) for line in (run / "evaluations.jsonl").read_text().splitlines()]
    assert [record["tokens"] for record in records] == [24 * 20 - 1] * 2
    protocols = [record["overrides"]["evaluation"]["protocol"] for record in records]
    assert protocols == ["chunks", "sliding"]


def test_what_belongs_to_the_run_stays(run, capsys):
    assert evaluate.main([str(run), "model.num_layers=2"]) == 2
    assert "can change evaluation." in capsys.readouterr().err


def test_a_best_checkpoint_that_is_not_there_is_not_the_newest(run, capsys):
    assert evaluate.main([str(run), "--step", "best"]) == 2
    assert "kept no best checkpoint" in capsys.readouterr().err
    config = (run / "config.toml").read_text()
    changed = config.replace('best_metric = "none"', 'best_metric = "perplexity"')
    assert changed != config
    (run / "config.toml").write_text(changed)
    try:
        assert evaluate.main([str(run), "--step", "best"]) == 0
        (run / "config.toml").write_text(changed.replace("perplexity", "bits_per_byte"))
        for file in run.glob("checkpoints/*/figures/*"):
            file.write_text("{}")
        assert evaluate.main([str(run), "--step", "best"]) == 2
        assert "no checkpoint was saved with the figure" in capsys.readouterr().err
    finally:
        (run / "config.toml").write_text(config)
