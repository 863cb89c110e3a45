"""The command line: what it does, and what it says to mistakes."""

import json
import sys
from pathlib import Path

import jax
import pytest

import train.__main__ as program
from genjax.config import help_rows
from genjax.families import FAMILIES
from genjax.run_config import RunConfig
from tests.toy import ToyConfig
from tests.train.processes import TOY, finished, run, start, wait_for
from train.__main__ import main

DEMO = str(Path(__file__).parents[2] / "configs" / "text" / "demo.toml")


@pytest.fixture
def toy(tmp_path, monkeypatch):
    """A config file of the toy, in an empty working directory."""
    monkeypatch.setattr(program, "FAMILIES", {**FAMILIES, "toy": ToyConfig})
    monkeypatch.chdir(tmp_path)
    cache = jax.config.values["jax_compilation_cache_dir"]
    file = tmp_path / "toy.toml"
    file.write_text(TOY)
    yield str(file)
    jax.config.update("jax_compilation_cache_dir", cache)


def names(folder):
    return sorted(path.name for path in Path(folder).iterdir())


def say(capsys, *arguments):
    """Exit code and what was printed to stderr and stdout."""
    try:
        code = main(list(map(str, arguments)))
    except SystemExit as end:
        code = end.code
    printed = capsys.readouterr()
    return code, printed.err, printed.out


MISTAKES = [
    (["seeed=1"], "seeed", "seed"),
    (["checkpoint.evry=1"], "checkpoint.evry", "every"),
    (["steps=many"], "steps", "integer"),
    (["seed=1.5"], "seed", "1.5"),
    (["steps=0"], "steps", "1"),
    (["seed=-1"], "seed", "0"),
    (["divergence_factor=nan"], "divergence_factor", "number"),
    (["log=3"], "log", "3"),
    (["kind=text"], "kind", "toy"),
    (["steps"], "steps", "key=value"),
    (["steps="], "steps", "value"),
    (["seed=1", "seed=2"], "seed", "twice"),
    (["seed=0|0"], "seed", "twice"),
    (["mesh.data=0"], "mesh.data", "0"),
    (["mesh.fsdp=99"], "99", "devices"),
    (["--debug"], "debug", "table"),
]


@pytest.mark.fast
@pytest.mark.parametrize(("arguments", "thing", "way_out"), MISTAKES)
def test_mistakes_are_told_in_a_few_lines(toy, capsys, arguments, thing, way_out):
    code, said, out = say(capsys, toy, *arguments)
    assert code == 2 and out == ""
    assert thing in said and way_out in said
    assert 1 <= len(said.splitlines()) <= 4 and "Traceback" not in said


@pytest.mark.fast
def test_missing_and_damaged_config_files(toy, capsys, tmp_path):
    for name, content, words in [
        ("tyo.toml", None, "did you mean"),
        ("none.toml", b"steps = ", "not TOML"),
        ("bytes.toml", b"\xff\xfe", "UTF-8"),
        ("empty.toml", b"", "kind: missing"),
        ("other.toml", b'kind = "images"', "language_modeling"),
    ]:
        if content is not None:
            (tmp_path / name).write_bytes(content)
        code, said, _ = say(capsys, tmp_path / name)
        assert code == 2 and name in said and words in said
        assert len(said.splitlines()) <= 3
    assert say(capsys, tmp_path)[0] == 2


@pytest.mark.fast
def test_no_arguments_and_unknown_options(toy, capsys):
    code, said, _ = say(capsys)
    assert code == 2 and said.startswith("usage: python -m train")
    code, said, _ = say(capsys, toy, "--wrokdir", "x")
    assert code == 2 and "--wrokdir" in said


@pytest.mark.fast
def test_help_lists_every_field(toy, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "300")
    monkeypatch.setattr(program, "FAMILIES", FAMILIES)
    rows = {row.key for schema in FAMILIES.values() for row in help_rows(schema)}
    assert {"seed", "checkpoint.every", "model.num_layers"} <= rows
    code, _, out = say(capsys, "--help")
    assert code == 0 and "exit codes:" in out
    missing = {row for row in rows if row not in out}
    assert not missing
    code, _, out = say(capsys, DEMO, "--help", "model.kind=lstm")
    assert code == 0 and "model.embedding_dropout" in out
    assert {row for row in (row.key for row in help_rows(RunConfig)) if row not in out} == set()


