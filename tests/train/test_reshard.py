"""A run that goes on with other devices, or on another mesh, goes on with the same losses."""

import functools
from pathlib import Path

import numpy as np
import pytest

from genjax.config import load
from genjax.families import FAMILIES
from genjax.parallel.mesh import MeshConfig
from genjax.run_config import CheckpointConfig, LogConfig
from tests.toy import ToyConfig
from tests.train.running import StopAt, lines, run_toy
from train.loop import Outcome

DEMO = Path(__file__).parents[2] / "configs" / "text" / "demo.toml"

MESHES = {
    "8 devices": MeshConfig(data=8),
    "4 devices": MeshConfig(data=4),
    "1 device": MeshConfig(data=1),
    "fsdp 8": MeshConfig(fsdp=8),
    "fsdp 2, tensor 2": MeshConfig(data=1, fsdp=2, tensor=2),
    "data 2, fsdp 2, tensor 2": MeshConfig(data=2, fsdp=2, tensor=2),
}
STEPS, PAUSE = 12, 5


def toy(mesh):
    return ToyConfig(
        steps=STEPS,
        mesh=MESHES[mesh],
        checkpoint=CheckpointConfig(every=100),
        log=LogConfig(every=1, progress=False),
    )


def transformer(mesh):
    settings = [f"steps={STEPS}", "log.every=1", "checkpoint.every=100", "log.progress=false"]
    settings += ["data.batching.batch_size=8", "evaluation.every=100", "samples.every=100"]
    config = load(DEMO, settings, debug=True, schema=FAMILIES)
    return config.model_copy(update={"mesh": MESHES[mesh]})


@functools.cache
def task_of(family):
    """One task for all runs of a family, whatever the mesh."""
    return family("1 device").make_task()


def losses(family, folder, *meshes):
    """The losses of a run on one mesh, or of one that stops and goes on on the second."""
    stops = [StopAt(PAUSE), None][2 - len(meshes) :]
    for mesh, stop in zip(meshes, stops, strict=True):
        result = run_toy(family(mesh), folder, task=task_of(family), stop=stop)
    assert result.outcome is Outcome.FINISHED
    if len(meshes) == 2:
        (event,) = [e for e in lines(folder, "event") if "resumed" in e["message"]]
        assert event["step"] == PAUSE
    found = lines(folder, "train")
    assert [entry["step"] for entry in found] == list(range(1, STEPS + 1))
    return np.asarray([entry["loss"] for entry in found], np.float32)


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    """The toy's losses on eight devices."""
    return losses(toy, tmp_path_factory.mktemp("unbroken") / "run", "8 devices")


@pytest.mark.parametrize("other", ["8 devices", "4 devices", "1 device", "fsdp 2, tensor 2"])
def test_toy(tmp_path, unbroken, other):
    assert len(np.unique(unbroken)) == STEPS
    resumed = losses(toy, tmp_path / "resumed", "8 devices", other)
    np.testing.assert_array_equal(resumed[:PAUSE], unbroken[:PAUSE])
    if other == "8 devices":
        np.testing.assert_array_equal(resumed, unbroken)
    np.testing.assert_allclose(resumed, unbroken, rtol=2e-5)


@pytest.mark.slow
@pytest.mark.parametrize("family", [toy, transformer])
@pytest.mark.parametrize("first", MESHES)
def test_from_every_mesh_to_every_other(tmp_path, family, first):
    unbroken = losses(family, tmp_path / "unbroken", first)
    assert len(np.unique(unbroken)) == STEPS
    for other in MESHES:
        resumed = losses(family, tmp_path / other, first, other)
        if other == first:
            np.testing.assert_array_equal(resumed, unbroken)
        np.testing.assert_array_equal(resumed[:PAUSE], unbroken[:PAUSE])
        np.testing.assert_allclose(resumed, unbroken, rtol=2e-5, err_msg=other)
