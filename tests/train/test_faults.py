"""What happens to machines: processes killed, bits flipped, disks that cannot be written.

The campaigns are slow tests in pieces, each with its own random numbers; a piece is run alone with
`-k`, such as `-k "killed_often and two-3"`.
"""

import contextlib
import dataclasses
import functools
import random
import re
import shutil
import socket
import subprocess
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from genjax.parallel.mesh import make_mesh
from genjax.run_config import CheckpointConfig, LogConfig
from tests.toy import Toy, ToyConfig
from tests.train.processes import TOY, finished, start, wait_for
from tests.train.running import lines, run_toy
from train.checkpoint import Checkpoints, flatten
from train.loop import Outcome
from train.peers import PROCESS_LOST
from train.program import Program
from train.run_directory import RunDirectory

# ---- one of several processes is killed ----------------------------------------------------------


def start_run(folder, count, *settings, **environment):
    """Start all processes of a toy run."""
    (folder.parent / "toy.toml").write_text(TOY)
    arguments = [folder.parent / "toy.toml", f"mesh.data={count}", *settings, "--workdir", folder]
    if count > 1:
        with socket.create_server(("127.0.0.1", 0)) as server:
            port = server.getsockname()[1]
        arguments += ["--coordinator", f"127.0.0.1:{port}", "--num-processes", count]
    return [
        start(*arguments, *(["--process-id", index] if count > 1 else []), **environment)
        for index in range(count)
    ]


@contextlib.contextmanager
def started(folder, count, *settings, **environment):
    """The processes of a run; those that are left at the end are killed."""
    with contextlib.ExitStack() as stack:
        processes = start_run(folder, count, *settings, **environment)
        for process in processes:
            stack.enter_context(finished(process))
        yield processes


def completed(folder, count, *settings, **environment):
    """Run all processes to their end; returns what they said."""
    with started(folder, count, *settings, **environment) as processes:
        said = [process.communicate(timeout=300)[0] for process in processes]
    assert [process.returncode for process in processes] == [0] * count, "\n".join(said)
    return "\n".join(said)


def saved(folder):
    """The steps of finished checkpoints, oldest first."""
    with contextlib.suppress(FileNotFoundError):
        names = [path.name for path in (folder / "checkpoints").iterdir()]
        return sorted(int(name) for name in names if name.isdigit())
    return []


def newest(folder):
    return max(saved(folder), default=0)


def losses(folder):
    return [(entry["step"], entry["loss"]) for entry in lines(folder, "train")]


def check_lost(folder, victim, lost_seconds, *, within):
    """Kill one of two processes; returns the seconds until the other ended."""
    settings = ["steps=100000", f"faults.lost_seconds={lost_seconds}"]
    with started(folder, 2, *settings, TOY_SLEEP="0.02") as processes:
        wait_for(lambda: newest(folder) >= 4, processes[0])
        processes[victim].kill()
        killed = time.monotonic()
        other = processes[1 - victim]
        said, _ = other.communicate(timeout=within + 60)
        seconds = time.monotonic() - killed
    assert other.returncode == PROCESS_LOST, said
    last = said.splitlines()[-1]
    assert re.match(
        rf"process {victim} of 2 \(host \S+, pid {processes[victim].pid}\) "
        r"(has not been heard of for \d+ s|is gone: its port is closed); stopping\. "
        rf"Start the same command on all again: it goes on from step {newest(folder)}$",
        last,
    ), said
    assert "Traceback" not in said
    assert seconds < within
    return seconds


def test_one_of_two_processes_is_lost(tmp_path):
    seconds = check_lost(tmp_path / "run", victim=1, lost_seconds=3, within=60)
    assert seconds > 1.0, "only once it was silent for a while"


@pytest.mark.slow
@pytest.mark.parametrize("victim", [0, 1])
def test_lost_at_the_shipped_setting(tmp_path, victim, record_property):
    """Within a minute; and the run that is started again equals one that nothing happened to."""
    folder = tmp_path / "run"
    shipped = ToyConfig().faults.lost_seconds
    seconds = check_lost(folder, victim, shipped, within=60)
    record_property("seconds", seconds)
    print(f"process {victim} killed: the other ended after {seconds:.1f} s")
    steps = newest(folder) + 20
    # The number of steps is no change that a run may go on with, but in its file.
    text = (folder / "config.toml").read_text()
    (folder / "config.toml").write_text(text.replace("steps = 100000", f"steps = {steps}"))
    said = completed(folder, 2, f"steps={steps}")
    assert f"resumed from step {steps - 20}" in said
    completed(tmp_path / "unbroken", 2, f"steps={steps}")
    assert losses(folder) == losses(tmp_path / "unbroken")


