"""Checkpoints: what was saved comes back bit by bit, and what was damaged does not."""

import dataclasses
import json
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from genjax.errors import UserError
from genjax.parallel.mesh import MeshConfig, make_mesh
from genjax.parallel.partition import state_shardings
from genjax.run_config import CheckpointConfig, LogConfig
from genjax.task import TrainState
from tests.toy import Toy, ToyConfig
from tests.train.processes import wait_for
from tests.train.running import run_toy
from train.checkpoint import Checkpoints, SaveError, flatten
from train.loop import Outcome

CONFIG = CheckpointConfig(keep_last=5)
RULES = ((r"weights$", ("fsdp", "tensor")),)


def make_state(seed, size=64):
    """A state with arrays of several types; large enough for files of their own."""
    rng = np.random.default_rng(seed)
    weights = jnp.asarray(rng.normal(size=(size, 32)), jnp.float32)
    return TrainState(
        step=jnp.int32(seed),
        params={"net": {"weights": weights, "half": weights.astype(jnp.bfloat16)}},
        opt_state={"net": (jnp.asarray(rng.integers(0, 99, 7), jnp.int32), {"mu": weights * 2})},
        ema={},
        carry={"flag": jnp.asarray([True, False]), "bytes": jnp.arange(9, dtype=jnp.uint8)},
        key=jax.random.key(seed),
    )


def layout(like, mesh=None):
    mesh = make_mesh(mesh or MeshConfig(data=1))
    return state_shardings(like, RULES, mesh)


def save(folder, steps=(1, 2, 3)):
    checkpoints = Checkpoints(folder, CONFIG)
    for step in steps:
        checkpoints.save(step, make_state(step), {"next_index": step})
    checkpoints.wait()
    checkpoints.close()


def read(folder, config=None, mesh=None, like=None, step=None):
    """What is restored, and what was said."""
    said = []
    like = jax.eval_shape(lambda: make_state(0)) if like is None else like
    checkpoints = Checkpoints(folder, config, tell=said.append)
    try:
        restored = checkpoints.restore(like, layout(like, mesh), step)
    finally:
        checkpoints.close()
    return restored, said


def assert_is(restored, step):
    assert restored.step == step
    assert restored.position == {"next_index": step}
    expected, found = flatten(make_state(step)), flatten(restored.state)
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        assert found[name].dtype == array.dtype
        assert np.asarray(found[name]).tobytes() == np.asarray(array).tobytes(), name


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved") / "checkpoints"
    save(folder)
    return folder


@pytest.fixture
def copy(saved, tmp_path):
    return Path(shutil.copytree(saved, tmp_path / "checkpoints"))


@pytest.mark.fast
def test_round_trip_and_steps(saved):
    restored, said = read(saved)
    assert_is(restored, 3)
    assert jnp.issubdtype(restored.state.key.dtype, jax.dtypes.prng_key)
    assert said == []
    assert_is(read(saved, step=1)[0], 1)


def test_without_checkpoints_there_is_nothing(tmp_path):
    assert read(tmp_path / "checkpoints", CONFIG)[0] is None


@pytest.mark.parametrize(
    "mesh", [MeshConfig(data=8), MeshConfig(data=2, fsdp=4), MeshConfig(fsdp=2, tensor=4)]
)
def test_onto_another_mesh_and_back(saved, tmp_path, mesh):
    restored, _ = read(saved, mesh=mesh)
    assert_is(restored, 3)
    weights = restored.state.params["net"]["weights"]
    assert len(weights.sharding.device_set) == 8
    checkpoints = Checkpoints(tmp_path / "checkpoints", CONFIG)
    checkpoints.save(3, restored.state, restored.position)
    checkpoints.close()
    assert_is(read(tmp_path / "checkpoints")[0], 3)


def value_files(folder, step=3):
    """The files in which the values of large arrays lie, largest first."""
    files = (folder / str(step) / "state").glob("ocdbt.process_*/d/*")
    return sorted(files, key=lambda path: -path.stat().st_size)


