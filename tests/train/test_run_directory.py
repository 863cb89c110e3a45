"""Run directories: one process, one config, and everything a run needs before it exists."""

import json
import multiprocessing
import os
import tomllib

import pytest

from genjax.config import load
from genjax.errors import UserError
from genjax.parallel.mesh import MeshConfig
from genjax.parallel.platform import PlatformConfig
from genjax.run_config import CheckpointConfig, LogConfig
from tests.toy import ToyConfig
from train.run_directory import RunDirectory

CONFIG = ToyConfig(steps=7)


def opened(folder, config=CONFIG, saved=None, **settings):
    run = RunDirectory(folder)
    run.open(config, saved, **settings)
    return run


@pytest.mark.fast
def test_it_explains_itself(tmp_path):
    folder = tmp_path / "a" / "run"
    opened(folder).close()
    assert RunDirectory(folder).exists()
    assert load(folder / "config.toml", schema=ToyConfig) == CONFIG
    assert tomllib.loads((folder / "config.toml").read_text())["seed"] == 0
    environment = json.loads((folder / "environment.json").read_text())
    assert environment["versions"]["jax"] and environment["devices"]
    assert not list(folder.glob("*.part"))


@pytest.mark.fast
def test_each_session_leaves_an_account(tmp_path):
    opened(tmp_path).close()
    first = (tmp_path / "environment.json").read_bytes()
    for _ in range(2):
        opened(tmp_path, CONFIG, CONFIG).close()
    assert (tmp_path / "environment.json").read_bytes() == first
    later = [json.loads(line) for line in (tmp_path / "resumes.jsonl").read_text().splitlines()]
    assert [session.keys() for session in later] == [json.loads(first).keys()] * 2


@pytest.mark.fast
@pytest.mark.parametrize(
    "change",
    [
        {"checkpoint": CheckpointConfig(every=9)},
        {"log": LogConfig(every=3, tensorboard=True)},
        {"mesh": MeshConfig(data=2)},
        {"platform": PlatformConfig(reading_threads=3)},
    ],
)
def test_changes_of_how_it_runs_are_allowed(tmp_path, change):
    opened(tmp_path).close()
    changed = CONFIG.model_copy(update=change)
    opened(tmp_path, changed, CONFIG).close()
    assert load(tmp_path / "config.toml", schema=ToyConfig) == changed


@pytest.mark.fast
def test_changes_of_what_it_computes_are_told_and_refused(tmp_path):
    opened(tmp_path).close()
    before = (tmp_path / "config.toml").read_bytes()
    changed = CONFIG.model_copy(update={"seed": 3, "learning_rate": 0.5})
    with pytest.raises(UserError) as caught:
        opened(tmp_path, changed, CONFIG)
    lines = str(caught.value).splitlines()
    assert "seed: 0 in the run, 3 asked for" in str(caught.value)
    assert "learning_rate: 0.2 in the run, 0.5 asked for" in str(caught.value)
    assert "--workdir" in lines[-1] and len(lines) == 4
    assert (tmp_path / "config.toml").read_bytes() == before
    opened(tmp_path, CONFIG, CONFIG).close()


def test_another_folder_is_refused_and_left_as_it_is(tmp_path):
    (tmp_path / "thesis.tex").write_text("text")
    with pytest.raises(UserError, match=r"not a run \(it holds thesis.tex\).*\n?.*--workdir"):
        opened(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


@pytest.mark.parametrize("cut_at", ["assets", "environment.json", "config.toml"])
def test_a_start_cut_short_can_be_repeated(tmp_path, monkeypatch, cut_at):
    class Cut(Exception):
        pass

    def save_assets(folder):
        (folder / "tokenizer.json.part").write_text("half")
        if cut_at == "assets":
            raise Cut
        (folder / "tokenizer.json").write_text("whole")

    write = RunDirectory._write

    def write_half(self, name, text):
        if name == cut_at:
            (self.folder / f"{name}.part").write_text(text[:9])
            raise Cut
        write(self, name, text)

    with monkeypatch.context() as patch, pytest.raises(Cut):
        patch.setattr(RunDirectory, "_write", write_half)
        opened(tmp_path, save_assets=save_assets)
    assert not RunDirectory(tmp_path).exists()
    assets = []
    opened(tmp_path, save_assets=assets.append).close()
    assert assets == [tmp_path / "assets"]
    assert RunDirectory(tmp_path).exists()


def hold(folder, ready, done):
    run = opened(folder)
    ready.set()
    done.wait(60)
    run.close()


def test_two_processes(tmp_path):
    context = multiprocessing.get_context("spawn")
    ready, done = context.Event(), context.Event()
    process = context.Process(target=hold, args=(tmp_path, ready, done))
    process.start()
    try:
        assert ready.wait(60)
        with pytest.raises(UserError, match=f"pid {process.pid}") as caught:
            opened(tmp_path, CONFIG, CONFIG)
        assert "--workdir" in str(caught.value)
    finally:
        done.set()
        process.join(60)
        process.close()
    opened(tmp_path, CONFIG, CONFIG).close()


def test_the_lock_of_a_dead_process_does_not_hold(tmp_path):
    opened(tmp_path).close()
    (tmp_path / "lock").write_text("999999")
    run = opened(tmp_path, CONFIG, CONFIG)
    assert (tmp_path / "lock").read_text() == str(os.getpid())
    run.close()


@pytest.mark.fast
@pytest.mark.parametrize("folder", ["file/run", "/proc/run", "x" * 300, "/dev/null"])
def test_impossible_folders(tmp_path, folder):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="--workdir") as caught:
        run = RunDirectory(tmp_path / folder)
        run.exists()
        run.open(CONFIG, None)
    assert folder in str(caught.value) and str(caught.value).count("\n") < 2
