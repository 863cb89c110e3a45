"""Several processes of one run, real ones on this machine: they act as one.

Most have two with four CPU devices each.
"""

import json
import random
import re
import shutil
import signal
import time
from pathlib import Path

import numpy as np
import pytest

from genjax.config import load
from genjax.families import FAMILIES
from genjax.parallel.mesh import MeshConfig, make_mesh
from genjax.run_config import CheckpointConfig, LogConfig
from tests.toy import Toy, ToyConfig
from tests.train.processes import TOY, address, finished, outcomes, run, several, start, wait_for
from tests.train.running import lines, run_toy
from train import checkpoint
from train.loop import Outcome
from train.program import Program
from train.run_directory import RunDirectory

ROOT = Path(__file__).parents[2]
STEPS = 40
FOUR = {"JAX_NUM_CPU_DEVICES": "4"}
EIGHT = {"JAX_NUM_CPU_DEVICES": "8"}
SETTINGS = [f"steps={STEPS}", "mesh.data=4", "mesh.fsdp=2", "evaluation=4"]
CONFIG = ToyConfig(
    steps=STEPS,
    mesh=MeshConfig(data=4, fsdp=2),
    evaluation=4,
    checkpoint=CheckpointConfig(every=2),
    log=LogConfig(every=1, progress=False),
)


def logged(folder, kind="train", name="loss"):
    return [(entry["step"], entry[name]) for entry in lines(folder, kind)]


def evaluated(folder):
    return logged(folder, "validation", "mean_squared_error")


def saved(folder):
    """The steps of finished checkpoints, oldest first."""
    names = [path.name for path in (folder / "checkpoints").glob("*")]
    return sorted(int(name) for name in names if name.isdigit())


def assert_same(found, expected, rtol=1e-5):
    assert [step for step, _ in found] == [step for step, _ in expected]
    np.testing.assert_allclose([v for _, v in found], [v for _, v in expected], rtol=rtol)


@pytest.fixture(scope="module")
def toy(tmp_path_factory):
    """The toy's config file."""
    file = tmp_path_factory.mktemp("config") / "toy.toml"
    file.write_text(TOY)
    return file


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    """The folder of a run of one process with eight devices."""
    folder = tmp_path_factory.mktemp("unbroken")
    assert run_toy(CONFIG, folder).outcome is Outcome.FINISHED
    return folder


# ---- they train as one, and stop as one ----------------------------------------------------------


def stopped(folder, toy, after):
    """Stop two processes by a signal to the second; returns the step that both stopped at."""
    with several(2, toy, *SETTINGS, "--workdir", folder, TOY_SLEEP="0.05") as running:
        wait_for(lambda: saved(folder) and saved(folder)[-1] >= after, running[0])
        running[1].send_signal(signal.SIGTERM)
        codes, said = outcomes(running)
    assert codes == [75, 75], said
    (step,) = map(int, re.findall(rf"stopped by SIGTERM: saved step (\d+) of {STEPS};", said[0]))
    assert saved(folder)[-1] == logged(folder)[-1][0] == step < STEPS
    # What it says of the signal, at once, is all.
    assert said[1].strip().splitlines() == [
        "SIGTERM: stopping, once saved; Ctrl-C again ends at once"
    ]
    return step


def test_two_processes_are_as_one(toy, unbroken, tmp_path):
    """Losses and evaluations; a signal to one stops both at a saved step; one process goes on."""
    folder = tmp_path / "run"
    step = stopped(folder, toy, after=4)
    assert evaluated(folder)[0][0] == 4 <= step
    assert run_toy(CONFIG, folder).outcome is Outcome.FINISHED
    assert_same(logged(folder), logged(unbroken))
    assert_same(evaluated(folder), evaluated(unbroken))
    accounts = [json.loads((folder / "environment.json").read_text())]
    accounts += [json.loads(line) for line in (folder / "resumes.jsonl").read_text().splitlines()]
    assert [account["processes"] for account in accounts] == [2, 1]


@pytest.mark.slow
@pytest.mark.parametrize("devices", [1, 4])
def test_other_numbers_of_devices_go_on(toy, unbroken, tmp_path, devices):
    folder = tmp_path / "run"
    stopped(folder, toy, after=2)
    smaller = CONFIG.model_copy(update={"mesh": MeshConfig(data=devices)})
    assert run_toy(smaller, folder).outcome is Outcome.FINISHED
    assert_same(logged(folder), logged(unbroken))
    assert_same(evaluated(folder), evaluated(unbroken))


@pytest.mark.slow
def test_rows_are_right_on_any_mesh(toy, unbroken, tmp_path):
    """Also where two processes hold the same rows, or halves of them."""
    settings = ["steps=6", "mesh.data=-1", "mesh.tensor=1|2|4", "mesh.sequence=1|2"]
    settings += ["mesh.fsdp=1", "evaluation=4"]
    with several(2, toy, *settings, "--workdir", tmp_path) as running:
        codes, said = outcomes(running, 300)
    assert codes == [0, 0], said
    folders = [path for path in tmp_path.iterdir() if path.is_dir()]
    assert len(folders) == 6
    for folder in folders:
        assert_same(logged(folder), logged(unbroken)[:6])
        assert_same(evaluated(folder)[:1], evaluated(unbroken)[:1])


