"""Rehearsals: the run's own program, its memory and work, and the command line."""

import functools
import importlib.util
import json
import math
import re
from pathlib import Path

import jax
import numpy as np
import pytest
import tomli_w

from genjax.config import check, load
from genjax.data.image_files import ImageFiles
from genjax.data.moving_mnist import MovingMnist
from genjax.data.stand_in_clips import stand_in_clips
from genjax.data.stand_in_images import ASSUMED_CLASSES, stand_in_images
from genjax.errors import UserError
from genjax.families import FAMILIES
from genjax.flops import count_flops
from genjax.parallel.mesh import make_mesh
from genjax.task import Shard
from tests.train.running import run_toy
from tools import rehearse
from tools.rehearsal import topology
from tools.rehearsal.chips import CHIPS
from tools.rehearsal.compilation import batch_bytes, compile_with_text, lower_step, state_bytes
from tools.rehearsal.rehearsal import shares_of_variants
from tools.rehearsal.search import candidates
from tools.rehearsal.tables import ending
from train.program import Program

ROOT = Path(__file__).parent.parent.parent
CONFIGS = sorted((ROOT / "configs").rglob("*.toml"))
needs_compiler = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None, reason="libtpu is not installed"
)

TEXT = {
    "kind": "language_modeling",
    "steps": 2,
    "data": {"batching": {"kind": "windows", "batch_size": 8, "sequence_length": 8}},
    "model": {"kind": "transformer", "num_layers": 1, "num_heads": 2, "hidden_size": 16},
    "mesh": {"data": 2, "fsdp": 2, "tensor": 2},
    "samples": {"every": 5, "max_tokens": 1},
}
GAN = {
    "kind": "adversarial",
    "steps": 2,
    "data": {"source": {"kind": "digits", "size": 8}, "batch_size": 8},
    "model": {
        "kind": "dense",
        "latent_size": 3,
        "generator_sizes": [6],
        "discriminator_sizes": [6],
    },
    "objective": {"r1_gamma": 1.0, "penalty_interval": 2},
    "mesh": {"data": 4, "fsdp": 2},
}


def program_of(config):
    task = config.rehearsal_task()
    program = Program(task, make_mesh(config.mesh), config.seed)
    return program, program.abstract_batch(task.dataset("train", Shard())[0])


# ---- the same program ------------------------------------------------------------------------


@pytest.mark.parametrize("tree", [TEXT, GAN], ids=["text", "gan"])
def test_the_program_is_that_of_the_loop(tree, tmp_path, monkeypatch):
    """The loop's steps are lowered where it would run them, and the loop is ended after them."""
    config = check(tree, FAMILIES)
    program, batch = program_of(config)
    lowered = {}

    class Enough(Exception):
        pass

    steps_of = Program.step

    def step(self, variant=None):
        jitted = steps_of(self, variant)

        def recorded(state, batch):
            lowered[variant] = jitted.lower(state, batch).as_text()
            if len(lowered) == len(shares_of_variants(self.task, config.steps)):
                raise Enough
            # The state as it is: what matters here is the next variant's program.
            return state, {}

        return recorded

    task = config.make_task()
    monkeypatch.setattr(Program, "step", step)
    monkeypatch.setattr(type(task), "evaluation", lambda self, shard: None)
    monkeypatch.setattr(type(task), "baselines", lambda self: [])
    with pytest.raises(Enough):
        run_toy(config, tmp_path / "run", task=task)
    monkeypatch.undo()
    assert set(lowered) == set(shares_of_variants(program.task, config.steps))
    for variant, text in lowered.items():
        assert lower_step(program, variant, batch).as_text() == text


# ---- memory and work against XLA's own figures -----------------------------------------------


@functools.cache
def compiled(name, *overrides):
    config = load(ROOT / "configs" / f"{name}.toml", overrides, debug=True, schema=FAMILIES)
    program, batch = program_of(config)
    variant = program.task.variant(1)
    return program, batch, compile_with_text(lower_step(program, variant, batch))


def check_memory(name, *overrides):
    """State and batch by their shards, and what is allocated within, against what XLA says."""
    program, batch, (step, text) = compiled(name, *overrides)
    stats = step.memory_analysis()
    predicted = state_bytes(program) + batch_bytes(batch)
    assert predicted == pytest.approx(stats.argument_size_in_bytes, rel=0.05)
    # What goes in comes out, in the same place; metrics come on top.
    assert stats.alias_size_in_bytes == pytest.approx(state_bytes(program), rel=0.05)
    assert "ENTRY" in text


