"""A prediction step on eight devices: the same training as on one, and no batch gathered."""

import re

import jax
import numpy as np
import pytest

from genjax.parallel import partition
from genjax.parallel.mesh import MeshConfig
from tests.image.test_adversarial_sharding import compiled, curves
from tests.video.small_predictions import task_of

# What the fast checks of tests/video/test_sharding.py stand for, at length.
pytestmark = pytest.mark.slow

CASES = {
    "convlstm": ("convlstm", "predict", {"sampling": {"kind": "reverse", "begin": 2, "steps": 9}}),
    "hoisted": ("convlstm", "predict", {}),
    "predrnn": ("predrnn", "interpolate", {}),
    "simvp": ("simvp", "inpaint", {}),
}


def task_for(name):
    network, asked, tables = CASES[name]
    return task_of(network, asked, data={"batch_size": 16}, **tables)


@pytest.mark.parametrize(
    ("name", "mesh"),
    [
        pytest.param("hoisted", MeshConfig(data=4, fsdp=2), marks=pytest.mark.slow),
        pytest.param("simvp", MeshConfig(data=8), marks=pytest.mark.slow),
        pytest.param("convlstm", MeshConfig(data=8), marks=pytest.mark.slow),
        pytest.param("predrnn", MeshConfig(data=4, fsdp=2), marks=pytest.mark.slow),
        pytest.param("simvp", MeshConfig(data=4, fsdp=2), marks=pytest.mark.slow),
    ],
)
def test_curves_do_not_depend_on_the_devices(monkeypatch, name, mesh):
    monkeypatch.setattr(partition, "FSDP_MINIMUM_SIZE", 64)
    expected, expected_params = curves(task_for(name), MeshConfig(data=1))
    found, params = curves(task_for(name), mesh)
    for one, other in zip(found, expected, strict=True):
        for metric, value in other.items():
            np.testing.assert_allclose(one[metric], value, rtol=2e-3, atol=1e-5, err_msg=metric)
    moved = jax.tree.map(lambda a, b: np.abs(a - b), params, expected_params)
    wrong = np.concatenate([leaf.ravel() for leaf in jax.tree.leaves(moved)])
    assert (wrong > 1e-4).mean() < 0.02


@pytest.mark.parametrize(
    "name", ["hoisted", *(pytest.param(n, marks=pytest.mark.slow) for n in CASES if n != "hoisted")]
)
def test_no_batch_is_gathered(name):
    text = compiled(task_for(name), None, 8).as_text()
    assert "all-reduce" in text
    for kind in ("all-gather", "all-to-all", "collective-permute"):
        assert not re.findall(rf"{kind}(?:-start)?\(", text), kind