@pytest.mark.slow
@pytest.mark.parametrize("culprit", [0, 1])
def test_one_of_two_processes_fails(tmp_path, culprit):
    """It shows its error; the other names it, or shows what the error became there."""
    with started(tmp_path / "run", 2, "steps=1000", TOY_FAILS=f"{culprit}:7") as processes:
        said = [process.communicate(timeout=120)[0] for process in processes]
    codes = [process.returncode for process in processes]
    assert codes[culprit] == 1, said
    assert "RuntimeError: the toy fails" in said[culprit]
    assert codes[1 - culprit] in (1, PROCESS_LOST), said


# ---- killed again and again ----------------------------------------------------------------------

KILLS, PIECES = 10, 5
STEPS = 300


def kill_at_random(folder, count, rng):
    """Start a run and kill it at a random moment; returns the newest step saved before that.

    Of several processes one is killed, and the others have to end by themselves; or all are.
    """
    settings = [f"steps={STEPS}", "faults.lost_seconds=3"]
    at_start = rng.random() < 0.2
    before = newest(folder)
    with started(folder, count, *settings, TOY_SLEEP="0.01") as processes:
        if at_start:
            time.sleep(rng.uniform(0.5, 6.0))
        else:
            wait_for(lambda: newest(folder) > before or processes[0].poll() is not None)
            time.sleep(rng.uniform(0.0, 1.0))
        before = newest(folder)
        victims = processes if at_start else [rng.choice(processes)]
        for process in victims:
            process.kill()
        for process in processes:
            said, _ = process.communicate(timeout=60)
            assert "damaged" not in said
            if process not in victims:
                assert process.returncode == PROCESS_LOST or newest(folder) == STEPS, said
    return before


def check_intact(folder):
    """The checkpoints that a run keeps are whole; an older one may just be being deleted."""
    checkpoints = Checkpoints(folder / "checkpoints")
    for step in checkpoints.steps()[-2:]:
        assert checkpoints.files.problems(step) == [], step
    checkpoints.close()


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    """The losses of a run of so many processes that nothing happens to."""

    @functools.cache
    def losses_of(count):
        folder = tmp_path_factory.mktemp("unbroken") / "run"
        completed(folder, count, f"steps={STEPS}")
        return losses(folder)

    return losses_of


@pytest.mark.slow
@pytest.mark.parametrize("piece", range(PIECES))
@pytest.mark.parametrize("count", [1, 2], ids=["one", "two"])
def test_killed_often(tmp_path, unbroken, count, piece):
    """No finished save is lost, every save is intact, and the losses are as if nothing happened."""
    folder = tmp_path / "run"
    rng = random.Random(f"{count} {piece}")
    moments = []
    for _ in range(KILLS):
        before = kill_at_random(folder, count, rng)
        assert newest(folder) >= before, "a finished save is lost"
        check_intact(folder) if saved(folder) else None
        moments.append(newest(folder))
    print(f"killed at steps {moments}")
    assert len(set(moments)) > 3 and moments[0] < STEPS
    said = completed(folder, count, f"steps={STEPS}")
    assert newest(folder) == STEPS and "damaged" not in said
    assert moments[-1] == STEPS or f"resumed from step {moments[-1]}" in said
    assert not (folder / "damaged").exists()
    assert losses(folder) == unbroken(count)


# ---- flipped bits --------------------------------------------------------------------------------


class Large(Toy):
    """With arrays that fill their files: random numbers do not compress."""

    def init(self, key):
        state = super().init(key)
        table = jax.random.normal(key, (128, 128))
        # An average that no step touches.
        ema = {"table": table, "half": table[:64].astype(jnp.bfloat16)}
        return dataclasses.replace(state, ema=ema)


LARGE = ToyConfig(
    steps=20,
    mesh={"data": 1},
    checkpoint=CheckpointConfig(every=5, keep_last=3),
    log=LogConfig(every=1, progress=False),
)


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    """The folder of a finished run."""
    folder = tmp_path_factory.mktemp("large") / "run"
    run_toy(LARGE, folder, task=Large(LARGE))
    return folder