def test_memory_of_a_small_text_model():
    check_memory(
        "text/demo",
        "data.batching.batch_size=8",
        "model.hidden_size=128",
        "mesh.fsdp=8",
        "mesh.data=-1",
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [
        str(path.relative_to(ROOT / "configs").with_suffix(""))
        for path in CONFIGS
        if path.stem not in ("shakespeare_lstm", "shakespeare_transformer")
    ],
)
def test_memory_of_every_debug_config(name):
    config = load(ROOT / "configs" / f"{name}.toml", debug=True, schema=FAMILIES)
    text = config.kind == "language_modeling"
    overrides = ["data.batching.batch_size=8" if text else "data.batch_size=8"]
    if getattr(config.data.source, "size", 1) is None:
        overrides.append("data.source.size=32")
    check_memory(name, *overrides)


def flops_by_xla(config, **settings):
    task = config.rehearsal_task()
    state = jax.eval_shape(task.init, jax.random.key(0))
    batch = {
        name: jax.ShapeDtypeStruct(array.shape, array.dtype)
        for name, array in task.dataset("train", Shard())[0].items()
    }
    step = jax.jit(functools.partial(task.train_step, variant=task.variant(1)))
    counted = count_flops(step, state, batch, **settings)
    return counted, step.lower(state, batch).cost_analysis()["flops"]


@pytest.mark.parametrize(
    "model",
    [
        {"kind": "transformer", "num_layers": 2, "num_heads": 4, "hidden_size": 512},
        # One turn of the loop over time, which XLA counts once.
        {"kind": "lstm", "num_layers": 2, "hidden_size": 512},
    ],
    ids=["transformer", "lstm"],
)
def test_work_of_unrolled_models(model):
    length, rows = (1, 512) if model["kind"] == "lstm" else (64, 64)
    batching = {"kind": "windows", "batch_size": rows, "sequence_length": length}
    tree = {"kind": "language_modeling", "data": {"batching": batching}, "model": model}
    counted, by_xla = flops_by_xla(check(tree, FAMILIES))
    assert counted == pytest.approx(by_xla, rel=0.05)


@pytest.mark.parametrize(
    "name",
    [
        "image/demo",
        *(
            pytest.param(name, marks=pytest.mark.slow)
            for name in (
                "image/dcgan_64",
                "image/stylegan2_256",
                "image/r3gan_256",
                "video/moving_mnist_simvp",
                "video/shapes_stylegan2",
                "video/vgan_64",
            )
        ),
    ],
)
def test_work_of_convolutions(name):
    """Without the products on borders, which XLA does not count."""
    config = load(ROOT / "configs" / f"{name}.toml", schema=FAMILIES)
    counted, by_xla = flops_by_xla(config, borders=False)
    assert counted == pytest.approx(by_xla, rel=0.05)


# ---- what stands in for data -----------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    [
        "image/stacked_mnist",
        "video/convlstm_l_256",
        "video/moving_mnist_convlstm",
        pytest.param("image/r3gan_256_pod", marks=pytest.mark.slow),
        pytest.param("image/stylegan2_1024_pod", marks=pytest.mark.slow),
        pytest.param("video/stylegan2_video_256", marks=pytest.mark.slow),
        pytest.param("video/shape_motion", marks=pytest.mark.slow),
    ],
)
def test_parameters_are_those_on_real_data(name):
    config = load(ROOT / "configs" / f"{name}.toml", schema=FAMILIES)
    task = config.rehearsal_task()
    params = jax.eval_shape(lambda: task.init(jax.random.key(0))).params
    written = (ROOT / "tests/golden" / f"{name}.params.txt").read_text()
    total = int(re.search(r"^total  (\d+)", written, re.MULTILINE).group(1))
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == total
    rows = {len(array) for array in task.dataset("train", Shard())[0].values()}
    assert len(rows) == 1


@pytest.mark.fast
def test_vocabularies_are_as_large_as_the_config_asks():
    sizes = {}
    for kind in ("windows", "documents"):
        batching = {"kind": kind, "batch_size": 4096, "sequence_length": 64}
        tokenizer = {"kind": "bpe", "vocab_size": 70_000}
        source = {"kind": "files", "path": "nowhere"}
        data = {"source": source, "tokenizer": tokenizer, "batching": batching}
        tree = {"kind": "language_modeling", "data": data, "samples": {"prompts": ["Say"]}}
        task = check(tree, FAMILIES).rehearsal_task()
        sizes[kind] = task.model.vocab_size
        batch = task.dataset("train", Shard())[0]
        assert batch["inputs"].shape == (4096, 64) and batch["inputs"].dtype == np.int32
    # The end of a document is a token.
    assert sizes == {"windows": 70_000, "documents": 70_001}


