"""Every shipped config on meshes of 8 to 256 devices: where its arrays lie, as written down."""

import functools
import itertools
import json
import re

import jax
import pytest

from genjax.config import load
from genjax.families import FAMILIES
from genjax.parallel.mesh import MeshConfig, abstract_mesh
from genjax.parallel.partition import path_name, state_shardings
from tests.test_configs import CONFIGS, GOLDEN, compare

FOLDER = GOLDEN / "shardings"
MESHES = {
    "data=8": MeshConfig(data=8),
    "fsdp=8": MeshConfig(data=1, fsdp=8),
    "data=2,fsdp=2,tensor=2": MeshConfig(data=2, fsdp=2, tensor=2),
    "data=4,fsdp=64": MeshConfig(data=4, fsdp=64),
    "fsdp=64,tensor=4": MeshConfig(data=1, fsdp=64, tensor=4),
}
SPLITTING = [name for name in MESHES if "fsdp" in name]

# What a config leaves to its data, and the data would say.
CIFAR = ["data.source.size=32"]
FROM_DATA = {
    "image/r3gan_cifar10": CIFAR,
    "image/sngan_cifar10": CIFAR,
    "image/stylegan2_cifar10": CIFAR,
    # The characters of Tiny Shakespeare.
    "text/shakespeare_lstm": ["data.source.path={characters}"],
    "text/shakespeare_transformer": ["data.source.path={characters}"],
}
CHARACTERS = "".join(map(chr, range(ord(" "), ord(" ") + 65)))

LARGE_MODEL = 4 * 2**20
"""Bytes of parameters from which on all but a small part has to be split."""
LARGE_ARRAY = 2**20
"""Bytes from which on an array has to be split."""
CAP = 0.02
EXCEPTIONS: dict[str, float] = {}
"""Configs that may leave a larger share of their parameters whole, with the reason beside each."""

pytestmark = pytest.mark.fast


@pytest.fixture(scope="module")
def characters(tmp_path_factory):
    path = tmp_path_factory.mktemp("text") / "characters.txt"
    path.write_text(CHARACTERS * 200)
    return path


@functools.cache
def task_of(name, characters):
    """The task of a config in its full size, without its data, and its state's shapes."""
    overrides = [text.format(characters=characters) for text in FROM_DATA.get(name, [])]
    task = load(CONFIGS[name], overrides, schema=FAMILIES).rehearsal_task()
    return task, jax.eval_shape(lambda: task.init(jax.random.key(0)))


@functools.cache
def arrays_of(name, mesh, characters):
    """Shape and sharding of every array of the state, by path."""
    config = MESHES[mesh]
    task, shapes = task_of(name, characters)
    devices = config.data * config.fsdp * config.tensor
    shardings = state_shardings(shapes, task.partition_rules, abstract_mesh(config, devices))
    leaves = jax.tree_util.tree_leaves_with_path(shapes)
    return {
        path_name(path): (leaf, sharding)
        for (path, leaf), sharding in zip(leaves, jax.tree.leaves(shardings), strict=True)
    }


def params_of(name, mesh, characters):
    """The same of the parameters alone, by their paths from the network on."""
    return {
        path.removeprefix("params/"): value
        for path, value in arrays_of(name, mesh, characters).items()
        if path.startswith("params/")
    }


def bytes_of(leaf):
    return leaf.size * leaf.dtype.itemsize


# ---- as written down -----------------------------------------------------------------------------


def runs_of(numbers):
    """Numbers in order as texts of runs: 0-3,5."""
    found = []
    for number in sorted(numbers):
        if found and found[-1][1] == number - 1:
            found[-1][1] = number
        else:
            found.append([number, number])
    return ",".join(str(a) if a == b else f"{a}-{b}" for a, b in found)


def collapsed(paths):
    """Paths, those as one that differ only in numbers and of which no combination is missing."""
    groups = {}
    for path in paths:
        groups.setdefault(re.sub(r"\d+", "#", path), []).append(path)
    lines = []
    for pattern, group in groups.items():
        numbers = [tuple(map(int, re.findall(r"\d+", path))) for path in group]
        sets = [sorted(set(column)) for column in zip(*numbers, strict=True)]
        if len(group) == 1 or sorted(numbers) != list(itertools.product(*sets)):
            lines += group
            continue
        texts = (str(*one) if len(one) == 1 else f"{{{runs_of(one)}}}" for one in sets)
        lines.append(re.sub("#", lambda _, texts=texts: next(texts), pattern))
    return sorted(lines)