@pytest.mark.slow
def test_slurm_starts_them(toy, unbroken, tmp_path):
    """By the variables that it sets, without a flag."""
    own = {
        # It also says where they meet: one of 4096 ports.
        "SLURM_JOB_ID": str(random.randrange(2**12)),
        "SLURM_STEP_NODELIST": "localhost",
        "SLURM_STEP_NUM_NODES": "1",
        "SLURM_NTASKS": "2",
    }
    settings = ["steps=6", *SETTINGS[1:], "--workdir", tmp_path / "run"]
    tasks = [own | FOUR | {"SLURM_PROCID": n, "SLURM_LOCALID": n} for n in ("0", "1")]
    with (
        finished(start(toy, *settings, **tasks[0])) as one,
        finished(start(toy, *settings, **tasks[1])) as other,
    ):
        codes, said = outcomes([one, other])
    assert codes == [0, 0], said
    assert said[1] == ""
    assert_same(logged(tmp_path / "run"), logged(unbroken)[:6])
    account = json.loads((tmp_path / "run" / "environment.json").read_text())
    assert account["processes"] == 2 and len(account["devices"]) == 8


TEXT = f"data.source.path={ROOT / 'README.md'}"
DIGITS = 'data.source={kind="digits",size=16}'
GAME = ["generator_loss", "discriminator_loss"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("config", "settings", "names", "rtol"),
    [
        ("text/demo", ["data.batching.batch_size=8"], ["loss"], 2e-5),
        # Each process holds parts of every layer, and reads all rows.
        ("text/demo", ["data.batching.batch_size=8", "mesh.tensor=8"], ["loss"], 2e-5),
        ("text/shakespeare_lstm", ["data.batching.batch_size=8", TEXT], ["loss"], 2e-5),
        ("image/demo", ["data.batch_size=8"], GAME, 1e-3),
        ("image/textures", [DIGITS, "data.batch_size=8"], GAME, 1e-3),
        ("video/demo", ["data.batch_size=8"], ["loss"], 2e-5),
        (
            "video/shapes_stylegan2",
            ["data.batch_size=8"],
            ["generator_loss", "frame_discriminator_loss", "clip_discriminator_loss"],
            1e-3,
        ),
    ],
)
def test_each_kind_of_model(tmp_path, config, settings, names, rtol):
    """Two processes log what one does, to the end of a config's small size."""
    file = ROOT / "configs" / f"{config}.toml"
    arguments = [file, "--debug", *settings, "mesh.data=-1", "log.every=1"]
    code, alone = run(*arguments, "--workdir", tmp_path / "one", toy=False, **EIGHT)
    assert code == 0, alone
    with several(2, *arguments, "--workdir", tmp_path / "two", toy=False) as running:
        codes, said = outcomes(running, 300)
    assert codes == [0, 0], said
    steps = load(file, ["log.every=1"], debug=True, schema=FAMILIES).steps
    for name in names:
        found = logged(tmp_path / "two", name=name)
        assert len(found) == steps
        assert_same(found, logged(tmp_path / "one", name=name), rtol)


# ---- mistakes ------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("index", [0, 1])
def test_one_that_stays_alone_says_so(toy, index):
    """Where the others should meet it, and where it should meet the first."""
    place = address()
    alone = ["--coordinator", place, "--num-processes", 2, "--process-id", index]
    began = time.monotonic()
    code, said = run(toy, "platform.start_timeout=3", *alone)
    assert code == 2, said
    assert f"the processes did not find each other at {place} within 3 s" in said
    assert "platform.start_timeout waits longer" in said and "Traceback" not in said
    assert time.monotonic() - began < 30


@pytest.mark.slow
def test_a_mistake_of_all_is_told_once(toy, tmp_path):
    began = time.monotonic()
    with several(2, toy, "mesh.tensor=3", "--workdir", tmp_path / "run") as running:
        codes, said = outcomes(running)
    assert codes == [2, 2], said
    assert said[0].count("mesh: ") == 1 and said[1] == ""
    assert time.monotonic() - began < 60
    # It does not stand in the way of the corrected command.
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_a_run_that_another_trains_is_refused_in_both(toy, tmp_path):
    other = RunDirectory(tmp_path)
    other.open(CONFIG, None)
    settings = [*SETTINGS, "log.progress=false", "--workdir", tmp_path]
    began = time.monotonic()
    with several(2, toy, *settings) as running:
        codes, said = outcomes(running)
    other.close()
    assert codes == [2, 2], said
    assert said[0].count("trains in this run directory; wait for it") == 1 and said[1] == ""
    assert time.monotonic() - began < 60