def assert_passed_over(copy, named=""):
    """The newest checkpoint counts as damaged, is set aside, and its step can be saved again."""
    restored, said = read(copy, CONFIG)
    assert_is(restored, 2)
    assert len(said) == 2
    assert "step 3 is damaged" in said[0] and named in said[0]
    assert "step 2" in said[1]
    for line in said:
        assert len(line) < 300 and line.count("\n") == 0
    assert sorted(path.name for path in copy.iterdir()) == ["1", "2"]
    assert [path.name for path in (copy.parent / "damaged").iterdir()] == ["3"]
    save(copy, steps=[3])
    assert_is(read(copy)[0], 3)


@pytest.mark.fast
def test_flipped_bits_in_values_are_found_and_the_array_is_named(copy):
    """Some flips break the compression, others give other values: both are damage."""
    path = value_files(copy)[0]
    data = path.read_bytes()
    differs = 0
    for place in np.linspace(len(data) * 0.1, len(data) * 0.9, 12).astype(int):
        broken = bytearray(data)
        broken[place] ^= 1
        path.write_bytes(broken)
        restored, said = read(copy)
        assert_is(restored, 2 if said else 3)
        if not said:
            continue
        assert "step 3 is damaged: the array " in said[0]
        name = said[0].split("the array ")[1].split()[0]
        assert name in flatten(make_state(3))
        differs += "differs from its checksum" in said[0]
    assert differs > 0
    assert_is(read(copy)[0], 2)
    assert (copy / "3").exists(), "a program that only reads moves nothing"
    assert_passed_over(copy, "the array ")


FILES = ["state/_METADATA", "state/manifest.ocdbt", "state/d/*", "position/metadata"]
FILES += ["checksums/metadata"]


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("content", [None, b"", b"\x80garbage", b"[]", "half"])
def test_broken_files_are_damage(copy, name, content, capfd):
    path = max((copy / "3").glob(name), key=lambda path: path.stat().st_size)
    if content is None:
        path.unlink()
    elif content == "half":
        data = path.read_bytes()
        path.write_bytes(data[: len(data) // 2])
    else:
        path.write_bytes(content)
    assert_passed_over(copy)
    assert capfd.readouterr().err == ""


def test_a_changed_position_is_damage(copy):
    (copy / "3" / "position" / "metadata").write_text('{"next_index": 4}')
    assert_passed_over(copy, "position")


def test_swapped_rows_in_a_checkpoint_are_damage(copy, tmp_path):
    """A sound file with other values, as if blocks were exchanged."""
    state = make_state(3)
    weights = state.params["net"]["weights"].at[:2].set(state.params["net"]["weights"][1::-1])
    other = dataclasses.replace(state, params={"net": state.params["net"] | {"weights": weights}})
    checkpoints = Checkpoints(tmp_path / "other", CONFIG)
    checkpoints.save(3, other, {"next_index": 3})
    checkpoints.close()
    shutil.rmtree(copy / "3" / "state")
    shutil.copytree(tmp_path / "other" / "3" / "state", copy / "3" / "state")
    assert_passed_over(copy, "the array params/net/weights differs from its checksum")


def test_an_empty_folder_is_damage(copy):
    shutil.rmtree(copy / "3")
    (copy / "3").mkdir()
    assert_passed_over(copy)


def test_several_damaged(copy):
    for step in (2, 3):
        (copy / str(step) / "state" / "manifest.ocdbt").unlink()
    restored, said = read(copy, CONFIG)
    assert_is(restored, 1)
    assert [line.split(" is ")[0][-6:] for line in said[:2]] == ["step 3", "step 2"]
    assert sorted(path.name for path in (copy.parent / "damaged").iterdir()) == ["2", "3"]


def test_all_damaged(copy):
    for step in (1, 2, 3):
        (copy / str(step) / "state" / "_METADATA").unlink()
    with pytest.raises(UserError, match="no checkpoint is intact") as caught:
        read(copy, CONFIG)
    assert "--workdir" in str(caught.value) and str(caught.value).count("\n") < 3
    assert sorted(path.name for path in copy.iterdir()) == ["1", "2", "3"]


@pytest.mark.fast
@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda net: net | {"weights": jnp.zeros((8, 8))}, r"weights is float32\[64, 32\] there"),
        (lambda net: net | {"extra": jnp.zeros(3)}, r"params/net/extra is nothing there"),
        (lambda net: {"weights": net["weights"]}, r"params/net/half is bfloat16\[64, 32\] there"),
        (lambda net: net | {"half": net["weights"]}, r"bfloat16\[64, 32\] there and float32"),
    ],
)
def test_another_model_is_refused_and_nothing_moved(copy, change, words):
    state = make_state(0)
    other = dataclasses.replace(state, params={"net": change(state.params["net"])})
    with pytest.raises(UserError, match=words) as caught:
        read(copy, CONFIG, like=jax.eval_shape(lambda: other))
    assert str(caught.value).count("\n") < 3 and len(str(caught.value)) < 500
    assert sorted(path.name for path in copy.iterdir()) == ["1", "2", "3"]
    assert not (copy.parent / "damaged").exists()


