"""Every shipped config: it loads, and it still means the fields and parameters written down."""

import dataclasses
import difflib
import os
import struct
import tomllib
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from genjax.config import check, dump, load
from genjax.families import FAMILIES
from genjax.parallel.partition import path_name

ROOT = Path(__file__).parent.parent
GOLDEN = Path(__file__).parent / "golden"
UPDATE = "GENJAX_UPDATE_GOLDEN"
CONFIGS = {
    str(path.relative_to(ROOT / "configs").with_suffix("")): path
    for path in sorted((ROOT / "configs").rglob("*.toml"))
}
# Sentences with enough different pairs of letters for the small vocabulary below.
STAND_IN = (
    "The quick brown fox jumps over the lazy dog; pack my box with five dozen liquor jugs.\n"
    "How vexingly quick daft zebras jump: sphinx of black quartz, judge my vow!<|endoftext|>"
) * 60
STAND_IN_VOCABULARY = 300
# Counting their work traces penalties through ADA, which takes seconds; configs of smaller steps
# of the same families are counted.
TRACED_SLOWLY = {
    name
    for name in CONFIGS
    if name.startswith(("image/stylegan2", "image/textures", "image/r3gan", "image/sngan"))
    or name.startswith(("video/shape", "video/stylegan2", "video/vgan"))
}

pytestmark = pytest.mark.fast


@pytest.fixture(scope="module")
def stand_in(tmp_path_factory):
    """A folder with what stands in the place of data that does not come with the project."""
    folder = tmp_path_factory.mktemp("data")
    (folder / "text.txt").write_text(STAND_IN, encoding="utf-8")
    random = np.random.default_rng(0)
    for label in range(10):
        for number in range(2):
            path = folder / "classes" / str(label) / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            pixels = random.integers(0, 256, (32, 32, 3), np.uint8)
            Image.fromarray(pixels).save(path)
    for number in range(3):
        for frame in range(40):
            path = folder / "clips" / f"clip{number}" / f"{frame:03}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (32, 32), (number * 80, frame * 6, 0)).save(path)
    (folder / "digits").mkdir()
    for part in ("train", "t10k"):
        images = random.integers(0, 256, (20, 28, 28), np.uint8)
        header = struct.pack(">4B3I", 0, 0, 8, 3, *images.shape)
        (folder / "digits" / f"{part}-images-idx3-ubyte").write_bytes(header + images.tobytes())
        labels = np.arange(20, dtype=np.uint8) % 10
        header = struct.pack(">4BI", 0, 0, 8, 1, len(labels))
        (folder / "digits" / f"{part}-labels-idx1-ubyte").write_bytes(header + labels.tobytes())
    return folder


def make_task(config, stand_in):
    """The task of a config on data that is there; and a line that says what it stands on."""
    tree = tomllib.loads(dump(config))
    source = tree["data"]["source"]
    match source["kind"]:
        case "builtin" | "digits" | "gaussian_mixture" | "moving_digits" | "shape_motion":
            return config.make_task(), f"the built-in {source['kind'].replace('builtin', 'text')}"
        case "files" if config.kind == "language_modeling":
            if "vocab_size" in tree["data"]["tokenizer"]:
                tree["data"]["tokenizer"]["vocab_size"] = STAND_IN_VOCABULARY
            source["path"] = str(stand_in / "text.txt")
            told = "a stand-in text with a small vocabulary"
        case "idx":
            source["path"] = str(stand_in / "digits")
            told = "stand-in images of 10 classes"
        case "moving_mnist":
            source["path"] = str(stand_in / "digits")
            told = "stand-in digits in motion"
        case "files" if config.kind in ("prediction", "video_adversarial"):
            source["path"] = str(stand_in / "clips")
            source["cache"] = str(stand_in / "cache")
            told = "stand-in clips"
        case _:
            # A set by name has its own size and classes; a folder those that the config asks for.
            source = {
                "kind": "files",
                "path": str(stand_in / "classes"),
                "size": source["size"] if source["size"] != "none" else 32,
                "labels": source.get("labels", "folders"),
                "cache": str(stand_in / "cache"),
            }
            told = f"stand-in images ({source['labels']} for labels)"
    tree["data"]["source"] = source
    return check(tree, FAMILIES).make_task(), told


def parameter_tree(task):
    """A line for each parameter, and their number."""
    params = jax.eval_shape(lambda: task.init(jax.random.key(0))).params
    leaves = jax.tree_util.tree_leaves_with_path(params)
    lines = [
        f"{path_name(path)}  {leaf.dtype}[{','.join(map(str, leaf.shape))}]"
        for path, leaf in leaves
    ]
    total = sum(leaf.size for _, leaf in leaves)
    return "\n".join([*sorted(lines), f"total  {total}"]) + "\n"