@pytest.mark.fast
def test_characters_need_their_text():
    source = {"kind": "files", "path": "nowhere"}
    data = {"source": source, "tokenizer": {"kind": "characters"}}
    config = check({"kind": "language_modeling", "data": data}, FAMILIES)
    with pytest.raises(UserError, match=r"data\.tokenizer\.kind.*\n.*nowhere.*\n(.*\n)?.*bytes"):
        config.rehearsal_task()


@pytest.mark.fast
def test_images_and_clips_have_the_shape_that_is_asked_for():
    source = stand_in_images(ImageFiles(path=Path("nowhere"), size=(8, 12), labels="folders"))
    assert source.image_shape == (8, 12, 3) and source.num_classes == ASSUMED_CLASSES
    images = source.splits["train"].images(np.arange(5))
    assert images.shape == (5, 8, 12, 3) and images.dtype == np.uint8 and images.strides[0] == 0
    clips = stand_in_clips(MovingMnist(path=Path("nowhere"), size=64, digits=1), 4)
    assert clips.clip_shape == (4, 64, 64, 1) and clips.num_classes == 0
    assert set(clips.splits["test"].read(np.arange(3))) == {"pictures", "corners"}


@pytest.mark.fast
def test_a_size_that_only_the_data_knows_is_asked_for():
    config = load(ROOT / "configs/image/sngan_cifar10.toml", schema=FAMILIES)
    with pytest.raises(UserError, match=r"data\.source\.size"):
        config.rehearsal_task()


# ---- meshes ----------------------------------------------------------------------------------


def test_the_search_tries_different_splits_of_what_divides():
    task = check(TEXT, FAMILIES).rehearsal_task()
    found = candidates(task, jax.devices(), CHIPS["v5e"], 1, 0, 6)
    meshes = [one.mesh for one in found]
    assert len(meshes) == 6
    assert all(mesh.data * mesh.fsdp * mesh.tensor * mesh.sequence == 8 for mesh in meshes)
    assert (meshes[0].data, meshes[0].fsdp) == (8, 1)
    assert {mesh.tensor for mesh in meshes} >= {1, 2}
    # The GAN has no layers to split; eight examples do not go over more than eight devices.
    game = check(GAN, FAMILIES).rehearsal_task()
    plain = candidates(game, jax.devices(), CHIPS["v5e"], 1, 0, 9)
    assert {one.mesh.tensor for one in plain} == {1}


def test_a_search_without_hope_says_why():
    task = check(TEXT, FAMILIES).rehearsal_task()
    tiny = CHIPS["v5e"].__class__("tiny", 1.0, 100, 1.0, 1.0, 1.0, 2, 16, 256)
    with pytest.raises(UserError, match="train state alone"):
        candidates(task, jax.devices(), tiny, 1, 0, 4)


# ---- the command line ------------------------------------------------------------------------


def run(*arguments):
    return rehearse.main([str(argument) for argument in arguments])


DEMO = ROOT / "configs/text/demo.toml"


@needs_compiler
def test_a_run_is_rehearsed_on_eight_chips(tmp_path, capsys):
    files = tmp_path / "found.json", tmp_path / "scaling.svg"
    code = run(
        *(DEMO, "--debug", "data.batching.batch_size=8", "mesh.data=1", "mesh.fsdp=8"),
        *("--topology", "v5e:2x4", "--json", files[0], "--plot", files[1]),
    )
    assert code == 0
    shown = capsys.readouterr().out
    for word in ("v5e:2x4", "fsdp 8", "of 16 GiB", "all-gather", "tokens a second", "MFU"):
        assert word in shown
    (one,) = json.loads(files[0].read_text())["rehearsals"]
    assert one["chips"] == 8 and one["fits"] and one["variants"][0]["remarks"] == []
    gathers = [row for row in one["collectives"] if row["kind"] == "all-gather"]
    assert gathers and all(row["axes"] == ["fsdp"] for row in gathers)
    assert one["step_seconds"] >= max(one["variants"][0]["roofline"].values())
    assert one["units_per_second"]["tokens"] == pytest.approx(8 * 32 / one["step_seconds"])
    # The state by its shards is what the compiler says that the step takes in, and all is aliased.
    hbm = one["hbm"]
    parts = ("state", "batch", "temporary", "program")
    assert hbm["used"] == pytest.approx(sum(hbm[part] for part in parts), rel=0.05)
    assert files[1].read_text().startswith("<svg")