@pytest.mark.slow
def test_a_mistake_of_one_ends_all(toy, tmp_path):
    """A folder that one machine does not see: the other names the process that ended."""
    settings = [toy, *SETTINGS, "--coordinator", address(), "--num-processes", 2]
    with (
        finished(start(*settings, "--process-id", 0, "--workdir", tmp_path / "a", **FOUR)) as one,
        finished(start(*settings, "--process-id", 1, "--workdir", tmp_path / "b", **FOUR)) as other,
    ):
        codes, said = outcomes([one, other])
    assert codes == [6, 2], said
    assert "process 1 of 2" in said[0] and "process 1 does not see" in said[0]


# ---- checkpoints ---------------------------------------------------------------------------------


@pytest.mark.parametrize("seen", [[], [36, 38, 40]])
def test_all_go_on_from_the_step_that_the_first_one_finds(unbroken, monkeypatch, seen):
    """A list of files on a shared disk may be old, or newer, in another process."""
    assert saved(unbroken)[-2:] == [38, 40]
    folder = unbroken / "checkpoints"
    program = Program(Toy(CONFIG), make_mesh(CONFIG.mesh))
    answers = iter([1, 38])
    monkeypatch.setattr(checkpoint, "agree", lambda here: next(answers))
    checkpoints = checkpoint.Checkpoints(folder)
    monkeypatch.setattr(checkpoints, "steps", lambda: seen)
    restored = checkpoints.restore(program.shapes, program.shardings)
    checkpoints.close()
    assert restored.step == 38 and next(answers, None) is None


@pytest.mark.slow
@pytest.mark.parametrize("culprit", [0, 1])
def test_a_part_that_one_process_cannot_write(toy, unbroken, tmp_path, culprit):
    """The save fails for both, at once; they train on, and the next ones succeed."""
    cannot = " ".join(f"{culprit}:{step}" for step in range(5, 9))
    settings = ["steps=12", *SETTINGS[1:3], "--workdir", tmp_path / "run"]
    began = time.monotonic()
    with several(2, toy, *settings, TOY_CANNOT_WRITE=cannot) as running:
        codes, said = outcomes(running)
    assert codes == [0, 0], said
    # The save of step 4 may still be under way when writing begins to fail.
    assert re.search(
        r"could not save step 6: file too large; the newest on disk is step [24]\n", said[0]
    )
    assert re.search(
        r"could not save step 8: file too large; the newest on disk is step [24]\n", said[0]
    )
    assert "Traceback" not in said[0] + said[1]
    assert saved(tmp_path / "run") == [10, 12]
    assert_same(logged(tmp_path / "run"), logged(unbroken)[:12])
    assert time.monotonic() - began < 100, "no barrier waited for its timeout"


PARTS = ["steps=12", "mesh.data=1", "mesh.fsdp=8"]


@pytest.fixture(scope="module")
def finished_run(toy, tmp_path_factory):
    """The folder of a run of two processes, each of which wrote a part of a large array."""
    folder = tmp_path_factory.mktemp("finished") / "run"
    with several(2, toy, *PARTS, "--workdir", folder, TOY_LARGE="1") as running:
        codes, said = outcomes(running)
    assert codes == [0, 0], said
    return folder


def check_falls_back(folder, toy, unbroken, problem):
    """Both go back to the same step, and one of them moves the damaged checkpoint away."""
    with several(2, toy, *PARTS, "--workdir", folder, TOY_LARGE="1") as running:
        codes, said = outcomes(running)
    assert codes == [0, 0], said
    assert re.search(rf"the checkpoint of step 12 is damaged: {problem}", said[0]), said[0]
    assert "going on from the checkpoint of step 10 instead" in said[0] and said[1] == ""
    assert (folder / "damaged" / "12").is_dir() and saved(folder) == [10, 12]
    assert_same(logged(folder), logged(unbroken)[:12])


@pytest.mark.slow
@pytest.mark.parametrize("part", [0, 1])
def test_a_part_that_one_process_cannot_read(toy, finished_run, unbroken, tmp_path, part):
    folder = shutil.copytree(finished_run, tmp_path / "run")
    shutil.rmtree(folder / "checkpoints" / "12" / "state" / f"ocdbt.process_{part}" / "d")
    check_falls_back(folder, toy, unbroken, r"the array \S+ cannot be read")


@pytest.mark.slow
@pytest.mark.parametrize("part", [0, 1])
@pytest.mark.parametrize("seed", range(2))
def test_a_bit_flipped_in_a_part(toy, finished_run, unbroken, tmp_path, part, seed):
    """Whether the array reads wrong or not at all, and in one process or in both."""
    folder = shutil.copytree(finished_run, tmp_path / "run")
    own = folder / "checkpoints" / "12" / "state" / f"ocdbt.process_{part}" / "d"
    file = max(own.iterdir(), key=lambda path: path.stat().st_size)
    data, rng = bytearray(file.read_bytes()), random.Random(seed)
    assert len(data) > 4096, "a part of the table"
    data[rng.randrange(int(0.9 * len(data)))] ^= 1 << rng.randrange(8)
    file.write_bytes(data)
    check_falls_back(folder, toy, unbroken, r"the array \S+ (differs|cannot be read)")
