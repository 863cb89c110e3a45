"""Listing, verifying, pruning and exporting the checkpoints of a run."""

import dataclasses
import json
import shutil
import sys
import tomllib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from genjax.config import load
from genjax.families import FAMILIES
from genjax.parallel.mesh import MeshConfig
from genjax.run_config import CheckpointConfig, LogConfig
from tests.toy import ToyConfig
from tests.train.processes import wait_for
from tests.train.running import run_toy
from tests.train.test_checkpoint import make_state, value_files
from tools import checkpoint
from train.checkpoint import Checkpoints, flatten
from train.run_directory import RunDirectory

KEEPING = CheckpointConfig(
    every=5, keep_last=2, keep_every=10, best_metric="mean_squared_error", best_is="highest"
)
CONFIG = ToyConfig(
    steps=25,
    evaluation=5,
    checkpoint=KEEPING,
    mesh=MeshConfig(data=2, fsdp=4),
    log=LogConfig(every=25),
)


@pytest.fixture(autouse=True)
def toy_family(monkeypatch):
    monkeypatch.setitem(FAMILIES, "toy", ToyConfig)

    def no_task(self, assets=None):
        raise AssertionError("neither the task nor its data is needed")

    monkeypatch.setattr(ToyConfig, "make_task", no_task)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run on eight devices whose first figure is its best: steps 5, 10, 20 and 25."""
    folder = tmp_path_factory.mktemp("trained") / "run"
    run_toy(CONFIG, folder)
    return folder


@pytest.fixture
def run(trained, tmp_path):
    return shutil.copytree(trained, tmp_path / "run")


def tool(*words):
    return checkpoint.main([str(word) for word in words])


def steps(run):
    return sorted(int(path.name) for path in (run / "checkpoints").iterdir())


def contents(folder):
    """Every file and folder with its bytes and time of change."""
    return {
        path: (path.stat().st_mtime_ns, path.read_bytes() if path.is_file() else None)
        for path in sorted(folder.rglob("*"))
    }


def add(run, step, state):
    """Save one more checkpoint."""
    checkpoints = Checkpoints(run / "checkpoints", CheckpointConfig(keep_last=99))
    checkpoints.save(step, state, {"next_index": step})
    checkpoints.wait()
    checkpoints.close()


def exchange(run, state):
    """Put the arrays of another state into the checkpoint of step 30, whole files all of them."""
    scratch = run.parent / "scratch"
    add(scratch, 30, state)
    shutil.rmtree(run / "checkpoints" / "30" / "state")
    shutil.move(scratch / "checkpoints" / "30" / "state", run / "checkpoints" / "30" / "state")


# ---- list ----------------------------------------------------------------------------------------


def test_the_list_says_why_each_is_kept(run, capsys):
    assert tool(run, "--json") == 0
    listed = json.loads(capsys.readouterr().out)
    rows = listed["checkpoints"]
    assert {row["step"]: row["kept"] for row in rows} == {
        5: ["best"],
        10: ["every 10"],
        20: ["last", "every 10"],
        25: ["last"],
    }
    for row in rows:
        folder = run / "checkpoints" / str(row["step"])
        assert row["bytes"] == sum(f.stat().st_size for f in folder.rglob("*") if f.is_file())
        assert row["written"][:2] == "20" and row["written"] <= rows[-1]["written"]
    figures = [row["figures"]["mean_squared_error"] for row in rows]
    assert figures[0] == max(figures)
    assert tool(run) == 0
    shown = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in shown] == ["step", "5", "10", "20", "25"]
    assert "best" in shown[1] and f"{figures[0]:.5g}" in shown[1]
    (run / "damaged" / "15").mkdir(parents=True)
    assert tool(run, "list") == 0
    assert capsys.readouterr().out.endswith(f"{run / 'damaged'}: 15\n")


def test_without_checkpoints_there_is_nothing_to_do(run, capsys):
    shutil.rmtree(run / "checkpoints")
    assert tool(run) == 0
    assert capsys.readouterr().out == "no checkpoint yet\n"
    assert tool(run, "--json") == 0
    assert json.loads(capsys.readouterr().out) == {"checkpoints": [], "set_aside": []}
    for words in (["verify"], ["prune", "--keep", 1], ["export", "--output", run / "x"]):
        assert tool(run, *words) == 2
        assert "no checkpoint yet" in capsys.readouterr().err
    assert not (run / "checkpoints").exists()


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["verify", "--step", "7"], "--step 7: no such checkpoint; there are 5, 10, 20, 25"),
        (["export", "--step", "7", "--output", "new"], "there are 5, 10, 20, 25"),
        (["export", "--output", "/"], "--output /: exists already"),
        (["export", "--output", "nowhere/new"], "there is no folder nowhere"),
        (["export", "--output", "new", "--ema"], "keeps no averages"),
        (["prune", "--keep", "0"], "--keep 0: at least one"),
    ],
)
def test_mistakes_are_told_in_a_line(trained, capsys, words, told):
    assert tool(trained, *words) == 2
    said = capsys.readouterr().err
    assert told in said and said.count("\n") <= 2


def test_a_folder_that_is_no_run(tmp_path, capsys):
    assert tool(tmp_path, "verify") == 2
    assert "holds no run" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        tool(tmp_path, "--json", "verify")
    assert "--json belongs to list" in capsys.readouterr().err


# ---- verify --------------------------------------------------------------------------------------


def test_what_is_intact_is_left_as_it_is(run, capsys):
    before = contents(run)
    assert tool(run, "verify") == 0
    said = capsys.readouterr()
    # Weights, their two moments, Adam's count, the step, the key and the carry.
    assert said.out.splitlines() == [f"step {n}: intact, 7 arrays" for n in (5, 10, 20, 25)]
    assert said.err == ""
    assert contents(run) == before


def test_every_damaged_array_is_named_and_nothing_changes(run, capsys):
    state = make_state(30)
    add(run, 30, state)
    net = state.params["net"]
    changed = net | {"half": net["half"].at[3, 4].add(1)}
    exchange(run, dataclasses.replace(state, step=jnp.int32(31), params={"net": changed}))
    before = contents(run)
    assert tool(run, "verify") == 1
    assert capsys.readouterr().out.splitlines()[3:] == [
        "step 25: intact, 7 arrays",
        "step 30: DAMAGED",
        "  the array params/net/half differs from its checksum",
        "  the array step differs from its checksum",
        "1 of 5 checkpoints damaged",
    ]
    assert contents(run) == before
    assert tool(run, "verify", "--step", 25) == 0
    assert tool(run, "verify", "--step", "newest") == 1


def test_what_is_not_named_can_be_read(run, capsys):
    """A file of values that was cut short holds some arrays still, and others no longer."""
    state = make_state(30)
    add(run, 30, state)
    large = value_files(run / "checkpoints", 30)[0]
    large.write_bytes(large.read_bytes()[: large.stat().st_size * 9 // 10])
    assert tool(run, "verify", "--step", 30) == 1
    said = capsys.readouterr()
    assert said.err == ""
    lines = said.out.splitlines()[1:-1]
    named = [line.split()[2] for line in lines]
    assert named and lines == [f"  the array {name} cannot be read" for name in named]
    expected = flatten(state)
    rest = sorted(expected.keys() - set(named))
    assert rest and expected.keys() >= set(named)
    checkpoints = Checkpoints(run / "checkpoints")
    for name, array, problem in checkpoints.files.read_arrays(30, rest):
        assert problem == "" and array.devices() == {jax.devices()[0]}
        assert np.asarray(array).tobytes() == np.asarray(expected[name]).tobytes()
    checkpoints.close()


def test_damage_outside_of_the_arrays_is_told(run, capsys):
    damage = {5: "position", 10: "figures", 20: "checksums", 25: "state"}
    for step, item in damage.items():
        file = "_METADATA" if item == "state" else "metadata"
        (run / "checkpoints" / str(step) / item / file).write_bytes(b"\x80{")
    assert tool(run, "verify") == 1
    said = capsys.readouterr()
    lines = said.out.splitlines()
    assert lines[0::2] == [*(f"step {n}: DAMAGED" for n in damage), "4 of 4 checkpoints damaged"]
    assert lines[1] == "  the position in the data cannot be read"
    assert lines[3] == "  the figures of its evaluation cannot be read"
    assert all(line.startswith("  it cannot be read (") for line in lines[5::2])
    assert said.err == ""


# ---- prune ---------------------------------------------------------------------------------------


def test_pruning_tells_before_it_deletes(run, capsys):
    before = contents(run)
    assert tool(run, "prune", "--keep", 1) == 0
    said = capsys.readouterr().out
    assert [f"would delete step {n}" in said for n in (5, 10, 20, 25)] == [True] * 3 + [False]
    assert "--yes" in said
    assert contents(run) == before
    assert tool(run, "prune", "--keep", 2, "--keep-best", "--yes") == 0
    assert "deleted step 10\n1 checkpoint, " in capsys.readouterr().out
    assert steps(run) == [5, 20, 25]
    assert tool(run, "prune", "--before", 20, "--yes") == 0
    assert steps(run) == [20, 25]
    assert tool(run, "prune", "--before", 20, "--yes") == 0
    assert "nothing to delete" in capsys.readouterr().out


def test_the_newest_intact_one_stays(run, capsys):
    (run / "checkpoints" / "25" / "position" / "metadata").write_text("{}")
    assert tool(run, "prune", "--keep", 1, "--yes") == 0
    said = capsys.readouterr()
    assert "step 20 stays: it is the newest intact one" in said.out
    assert "step 25 is damaged: the position" in said.err
    assert steps(run) == [20, 25]
    assert tool(run, "prune", "--before", 99, "--yes") == 0
    assert steps(run) == [20]
    (run / "checkpoints" / "20" / "position" / "metadata").write_text("{}")
    assert tool(run, "prune", "--before", 99, "--yes") == 2
    assert "no checkpoint is intact, so none is deleted" in capsys.readouterr().err
    assert steps(run) == [20]


def test_no_pruning_while_the_run_is_trained(run, capsys):
    training = RunDirectory(run)
    training.lock("")
    try:
        before = contents(run / "checkpoints")
        assert tool(run, "prune", "--keep", 1, "--yes") == 2
        assert "another process" in capsys.readouterr().err
        assert contents(run / "checkpoints") == before
        assert tool(run, "verify") == 0
    finally:
        training.close()
    assert tool(run, "prune", "--keep", 1, "--yes") == 0
    # And it has let go.
    training.lock("")
    training.close()


def test_a_deletion_that_was_cut_short_leaves_no_checkpoint(run, monkeypatch):
    def killed(path, *rest):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("train.checkpoint.shutil.rmtree", killed)
        assert tool(run, "prune", "--keep", 3, "--yes") == 130
    checkpoints = Checkpoints(run / "checkpoints")
    assert checkpoints.steps() == [10, 20, 25]
    checkpoints.close()
    # The next training clears it away, in the background.
    training = Checkpoints(run / "checkpoints", KEEPING)
    wait_for(lambda: len(list((run / "checkpoints").iterdir())) == 3)
    training.close()
    assert steps(run) == [10, 20, 25]


def test_keep_best_without_a_best(run, capsys):
    text = (run / "config.toml").read_text()
    (run / "config.toml").write_text(text.replace('"mean_squared_error"', '"none"'))
    assert tool(run, "prune", "--keep", 1, "--keep-best") == 2
    assert "best_metric (not set)" in capsys.readouterr().err


# ---- export --------------------------------------------------------------------------------------


def averaged_state():
    """Two networks, one with an average, and arrays of several types and shapes."""
    state = make_state(30)
    net = state.params["net"]
    critic = {"scale": jnp.float32(-0.0), "table": jnp.arange(6, dtype=jnp.int8).reshape(2, 3)}
    return dataclasses.replace(
        state,
        params={"net": net, "critic": critic},
        ema={"net": jax.tree.map(lambda leaf: leaf * 3, net)},
    )


@pytest.fixture(scope="module")
def averaged(trained, tmp_path_factory):
    folder = shutil.copytree(trained, tmp_path_factory.mktemp("averaged") / "run")
    add(folder, 30, averaged_state())
    return folder


def exported(path):
    from safetensors import safe_open

    with safe_open(path, framework="np") as file:
        return {name: file.get_tensor(name) for name in file.keys()}, file.metadata()  # noqa: SIM118


@pytest.mark.parametrize("content", ["evaluation", "params", "ema", "all"])
def test_a_file_holds_the_same_bits(averaged, tmp_path, capsys, content):
    path = tmp_path / "model.safetensors"
    option = [] if content == "evaluation" else [f"--{content}"]
    assert tool(averaged, "export", "--output", path, *option) == 0
    assert f"{path}: step 30, " in capsys.readouterr().out
    state = averaged_state()
    trees = {
        "evaluation": state.evaluation_params(),
        "params": state.params,
        "ema": state.ema,
        "all": state,
    }
    if content == "all":
        expected = flatten(state)
    else:
        expected = {
            f"{network}/{name}": array
            for network, arrays in trees[content].items()
            for name, array in arrays.items()
        }
    arrays, metadata = exported(path)
    assert arrays.keys() == expected.keys()
    for name, array in expected.items():
        assert arrays[name].dtype == array.dtype and arrays[name].shape == array.shape
        assert arrays[name].tobytes() == np.asarray(array).tobytes(), name
    assert metadata["step"] == "30" and metadata["kind"] == "toy"
    assert metadata["content"] == content and metadata["genjax_version"]
    assert tomllib.loads(metadata["config"])["steps"] == 25
    copy = tmp_path / "config.toml"
    copy.write_text(metadata["config"])
    assert load(copy, schema=FAMILIES) == CONFIG
    assert path.stat().st_mode == copy.stat().st_mode
    assert sorted(tmp_path.iterdir()) == [copy, path]


def test_a_damaged_checkpoint_is_never_exported(averaged, tmp_path, capsys):
    run = shutil.copytree(averaged, tmp_path / "run")
    exchange(run, dataclasses.replace(averaged_state(), ema={"net": make_state(31).params["net"]}))
    path = tmp_path / "model.safetensors"
    assert tool(run, "export", "--step", 30, "--output", path) == 2
    assert "step 30 is damaged: the array ema/net/" in capsys.readouterr().err
    assert list(tmp_path.glob("model*")) == []
    assert tool(run, "export", "--output", path) == 0
    said = capsys.readouterr()
    assert "step 30 is damaged" in said.err and "step 25" in said.out
    assert exported(path)[1]["step"] == "25"


def test_a_missing_library_is_named(trained, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "safetensors", None)
    assert tool(trained, "export", "--output", tmp_path / "new") == 2
    assert "genjax[export]" in capsys.readouterr().err