@needs_compiler
@pytest.mark.slow
def test_a_run_that_does_not_fit_says_by_how_much(tmp_path, capsys):
    file = tmp_path / "found.json"
    code = run(
        *(DEMO, "--debug", "data.batching.batch_size=65536", "model.hidden_size=512"),
        *("data.batching.sequence_length=512", "model.attention=xla", "--topology", "v5e:2x2"),
        *("--json", file),
    )
    assert code == rehearse.DOES_NOT_FIT
    assert "no, short by" in capsys.readouterr().out
    (one,) = json.loads(file.read_text())["rehearsals"]
    assert not one["fits"] and one["hbm"]["used"] > one["hbm"]["available"]


@needs_compiler
@pytest.mark.slow
def test_lazy_regularisers_and_searches(tmp_path, capsys):
    file = tmp_path / "found.json"
    path = tmp_path / "gan.toml"
    path.write_text(tomli_w.dumps(GAN))
    assert run(path, "--topology", "v5e:2x4", "--search", 2, "--json", file) == 0
    found = json.loads(file.read_text())["rehearsals"]
    assert len(found) == 2 and found[0]["step_seconds"] <= found[1]["step_seconds"]
    names = {one["name"]: one["share"] for one in found[0]["variants"]}
    assert names == {"plain": 0.5, "penalties": 0.5}
    told = capsys.readouterr().err
    assert re.search(r"v5e:2x4, .+: penalties step, 1 of 2: took \d+ s", told), told


@needs_compiler
@pytest.mark.slow
def test_two_slices_sum_their_gradients_over_the_network_between_them(tmp_path):
    file = tmp_path / "found.json"
    path = tmp_path / "text.toml"
    path.write_text(tomli_w.dumps(TEXT))
    assert run(path, "--topology", "2*v5e:2x2", "--json", file) == 0
    (one,) = json.loads(file.read_text())["rehearsals"]
    kinds = {tuple(found["axes"]): found["kind"] for found in one["collectives"]}
    assert kinds["data",] == "all-reduce"
    assert {"data", "fsdp", "tensor"} == {axis for axes in kinds for axis in axes}


@needs_compiler
@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--topology", "v5p:3x3x3"), ("v5p:3x3x3 is refused", "not divisible", "v5p:2x2x1")),
        (("--topology", "v5litepod-16"), ("v5litepod-16", "v5e")),
        (("--topology", "v5e:2x4", "mesh.tensor=3"), ("mesh", "8 devices")),
        (("--topology", "v5e:2x4", "data.batching.batch_size=9"), ("9 examples", "8 devices")),
        (("--topology", "v5e:2x4", "--search", "0"), ("--search 0",)),
    ],
)
def test_mistakes_name_the_way_out(arguments, words, capsys):
    assert run(DEMO, "--debug", *arguments) == rehearse.USAGE_ERROR
    told = capsys.readouterr().err
    assert all(word in told for word in words), told


@pytest.mark.fast
def test_the_compiler_may_be_missing(monkeypatch, capsys):
    monkeypatch.setattr(topology.importlib.util, "find_spec", lambda name: None)
    assert run(DEMO, "--topology", "v5e:2x4") == rehearse.USAGE_ERROR
    assert "EXTRAS=rehearse" in capsys.readouterr().err


@pytest.mark.fast
def test_slices_may_be_several():
    assert topology.split_slices("2*v5e:16x16") == (2, "v5e:16x16")
    assert topology.split_slices("v5p:4x4x4") == (1, "v5p:4x4x4")
    assert math.prod(CHIPS["v5p"].slice_shape(512)) == 512
    assert CHIPS["v5p"].slice_shape(512) == (8, 8, 8)


@pytest.mark.fast
def test_operations_are_named_by_their_last_parts():
    path = "jit(train_step)/transpose(jvp(Generator))/synthesis/8x8_conv1/reduce_sum"
    assert ending(path, 29) == "8x8_conv1/reduce_sum"
    assert ending(path, 30) == "synthesis/8x8_conv1/reduce_sum"
    assert ending(path, 100) == path
    assert ending("params[\\'kernel\\']", 8) == "kernel']"