def test_a_torn_save_is_not_a_checkpoint(copy):
    shutil.copytree(copy / "3", copy / "4.orbax-checkpoint-tmp")
    assert_is(read(copy, CONFIG)[0], 3)
    assert not (copy / "4.orbax-checkpoint-tmp").exists()


def figured(folder, values, **settings):
    keeping = CheckpointConfig(keep_last=1, best_metric="perplexity", **settings)
    for step, value in values:
        # Each in a session of its own: what is best is known from the disk.
        checkpoints = Checkpoints(folder, keeping)
        figures = None if value is None else {"perplexity": value}
        checkpoints.save(step, make_state(step), {"next_index": step}, figures)
        checkpoints.wait()
        checkpoints.close()
    return sorted(int(path.name) for path in folder.iterdir())


def test_the_best_outlives_sessions(tmp_path):
    values = [(1, 9.0), (2, 5.0), (3, 7.0), (4, None), (5, float("nan")), (6, 8.0)]
    assert figured(tmp_path, values) == [2, 6]
    reader = Checkpoints(tmp_path)
    assert reader.best("perplexity") == 2
    assert reader.best("loss") is None
    reader.close()


def test_the_best_may_be_the_highest(tmp_path):
    values = [(1, 5.0), (2, 9.0), (3, float("inf")), (4, 7.0), (5, 9.0), (6, 1.0)]
    assert figured(tmp_path, values, best_is="highest") == [2, 6]
    reader = Checkpoints(tmp_path)
    assert (reader.best("perplexity", "highest"), reader.best("perplexity")) == (2, 6)
    reader.close()


def test_damaged_figures_do_not_stop_anything(tmp_path):
    figured(tmp_path, [(1, 9.0), (2, 5.0), (3, 7.0)])
    (tmp_path / "2" / "figures" / "metadata").write_bytes(b"\x80{")
    restored, said = read(tmp_path, CheckpointConfig(best_metric="perplexity"))
    assert_is(restored, 3)
    assert said == []


def test_a_best_metric_that_is_not_there(tmp_path):
    checkpoints = Checkpoints(tmp_path, CheckpointConfig(best_metric="perplexety"))
    with pytest.raises(UserError, match=r"best_metric.*'perplexety'; it has perplexity"):
        checkpoints.save(1, make_state(1), {}, {"perplexity": 1.0})
    checkpoints.close()


# ---- training goes on after damage ---------------------------------------------------------------


def toy(**changes):
    keeping = CheckpointConfig(every=5, keep_last=3)
    settings = {"steps": 20, "mesh": MeshConfig(data=1), "checkpoint": keeping}
    return ToyConfig(**(settings | {"log": LogConfig(every=1)} | changes))


def test_training_goes_on_from_the_one_before(tmp_path, capsys):
    run_toy(toy(), tmp_path)
    (tmp_path / "checkpoints" / "20" / "state" / "manifest.ocdbt").unlink()
    result = run_toy(toy(), tmp_path)
    assert result.outcome is Outcome.FINISHED
    said = capsys.readouterr().err
    assert "step 20 is damaged" in said and "step 15 instead" in said
    assert (tmp_path / "damaged" / "20").is_dir()
    assert sorted(int(path.name) for path in (tmp_path / "checkpoints").iterdir()) == [10, 15, 20]