def split_of(sharding):
    """The mesh axes of each dimension, such as "-, fsdp"; "whole" where none splits anything."""
    parts = []
    for entry in sharding.spec:
        names = (entry,) if isinstance(entry, str) else entry or ()
        parts.append("+".join(name for name in names if sharding.mesh.shape[name] > 1) or "-")
    return ", ".join(parts) if set(parts) - {"-"} else "whole"


def layout_of(params):
    """The paths of the parameters by how they are split."""
    by_split = {}
    for name, (_, sharding) in params.items():
        by_split.setdefault(split_of(sharding), []).append(name)
    if len(by_split) == 1:
        return {split: "all" for split in by_split}
    return {split: collapsed(by_split[split]) for split in sorted(by_split)}


def whole_share(params):
    """The share of the bytes that every device holds whole."""
    whole = sum(bytes_of(leaf) for leaf, sharding in params.values() if is_whole(sharding))
    return whole / sum(bytes_of(leaf) for leaf, _ in params.values())


def is_whole(sharding):
    return split_of(sharding) == "whole"


def written(name, characters):
    """What is written down of a config; meshes that split it alike stand together."""
    found = []
    for mesh in MESHES:
        params = params_of(name, mesh, characters)
        layout = {"whole": f"{100 * whole_share(params):.2f}%", "layout": layout_of(params)}
        same = next((one for one in found if one[1] == layout), None)
        if same is None:
            found.append(([mesh], layout))
        else:
            same[0].append(mesh)
    size = sum(bytes_of(leaf) for leaf, _ in params_of(name, "data=8", characters).values())
    tree = {"bytes": size} | {" | ".join(meshes): layout for meshes, layout in found}
    return json.dumps(tree, indent=1) + "\n"


@pytest.mark.parametrize("name", CONFIGS)
def test_the_parameters_of_a_config_lie_as_written_down(name, characters):
    compare(written(name, characters), FOLDER / f"{name.replace('/', '-')}.json")


def test_no_layout_is_left_of_a_config_that_is_gone():
    kept = {file.name for file in FOLDER.iterdir()}
    assert kept == {f"{name.replace('/', '-')}.json" for name in CONFIGS}


# ---- what holds of all ---------------------------------------------------------------------------


def parameter_of(name, parameters):
    """The parameter of the same network whose path ends an array's path, if there is one."""
    _, network, *parts = name.split("/")
    candidates = ("/".join(["params", network, *parts[at:]]) for at in range(len(parts)))
    return next((one for one in candidates if one in parameters), None)


@pytest.mark.parametrize("name", CONFIGS)
def test_moments_and_averages_lie_where_their_parameters_do(name, characters):
    for mesh in SPLITTING:
        arrays = arrays_of(name, mesh, characters)
        parameters = {key: value for key, value in arrays.items() if key.startswith("params/")}
        followed = set()
        for path, (leaf, sharding) in arrays.items():
            if not path.startswith(("opt_state/", "ema/")):
                continue
            parameter = parameter_of(path, parameters)
            if parameter is not None and leaf.shape == parameters[parameter][0].shape:
                assert sharding.spec == parameters[parameter][1].spec, path
                followed.add(parameter)
        assert followed == set(parameters)


@pytest.mark.parametrize("name", CONFIGS)
def test_fsdp_leaves_no_large_array_whole_and_little_in_all(name, characters):
    for mesh in SPLITTING:
        whole = {
            path
            for path, (leaf, sharding) in arrays_of(name, mesh, characters).items()
            if path.startswith(("params/", "opt_state/", "ema/"))
            and is_whole(sharding)
            and bytes_of(leaf) > LARGE_ARRAY
        }
        assert not whole, mesh
        params = params_of(name, mesh, characters)
        if sum(bytes_of(leaf) for leaf, _ in params.values()) > LARGE_MODEL:
            assert whole_share(params) <= EXCEPTIONS.get(name, CAP), mesh


def test_paths_stand_together_only_where_none_is_missing():
    paths = ["a_0/b", "a_1/b", "a_2/b", "a_5/b", "c_0/d_0", "c_1/d_1", "e"]
    assert collapsed(paths) == ["a_{0-2,5}/b", "c_0/d_0", "c_1/d_1", "e"]
