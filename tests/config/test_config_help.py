"""Help for every key."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from genjax.config import (
    HelpRow,
    help_rows,
    print_help,
)
from tests.config.sample import Other, Recurrent, Run, write

pytestmark = pytest.mark.fast


def test_help_rows_show_every_key_with_the_files_values():
    config = Run(seed=5, model=Recurrent(kind="gru", hidden_size=8))
    rows = help_rows(Run, config)
    assert rows[:15] == [
        HelpRow("kind", "run", "run", ""),
        HelpRow("seed", "int", "5", "Seed of all randomness."),
        HelpRow("name", "str or none", "none", ""),
        HelpRow("lowercase", "bool", "false", ""),
        HelpRow("precision", "float32|bfloat16", "float32", ""),
        HelpRow("limit", "int or all", "all", ""),
        HelpRow("layers", "[int or none, ...]", "[]", ""),
        HelpRow("model", "transformer|lstm|gru", "gru", "Which network to train."),
        HelpRow("model.kind", "transformer", "transformer", "Attention over all past tokens."),
        HelpRow("model.num_layers", "int >= 1", "8", "Number of blocks."),
        HelpRow("model.dropout", "float >= 0, < 1", "0.0", "Dropout rate."),
        HelpRow("model.kind", "lstm|gru", "gru", "Chosen. A stack of recurrent layers."),
        HelpRow("model.hidden_size", "int", "8", "Width of the state."),
        HelpRow("teacher", "transformer|lstm|gru or none", "none", "Which network to learn from."),
        HelpRow("teacher.kind", "transformer", "transformer", "Attention over all past tokens."),
    ]
    assert rows[15] == HelpRow("teacher.num_layers", "int >= 1", "4", "Number of blocks.")
    assert rows[19:] == [
        HelpRow("optimizer", "table", "", "How parameters move."),
        HelpRow("optimizer.learning_rate", "float > 0", "0.0003", "Peak learning rate."),
        HelpRow("optimizer.betas", "[float, float]", "[0.9, 0.99]", "Decay rates of both moments."),
        HelpRow("optimizer.clip_norm", "float > 0 or none", "1.0", "Largest gradient norm."),
        HelpRow("optimizer.schedule", "cosine|constant", "cosine", "Learning rate over time."),
        HelpRow(
            "optimizer.schedule.kind", "cosine", "cosine", "Chosen. Half a cosine down to zero."
        ),
        HelpRow(
            "optimizer.schedule.warmup_steps",
            "int >= 0, < 4294967296",
            "10",
            "Steps of linear warm-up.",
        ),
        HelpRow("optimizer.schedule.kind", "constant", "constant", ""),
        HelpRow("parts", "[table, ...]", "[]", "Files to read."),
        HelpRow("parts[].path", "str", "required", ""),
        HelpRow("parts[].weight", "float > 0", "1.0", ""),
        HelpRow("extras", "{NAME = table}", "{}", ""),
        HelpRow("extras.NAME.path", "str", "required", ""),
        HelpRow("extras.NAME.weight", "float > 0", "1.0", ""),
    ]


def test_help_rows_without_a_file_show_the_defaults():
    values = {row.key: row.value for row in help_rows(Other)}
    assert values == {"kind": "other", "text": "required"}
    chosen = [row for row in help_rows(Run) if row.meaning.startswith("Chosen")]
    assert [(row.key, row.value) for row in chosen] == [
        ("model.kind", "transformer"),
        ("optimizer.schedule.kind", "cosine"),
    ]


def test_print_help_keeps_every_key_whole_within_a_hundred_columns(
    capsys: pytest.CaptureFixture[str],
):
    print_help(Run)
    out = capsys.readouterr().out
    lines = out.splitlines()
    assert lines[0].split() == ["key", "type", "value", "meaning"]
    assert max(len(line) for line in lines) <= 100
    first_words = [line.split()[0] for line in lines[1:]]
    for row in help_rows(Run):
        assert row.key in first_words
    assert "…" not in out
    assert "\x1b" not in out


def test_print_help_is_whole_when_piped_from_a_narrow_terminal():
    code = (
        "from genjax.config import Config, print_help\n"
        "class A(Config):\n"
        f"    {'long_' * 8}key: int = 3\n"
        f"    '''{'word ' * 30}'''\n"
        "print_help(A)\n"
    )
    path = write(Path("program.py"), code)
    root = Path(__file__).parents[1]
    ran = subprocess.run(
        [sys.executable, str(path)],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONPATH": str(root), "COLUMNS": "40"},
    )
    assert "long_" * 8 + "key" in ran.stdout
    assert ran.stdout.count("word") == 30
    assert max(len(line) for line in ran.stdout.splitlines()) <= 100