# ---- a full disk ---------------------------------------------------------------------------------


@pytest.fixture
def small_disk():
    """A file system of a few MiB."""
    folder = Path(tempfile.mkdtemp(prefix="small-disk-"))
    command = ["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", str(folder)]
    if shutil.which("mount") is None or subprocess.run(command, capture_output=True).returncode:
        folder.rmdir()
        pytest.skip("cannot mount a small file system here")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)
    folder.rmdir()


def fill(folder, leave=0):
    """Take all room but a number of bytes."""
    disk = os.statvfs(folder)
    (folder / "filler").write_bytes(bytes(max(disk.f_bavail * disk.f_frsize - leave, 0)))


def test_full_disk_while_saving(small_disk, capfd):
    checkpoints = Checkpoints(small_disk / "checkpoints", CheckpointConfig(keep_last=1))
    checkpoints.save(1, make_state(1), {"next_index": 1})
    checkpoints.wait()
    fill(small_disk, leave=16384)
    for step in (2, 3):
        with pytest.raises(SaveError, match="no space left on device") as caught:
            checkpoints.save(step, make_state(step), {"next_index": step})
            checkpoints.wait()
        assert str(caught.value).count("\n") == 0
        assert f"could not save step {step}" in str(caught.value)
        assert "the newest on disk is step 1" in str(caught.value)
        checkpoints.wait()
    assert checkpoints.steps() == [1]
    assert sorted(path.name for path in (small_disk / "checkpoints").iterdir()) == ["1"]
    (small_disk / "filler").unlink()
    checkpoints.save(4, make_state(4), {"next_index": 4})
    checkpoints.wait()
    assert checkpoints.steps() == [4]
    checkpoints.close()
    assert_is(read(small_disk / "checkpoints")[0], 4)
    assert capfd.readouterr().err == ""


class FillsTheDisk(Toy):
    """Lets the disk run full at one step and empties it at another."""

    def __init__(self, config, folder, full, empty):
        super().__init__(config)
        self.folder, self.full, self.empty = folder, full, empty

    def train_step(self, state, batch, variant=None):
        """With so many metrics that each line of the log takes a block."""
        state, metrics = super().train_step(state, batch, variant)
        return state, metrics | {f"another_{number:03}": metrics["loss"] for number in range(100)}

    def variant(self, step):
        if step == self.full:
            last = step // 5 * 5
            wait_for((self.folder / "run" / "checkpoints" / str(last)).exists)
            fill(self.folder)
        if step == self.empty:
            (self.folder / "filler").unlink()
        return super().variant(step)


def log_steps(folder):
    entries = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [entry["step"] for entry in entries if entry["kind"] == "train"]


def test_training_outlives_a_full_disk(small_disk, capfd):
    run = small_disk / "run"
    config = toy(log=LogConfig(every=1, tensorboard=True))
    result = run_toy(config, run, task=FillsTheDisk(config, small_disk, full=7, empty=12))
    assert result.outcome is Outcome.FINISHED
    said = capfd.readouterr().err
    assert "could not save step 10: no space left on device; the newest on disk is step 5" in said
    assert said.count("cannot write the log (No space left on device)") == 1
    assert "logging to TensorBoard ends here (No space left on device)" in said
    assert "Traceback" not in said and len(said.splitlines()) < 12
    assert log_steps(run) == list(range(1, 21))
    assert sorted(int(path.name) for path in (run / "checkpoints").iterdir()) == [5, 15, 20]


def test_a_disk_that_stays_full_ends_with_not_saved(small_disk, capfd):
    run = small_disk / "run"
    result = run_toy(toy(), run, task=FillsTheDisk(toy(), small_disk, full=17, empty=None))
    assert result.outcome is Outcome.NOT_SAVED
    assert int(result.outcome) == 4
    assert "make room" in result.message and "goes on from step 15" in result.message
    (small_disk / "filler").unlink()
    assert run_toy(toy(), run).outcome is Outcome.FINISHED
    assert log_steps(run) == list(range(1, 21))
    assert "Traceback" not in capfd.readouterr().err