def test_dry_run_prints_sizes_and_writes_nothing(toy, capsys, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR")
    code, said, out = say(capsys, DEMO, "--debug", "--dry-run", "mesh.data=2")
    assert code == 0, said
    for words in ("parameters of language_model", "KiB", "FLOP", "tokens a step", "data 2", "128"):
        assert words in out
    assert say(capsys, toy, "--dry-run", "--workdir", tmp_path / "run")[0] == 0
    assert names(tmp_path) == ["toy.toml"]


@pytest.mark.fast
def test_a_run_and_the_same_again(toy, capsys, tmp_path):
    code, said, _ = say(capsys, toy, "steps=2")
    assert code == 0 and "finished all 2 steps" in said
    folder = tmp_path / "runs" / "toy"
    assert {"config.toml", "environment.json", "metrics.jsonl", "checkpoints"} <= set(names(folder))
    code, said, _ = say(capsys, toy, "steps=2", "log.every=2", "mesh.data=2")
    assert code == 0 and "all 2 steps are done" in said
    code, said, _ = say(capsys, toy, "steps=2", "seed=5")
    assert code == 2 and "seed: 0 in the run, 5 asked for" in said and "--workdir" in said
    assert len(said.splitlines()) <= 4


@pytest.mark.fast
def test_a_sweep_makes_a_run_of_each_value(toy, capsys, tmp_path):
    code, _, _ = say(capsys, toy, "steps=1", "seed=0|1", "--workdir", tmp_path / "sweep")
    assert code == 0
    assert names(tmp_path / "sweep") == ["seed=0", "seed=1"]
    for seed in (0, 1):
        text = (tmp_path / "sweep" / f"seed={seed}" / "config.toml").read_text()
        assert f"seed = {seed}\n" in text


@pytest.mark.fast
def test_names_of_runs():
    def label(*values):
        return [{"data.source.path": value} for value in values]

    assert program._run_names([{}]) == [""]
    assert program._run_names([{"a": "1", "b.c": "2e-3"}]) == ["a=1,b.c=2e-3"]
    assert program._run_names(label('"/x/a b"', "/x/c")) == [
        "data.source.path=_x_a_b_",
        "data.source.path=_x_c",
    ]
    clash = program._run_names(label("a/b", "a b", "../../etc"))
    assert len(set(clash)) == 3
    long = program._run_names(label("a" * 400, "a" * 401))
    assert len(set(long)) == 2
    for name in clash + long:
        assert "/" not in name and len(name) < 200 and name not in ("", ".", "..")


def test_a_damaged_config_of_a_run(toy, capsys, tmp_path):
    say(capsys, toy, "steps=1")
    file = tmp_path / "runs" / "toy" / "config.toml"
    for content in (b"", b"steps = [", b"\xff"):
        file.write_bytes(content)
        code, said, _ = say(capsys, toy, "steps=1")
        assert code == 2 and "runs/toy/config.toml" in said and len(said.splitlines()) <= 3


def test_impossible_and_foreign_folders(toy, capsys, tmp_path):
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    (foreign / "notes.txt").write_text("")
    for folder in (foreign, toy + "/run", "/proc/run", tmp_path / ("x" * 300)):
        code, said, _ = say(capsys, toy, "--workdir", folder)
        assert code == 2 and "--workdir" in said and len(said.splitlines()) <= 3
    assert names(foreign) == ["notes.txt"]


def test_a_disk_that_is_full_at_the_start(toy, capsys, monkeypatch):
    def full(*arguments):
        raise OSError(28, "No space left on device", "runs/toy/metrics.jsonl")

    monkeypatch.setattr("train.loop.open_writers", full)
    code, said, _ = say(capsys, toy)
    assert code == 4 and "No space left on device" in said and "make room" in said
    assert len(said.splitlines()) == 1


def test_weights_and_biases_missing(toy, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    code, said, _ = say(capsys, toy, "log.wandb_project=words")
    assert code == 2 and "pip install" in said
    assert say(capsys, toy, "steps=12")[0] == 0


def test_a_batch_that_does_not_split(toy, capsys):
    code, said, _ = say(capsys, toy, "mesh.data=3")
    assert code == 2 and "16 examples does not split over 3 devices" in said


def test_a_mistake_before_the_first_step_leaves_no_run(toy, capsys, tmp_path):
    """The corrected command works in the same folder, with another config if need be."""
    assert say(capsys, toy, "mesh.data=3", "--workdir", tmp_path / "new")[0] == 2
    assert not (tmp_path / "new").exists()
    mine = tmp_path / "mine"
    mine.mkdir()
    assert say(capsys, toy, "mesh.data=3", "--workdir", mine / "run")[0] == 2
    assert names(mine) == []
    assert say(capsys, toy, "steps=4", "--workdir", tmp_path / "new")[0] == 0
    assert say(capsys, toy, "steps=9", "mesh.data=3", "--workdir", tmp_path / "new")[0] == 2
    assert (tmp_path / "new" / "checkpoints" / "4").exists(), "a run that has begun stays"


def test_divergence_ends_with_3(toy, capsys):
    code, said, _ = say(capsys, toy, "learning_rate=1e4", "divergence_factor=1.5")
    assert code == 3 and "\nlower learning_rate and start in a new --workdir" in said


def test_two_processes_on_one_run_directory(tmp_path):
    (tmp_path / "toy.toml").write_text(TOY)
    arguments = (tmp_path / "toy.toml", "--workdir", tmp_path / "run")
    with finished(start(*arguments, TOY_SLEEP="1")) as first:
        wait_for((tmp_path / "run" / "metrics.jsonl").exists, first)
        code, said = run(*arguments)
        assert code == 2 and f"pid {first.pid}" in said
        assert len(said.splitlines()) <= 3
    code, said = run(*arguments)
    assert code == 0, said
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    steps = [entry["step"] for entry in map(json.loads, lines) if entry["kind"] == "train"]
    assert steps == list(range(1, 13))