def compare(text, file):
    """Assert that a text is the golden one, or make it so if asked to."""
    if os.environ.get(UPDATE) == "1":
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text, encoding="utf-8")
    name = file.relative_to(ROOT)
    golden = file.read_text(encoding="utf-8") if file.exists() else ""
    changes = "\n".join(
        difflib.unified_diff(
            golden.splitlines(),
            text.splitlines(),
            f"{name} (written down)",
            "now",
            lineterm="",
            n=1,
        )
    )
    assert text == golden, (
        f"{name} no longer says what the config means:\n{changes}\n"
        f"if the change is meant, run {UPDATE}=1 python -m pytest tests/test_configs.py "
        "tests/test_shardings.py and commit the files"
    )


def test_there_are_configs():
    assert {"text/demo", "image/demo"} <= set(CONFIGS)


@pytest.mark.parametrize("debug", [False, True], ids=["full", "debug"])
@pytest.mark.parametrize("name", CONFIGS)
def test_a_config_loads_and_its_dump_loads_to_the_same(name, debug):
    config = load(CONFIGS[name], debug=debug, schema=FAMILIES)
    assert check(tomllib.loads(dump(config)), FAMILIES) == config


@pytest.mark.parametrize("name", CONFIGS)
def test_a_config_opens_with_a_comment_and_holds_only_what_differs(name):
    text = CONFIGS[name].read_text(encoding="utf-8")
    assert text.startswith("# ")
    assert "debug" in tomllib.loads(text)


@pytest.mark.parametrize("name", CONFIGS)
def test_a_debug_size_is_small(name, stand_in):
    config = load(CONFIGS[name], debug=True, schema=FAMILIES)
    task, _ = make_task(config, stand_in)
    assert config.steps <= 10
    if name not in TRACED_SLOWLY:
        assert task.flops_per_step() * config.steps < 1e10
    params = jax.eval_shape(lambda: task.init(jax.random.key(0))).params
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) < 1e6


@pytest.mark.parametrize("name", CONFIGS)
def test_the_fields_of_a_config_are_those_written_down(name):
    config = load(CONFIGS[name], schema=FAMILIES)
    compare(dump(config), GOLDEN / f"{name}.toml")


@pytest.mark.parametrize("name", CONFIGS)
def test_the_parameters_of_a_config_are_those_written_down(name, stand_in):
    config = load(CONFIGS[name], schema=FAMILIES)
    task, source = make_task(config, stand_in)
    compare(f"on {source}\n{parameter_tree(task)}", GOLDEN / f"{name}.params.txt")


def test_no_dump_is_left_of_a_config_that_is_gone():
    # Layouts have a folder and a test of their own.
    files = [file.relative_to(GOLDEN) for file in GOLDEN.rglob("*") if file.is_file()]
    kept = {str(file) for file in files if file.parts[0] != "shardings"}
    assert kept == {f"{name}{end}" for name in CONFIGS for end in (".toml", ".params.txt")}


def test_gpt2_has_its_published_number_of_parameters():
    config = load(CONFIGS["text/gpt2_124m"], schema=FAMILIES)
    assert config.data.tokenizer.vocab_size == 50257
    model = config.model.make(50257, config.data.batching.sequence_length)
    assert model.context_length == 1024
    tokens = jax.ShapeDtypeStruct((1, 8), jnp.int32)
    shapes = jax.eval_shape(model.init, jax.random.key(0), tokens)
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) == 124_439_808


def test_a_changed_config_is_told_with_the_way_to_accept_it(tmp_path, monkeypatch):
    monkeypatch.delenv(UPDATE, raising=False)
    config = load(CONFIGS["text/demo"], ["seed=7"], schema=FAMILIES)
    if os.environ.get(UPDATE) == "1":
        pytest.skip("the dumps are being written")
    with pytest.raises(AssertionError) as told:
        compare(dump(config), GOLDEN / "text/demo.toml")
    for words in ("-seed = 0", "+seed = 7", f"{UPDATE}=1"):
        assert words in str(told.value)


def test_the_parameter_tree_of_a_config_reacts_to_its_sizes():
    config = load(CONFIGS["text/demo"], ["model.num_layers=1"], schema=FAMILIES)
    smaller = parameter_tree(config.make_task())
    assert smaller != (GOLDEN / "text/demo.params.txt").read_text(encoding="utf-8")
    assert "layers_1" not in smaller


def test_byte_vocabularies_do_not_depend_on_the_text(stand_in):
    config = load(CONFIGS["text/demo"], schema=FAMILIES)
    elsewhere = {"kind": "files", "path": str(stand_in / "text.txt")}
    other = load(CONFIGS["text/demo"], {"data": {"source": elsewhere}}, schema=FAMILIES)
    assert dataclasses.asdict(config.make_task().model) == dataclasses.asdict(
        other.make_task().model
    )