def flip(paths, rng, share=1.0):
    """Flip one bit of all those in the first `share` of some files."""
    sizes = [int(share * path.stat().st_size) for path in paths]
    place = rng.randrange(sum(sizes))
    for path, size in zip(paths, sizes, strict=True):
        if place < size:
            data = bytearray(path.read_bytes())
            data[place] ^= 1 << rng.randrange(8)
            path.write_bytes(data)
            return
        place -= size


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(20))
def test_a_flipped_bit_is_found(large, tmp_path, seed, capsys):
    """The array is named, and training goes on from the step before to the same end."""
    folder = shutil.copytree(large, tmp_path / "run")
    files = (folder / "checkpoints" / "20" / "state").glob("ocdbt.process_*/d/*")
    # Behind the values such a file may end with an index that nobody reads any more.
    flip([path for path in files if path.stat().st_size > 4096], random.Random(seed), 0.95)
    result = run_toy(LARGE, folder, task=Large(LARGE))
    said = capsys.readouterr().err
    assert result.outcome is Outcome.FINISHED
    (named,) = re.findall(r"the checkpoint of step 20 is damaged: the array (\S+) ", said)
    assert named in jax.eval_shape(lambda: flatten(Large(LARGE).init(jax.random.key(0))))
    assert "going on from the checkpoint of step 15 instead" in said
    assert "resumed from step 15" in said
    assert (folder / "damaged" / "20").is_dir()
    assert losses(folder) == losses(large)
    check_intact(folder)


@pytest.mark.slow
def test_a_bit_flipped_anywhere_is_found_or_does_no_harm(large, tmp_path):
    """Also in all the other files of a checkpoint, each as often as the next."""
    program = Program(Large(LARGE), make_mesh(LARGE.mesh))
    names = [path.relative_to(large) for path in (large / "checkpoints" / "20").rglob("*")]
    names = sorted(name for name in names if (large / name).is_file())
    rng = random.Random(0)
    values, found = {}, 0
    for name in [None, *names * 4]:
        folder = tmp_path / "run"
        shutil.copytree(large, folder)
        if name is not None:
            flip([folder / name], rng)
        said = []
        checkpoints = Checkpoints(folder / "checkpoints", tell=said.append)
        restored = checkpoints.restore(program.shapes, program.shardings)
        checkpoints.close()
        shutil.rmtree(folder)
        if said:
            found += 1
            assert "step 20 is damaged" in said[0] and restored.step == 15
            continue
        assert restored.step == 20
        for array, value in flatten(restored.state).items():
            values.setdefault(array, np.asarray(value).tobytes())
            assert np.asarray(value).tobytes() == values[array], (name, array)
    assert found > 10


# ---- disks that cannot be written ----------------------------------------------------------------


def mount(folder, *options):
    """Mount a small file system in memory, or change its options; whether that can be done here."""
    command = ["mount", "-t", "tmpfs", "-o", ",".join(["size=3m", *options]), "tmpfs", str(folder)]
    return (
        shutil.which("mount") is not None
        and not subprocess.run(command, capture_output=True).returncode
    )


@pytest.fixture
def own_disk(tmp_path):
    """A run directory whose checkpoints lie on a disk of their own."""
    run = RunDirectory(tmp_path / "run")
    run.open(LARGE, None)
    run.close()
    folder = run.checkpoints
    folder.mkdir()
    if not mount(folder):
        pytest.skip("cannot mount a small file system here")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


class LosesItsDisk(Toy):
    """Its disk cannot be written from one step to another."""

    def __init__(self, config, folder, lost, back):
        super().__init__(config)
        self.folder, self.lost, self.back = folder, lost, back

    def variant(self, step):
        if step == self.lost:
            last = step // 5 * 5
            wait_for((self.folder / str(last)).exists)
            # Busy while the save before is still at work.
            wait_for(lambda: mount(self.folder, "remount", "ro"))
        if step == self.back:
            assert mount(self.folder, "remount", "rw")
        return super().variant(step)


def test_training_outlives_a_disk_that_is_read_only_for_a_while(own_disk, capfd):
    folder = own_disk.parent
    task = LosesItsDisk(LARGE, own_disk, lost=7, back=12)
    result = run_toy(LARGE, folder, task=task)
    said = capfd.readouterr().err
    assert result.outcome is Outcome.FINISHED
    assert "could not save step 10: read-only file system; the newest on disk is step 5" in said
    assert "Traceback" not in said and len(said.splitlines()) < 8
    assert saved(folder) == [5, 15, 20]
    check_intact(folder)


def test_a_disk_that_stays_read_only_ends_with_not_saved(own_disk, capfd):
    folder = own_disk.parent
    result = run_toy(LARGE, folder, task=LosesItsDisk(LARGE, own_disk, lost=12, back=None))
    assert result.outcome is Outcome.NOT_SAVED
    assert "goes on from step 10" in result.message
    assert saved(folder) == [5, 10]
    check_intact(folder)
    assert mount(own_disk, "remount", "rw")
    assert run_toy(LARGE, folder).outcome is Outcome.FINISHED
    assert saved(folder) == [10, 15, 20]
    assert "Traceback" not in capfd.readouterr().err
