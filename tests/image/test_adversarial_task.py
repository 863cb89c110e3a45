"""The adversarial task: every model trains, its evaluation is what it says, mistakes are named."""

import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from genjax.data import image_sources
from genjax.errors import UserError
from genjax.image import adversarial
from genjax.image.adversarial import Adversarial
from genjax.image.features import CLASSIFIER
from genjax.image.generator_view import to_uint8
from genjax.image.metrics.frechet import frechet_distance
from genjax.parallel.mesh import MeshConfig, make_mesh
from genjax.task import Shard
from tests.data.test_image_sources import idx
from tests.image.small_gans import (
    DCGAN,
    DENSE,
    DIGITS,
    MODELS,
    POINTS,
    STYLEGAN2,
    configured,
    numbers,
    styled,
    trained,
    unlabelled_task,
)
from train.evaluate import Evaluator

ADA = {"kind": "ada", "categories": ["blit", "colour"], "probability": 0.5}
GAMES = {
    "dense": {"objective": {"loss": "saturating"}, "augmentation": ADA},
    "dcgan": {"objective": {"loss": "least_squares"}, "augmentation": {"kind": "diffaugment"}},
    "sngan": {"objective": {"loss": "hinge", "discriminator_steps": 2}, "data": {"mirror": True}},
    "stylegan2": {
        "objective": {"r1_gamma": 1.0, "path_length_weight": 2.0, "path_length_interval": 1},
        "augmentation": {**ADA, "categories": ["blit"]},
    },
    "r3gan": {
        "objective": {"loss": "relativistic", "r1_gamma": 1.0, "r2_gamma": 1.0},
        "augmentation": {"kind": "diffaugment", "policies": ["translation"]},
    },
}


def check_training(task):
    state, first, metrics = trained(task, 2)
    for step in metrics:
        assert all(np.isfinite(value) for value in step.values()), step
    assert int(state.step) == 2

    def changed(before, after):
        pairs = zip(jax.tree.leaves(before), jax.tree.leaves(after), strict=True)
        return [bool((np.asarray(a) != np.asarray(b)).any()) for a, b in pairs]

    for network in ("generator", "discriminator"):
        moved = changed(first.params[network], state.params[network])
        # What starts at zero may wait for others to move before it has a gradient.
        assert sum(moved) > 0.7 * len(moved), network
    # All but the unit vectors of one number.
    moved = changed(first.carry["statistics"], state.carry["statistics"])
    sizes = [leaf.size for leaf in jax.tree.leaves(state.carry["statistics"])]
    assert all(new for new, size in zip(moved, sizes, strict=True) if size > 1)
    assert any(changed(first.ema, state.ema)) and all(
        (np.isfinite(leaf)).all() for leaf in jax.tree.leaves(state.ema)
    )
    return state


@pytest.mark.parametrize(
    "kind",
    [pytest.param(kind, marks=pytest.mark.slow) if kind != "dcgan" else kind for kind in MODELS],
)
def test_every_conditional_model_trains(kind):
    task = configured(MODELS[kind], **GAMES[kind]).make_task()
    assert task.step.generator.num_classes == 10
    state = check_training(task)
    assert bool(state.carry["statistics"]["generator"]) == (kind in ("dcgan", "sngan", "stylegan2"))


@pytest.mark.parametrize(
    "kind", [pytest.param(kind, marks=[pytest.mark.slow] * (kind != "dcgan")) for kind in MODELS]
)
def test_every_unconditional_model_trains(kind, monkeypatch):
    task = unlabelled_task(configured(MODELS[kind], **GAMES[kind]), monkeypatch)
    assert task.step.generator.num_classes == 0
    check_training(task)


def test_batches_are_one_for_each_discriminator_step():
    config = configured(DENSE, batch_size=6, objective={"discriminator_steps": 3})
    task = config.make_task()
    batch = task.dataset("train", Shard())[0]
    assert batch["images"].shape == (18, 8, 8, 1) and batch["labels"].shape == (18,)
    part = task.dataset("train", Shard(1, 2))[0]
    np.testing.assert_array_equal(part["images"], batch["images"][9:])
    assert task.units_per_step() == {"images": 6}


# ---- the evaluation ------------------------------------------------------------------------------


def evaluated(task, state, devices=1):
    mesh = make_mesh(MeshConfig(data=devices))
    with jax.set_mesh(mesh):
        return Evaluator(task, mesh)(state, task.evaluation(Shard()))


def initial(task, seed=0):
    return jax.jit(task.init)(jax.random.key(seed))


METRICS = ["frechet", "kernel", "precision_recall", "density_coverage", "path_length"]


def test_figures_do_not_depend_on_the_batch_size():
    """Nor on the number of devices: what fills the last batch is dropped."""
    found = []
    for size, devices in ((8, 1), (32, 1), (56, 8), (100, 1)):
        config = styled(evaluation={"count": 50, "batch_size": size, "metrics": METRICS})
        task = config.make_task()
        found.append(evaluated(task, initial(task), devices))
        assert found[-1]["images"] == 50
    assert found[0].keys() == {*task.evaluator._figures.names, "images"}
    for other in found[1:]:
        for name, value in found[0].items():
            np.testing.assert_allclose(other[name], value, rtol=1e-3, err_msg=name)


def test_the_frechet_distance_is_that_of_the_images():
    """Made again from the images themselves: pixels of images of 8x8 are features as they are."""
    config = configured(DCGAN, evaluation={"count": 30, "metrics": ["frechet"]})
    task = config.make_task()
    state, _, _ = trained(task, 1)
    found = evaluated(task, state)
    evaluation = task.evaluation(Shard())
    real, generated = [], []
    variables = {
        "params": state.ema["generator"],
        "statistics": state.carry["statistics"]["generator"],
    }
    key = task.evaluator._key
    for batch in evaluation.batches._images:
        rows = batch["weights"] > 0
        latents = jnp.stack(
            [jax.random.normal(jax.random.fold_in(key, n), (8,)) for n in batch["index"][rows]]
        )
        images = task.step.generator.apply(variables, latents, jnp.asarray(batch["labels"][rows]))
        generated.append(to_uint8(np.asarray(images)))
        real.append(batch["images"][rows])
    pixels = [np.concatenate(some).reshape(30, -1) / 127.5 - 1 for some in (real, generated)]
    expected = frechet_distance(*(some.astype(np.float32) for some in pixels))
    np.testing.assert_allclose(found["frechet_pixels"], expected, rtol=1e-3)


def counted(task):
    """The task's source with every read of images counted, by split."""
    reads = {"train": 0, "validation": 0}

    def split(name):
        inner = task.source.splits[name]

        def read(indices):
            reads[name] += len(indices)
            return inner.read(indices)

        return dataclasses.replace(inner, read=read)

    task.source = dataclasses.replace(
        task.source, splits={name: split(name) for name in task.source.splits}
    )
    return reads


def test_features_of_real_images_are_made_once_and_kept(tmp_path):
    config = configured(DENSE, evaluation={"count": 24, "cache": str(tmp_path)})
    task = config.make_task()
    counted(task)
    state = initial(task)
    evaluation, evaluator = task.evaluation(Shard()), Evaluator(task, make_mesh(MeshConfig(data=1)))
    assert "images" in evaluation.batches[0]
    first = evaluator(state, evaluation)
    assert len(list(tmp_path.iterdir())) == 1
    assert "images" not in evaluation.batches[0]
    assert evaluation.batches[0].keys() == {"labels", "weights", "index"}
    assert evaluator(state, evaluation) == first

    # Another run of the same data never looks at the images; other data are not mistaken for them.
    again = config.make_task()
    assert "images" not in again.evaluation(Shard()).batches[0]
    assert evaluated(again, state) == first
    other = configured(
        DENSE,
        {**DIGITS, "validation_fraction": 0.2},
        evaluation={"count": 24, "cache": str(tmp_path)},
    ).make_task()
    assert "images" in other.evaluation(Shard()).batches[0]


def test_a_cache_that_fills_in_the_middle_of_an_evaluation(tmp_path):
    """As by another run beside this one: a pass is made as it began."""
    settings = {"count": 24, "cache": str(tmp_path)}
    config = configured(DENSE, evaluation=settings)
    task, beside = config.make_task(), config.make_task()
    state = initial(task)
    expected = evaluated(configured(DENSE, evaluation={"count": 24}).make_task(), state)
    evaluation = task.evaluation(Shard())
    batches, read = evaluation.batches, type(evaluation.batches).__getitem__

    class Interrupted:
        def __len__(self):
            return len(batches)

        def __getitem__(self, index):
            if index == 1:
                evaluated(beside, state)
            return read(batches, index)

    evaluator = Evaluator(task, make_mesh(MeshConfig(data=1)))
    found = evaluator(state, dataclasses.replace(evaluation, batches=Interrupted()))
    assert found == expected


def test_the_protocol_says_what_was_done():
    task = styled(
        evaluation={"count": 40, "truncation": 0.7, "split": "validation"},
        average={"half_life_images": 500},
    ).make_task()
    protocol = task.evaluation(Shard()).protocol
    for part in ("40 generated, truncation 0.7", "built-in digits (validation)", "pixels", "500"):
        assert part in protocol
    plain = configured(DENSE, average={"half_life_images": 0}).make_task()
    assert "half-life" not in plain.evaluation(Shard()).protocol


@pytest.fixture(scope="module")
def judged(tmp_path_factory):
    """A task whose judge is a small classifier, and where its files are."""
    folder = tmp_path_factory.mktemp("judged")
    config = configured(
        DENSE,
        batch_size=64,
        evaluation={
            "count": 200,
            "cache": str(folder),
            "features": {"kind": "classifier", "width": 8, "steps": 60},
            "metrics": ["frechet", "conditioning_accuracy", "inception_score"],
        },
        checkpoint={"best_metric": "conditioning_accuracy", "best_is": "highest"},
    )
    return config.make_task(), folder


def test_baselines(judged):
    task, _ = judged
    rows = {row["name"]: row for row in task.baselines()}
    floor, *others = rows
    assert floor == "real images (validation, 180), the floor"
    assert others == ["untrained generator", "mean image", "noise"]
    names = set(task.evaluator._figures.names)
    for name, row in rows.items():
        assert row.keys() == names | {"name"}, name
        assert all(np.isfinite(value) for key, value in row.items() if key != "name")
    distances = [row["frechet_classifier"] for row in rows.values()]
    assert distances[0] < min(distances[1:])
    # Real images are judged as well as the classifier does: these are those that it was not shown.
    accuracy = task.evaluator.extractor.classifier.accuracy
    assert rows[floor]["conditioning_accuracy"] == pytest.approx(accuracy) and accuracy > 0.5
    # One image for all classes, and images that no class has made.
    assert rows["mean image"]["conditioning_accuracy"] < 0.25
    assert rows["mean image"]["inception_score_classifier"] == pytest.approx(1.0)
    # The untrained generator of step 0, as its evaluation finds it.
    key = jax.random.key(task.config.seed)
    found = evaluated(task, jax.jit(task.init)(key))
    for name in names:
        assert rows["untrained generator"][name] == pytest.approx(found[name], rel=1e-3)


def test_the_judge_is_kept_with_the_run(judged, tmp_path):
    task, _ = judged
    task.save_assets(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [CLASSIFIER]
    config = task.config.model_copy(
        update={"evaluation": task.config.evaluation.model_copy(update={"cache": None})}
    )
    again = config.make_task(tmp_path)
    assert again.evaluator.extractor.describe() == task.evaluator.extractor.describe()
    plain = configured(DENSE).make_task()
    plain.save_assets(tmp_path / "none")
    assert not (tmp_path / "none").exists()


def test_path_lengths_of_a_linear_generator():
    """In W every step moves the image along J (w2 - w1), whose square is the distance."""
    task = styled(
        linear=True, evaluation={"count": 64, "batch_size": 32, "metrics": ["path_length"]}
    ).make_task()
    state = initial(task)
    params, key = numbers(state.ema["generator"]), task.evaluator._key
    both = []
    for start in (key, jax.random.fold_in(key, 1)):
        latents = [jax.random.normal(jax.random.fold_in(start, n), (4,)) for n in range(64)]
        both.append(np.asarray(latents, np.float64))
    # Both ends have the same label, whose part falls out of the difference.
    styles = (both[1] - both[0]) @ params["mapping"][:4]
    moved = np.einsum("bd,ldp->bp", styles, params["layers"])
    distances = np.sort((moved**2).sum(1))
    # The mean without what lies outside of the percentiles 1 and 99, rounded outwards.
    expected = distances[0:64].mean()
    found = evaluated(task, state)["path_length_in_w_pixels"]
    np.testing.assert_allclose(found, expected, rtol=0.02)


def test_truncation_changes_what_is_measured():
    def figure(truncation):
        task = styled(evaluation={"count": 40, "truncation": truncation}).make_task()
        state = initial(task)
        return evaluated(task, state)["frechet_pixels"]

    assert figure(0.2) != figure(1.0)


def test_modes_of_the_mixture():
    task = configured(
        DENSE | {"output": "linear"},
        POINTS,
        evaluation={"count": 200, "batch_size": 100, "metrics": ["modes", "frechet"]},
    ).make_task()
    found = evaluated(task, initial(task))
    assert 0 <= found["modes"] <= 25 and 0 <= found["high_quality_share"] <= 1
    floor, untrained, uniform = task.baselines()
    assert floor["name"] == "real images (validation, 20), the floor"
    assert 10 <= floor["modes"] <= 20 and floor["high_quality_share"] > 0.9
    assert untrained["modes"] == found["modes"] and uniform["name"] == "uniform points"
    assert uniform["high_quality_share"] < 0.2
    (picture,) = task.samples(initial(task), jax.random.key(0))
    assert picture.image.shape == (320, 320, 3) and picture.name == "generated"


@pytest.fixture(scope="module")
def stacks(tmp_path_factory):
    """Eight by eight digits in IDX files, stacked."""
    folder = tmp_path_factory.mktemp("idx")
    digits = image_sources.open_images(image_sources.BuiltinDigits(size=8))
    for split, part in (("train", "train"), ("validation", "t10k")):
        some = digits.splits[split]
        images = some.images(np.arange(len(some)))[..., 0]
        (folder / f"{part}-images-idx3-ubyte").write_bytes(idx(images))
        (folder / f"{part}-labels-idx1-ubyte").write_bytes(idx(some.labels.astype(np.uint8)))
    return {"kind": "idx", "path": str(folder), "stack": 3, "stacks": 150, "size": 8}


def test_modes_of_stacked_digits(stacks, tmp_path):
    evaluation = {
        "count": 150,
        "batch_size": 50,
        "cache": str(tmp_path),
        "features": {"kind": "classifier", "width": 8, "steps": 100},
        "metrics": ["modes"],
    }
    task = configured(DENSE, stacks, evaluation=evaluation).make_task()
    assert task.step.generator.num_classes == 1000 and task.source.image_shape == (8, 8, 3)
    rows = {row["name"]: row for row in task.baselines()}
    found = evaluated(task, initial(task))
    real = rows["real images (validation, 150), the floor"]
    floor = rows["digits drawn with their real shares"]
    # 1000 (1 - 0.999^150) = 139.4 of a thousand equal modes are found by 150 draws.
    assert floor["modes"] == pytest.approx(139, abs=3)
    assert real["modes"] == pytest.approx(floor["modes"], abs=15)
    assert real["kl"] == pytest.approx(floor["kl"], abs=0.25)
    assert rows["mean image"]["modes"] == 1
    assert rows["mean image"]["kl"] == pytest.approx(np.log(1000))
    assert rows["untrained generator"]["modes"] == found["modes"]


# ---- samples -------------------------------------------------------------------------------------


def test_samples_are_grids_of_classes():
    config = configured(DCGAN, samples={"count": 9, "every_images": 20})
    task = config.make_task()
    assert config.samples_every() == 3
    state = initial(task)
    generated, real = task.samples(state, jax.random.key(3))
    assert (generated.name, real.name) == ("generated", "real")
    assert generated.image.shape == real.image.shape == (24, 24, 1)
    train = task.source.splits["train"]
    images = train.images(np.arange(len(train)))
    cells = real.image.reshape(3, 8, 3, 8).swapaxes(1, 2).reshape(9, -1)
    for number, cell in enumerate(cells):
        rows = np.flatnonzero((images.reshape(len(images), -1) == cell).all(1))
        assert number // 3 in train.labels[rows]
    assert len(np.unique(cells, axis=0)) == 9
    again, _ = task.samples(state, jax.random.key(3))
    np.testing.assert_array_equal(again.image, generated.image)


# ---- mistakes ------------------------------------------------------------------------------------


@pytest.mark.fast
@pytest.mark.parametrize(
    ("model", "tables", "words"),
    [
        (DCGAN, {"objective": {"path_length_weight": 2.0}}, "path_length_weight: 2 needs a gener"),
        (DCGAN, {"evaluation": {"truncation": 0.7}}, "evaluation.truncation and samples.truncat"),
        (DENSE, {"samples": {"truncation": 0.7}}, "evaluation.truncation and samples.truncation"),
        (DCGAN, {"objective": {"penalty_interval": 4}}, "penalty_interval: 4 does nothing without"),
        (DCGAN, {"annealing": {"gamma": 0.1}}, "annealing: images is not set"),
        (DCGAN, {"annealing": {"images": 9, "gamma": 0.1}}, "annealing.gamma changes r1_gamma"),
        (
            DCGAN,
            {"annealing": {"images": 9, "augmentation": 0.1}},
            "annealing.augmentation needs a",
        ),
        (DCGAN, {"objective": {"loss": "hing"}}, "objective.loss"),
        (DCGAN, {"objective": {"r1_gamma": -1}}, "objective.r1_gamma"),
        (DCGAN, {"evaluation": {"metrics": ["fid"]}}, "evaluation.metrics"),
    ],
)
def test_configs_that_do_not_fit_together(model, tables, words):
    with pytest.raises(UserError, match=re.escape(words)):
        configured(model, **tables)


@pytest.mark.fast
@pytest.mark.parametrize(
    ("model", "size", "words"),
    [
        (DCGAN, 30, "30x30 is no size that doubling makes"),
        (STYLEGAN2, 30, "30x30 is no size that doubling makes"),
        (MODELS["sngan"] | {"generator_channels": [8, 8, 8]}, 12, "halves the images 3 times"),
        (MODELS["r3gan"] | {"stage_widths": [8, 8, 8]}, 30, "stage_widths halves the images 2"),
    ],
)
def test_sizes_that_do_not_fit_the_model(model, size, words):
    with pytest.raises(UserError, match=words) as caught:
        configured(model, {"kind": "digits", "size": size}).make_task()
    message = str(caught.value)
    assert f"model.kind = {model['kind']!r} does not fit the built-in digits" in message
    assert "data.source" in message and f"{size}x{size}" in message


@pytest.mark.fast
@pytest.mark.parametrize(
    ("evaluation", "words"),
    [
        ({"metrics": ["conditioning_accuracy"]}, "needs class probabilities"),
        ({"metrics": ["modes"]}, "needs data whose modes are known"),
        ({"features": {"kind": "inception", "weights": "none.npz"}}, "none.npz"),
    ],
)
def test_figures_that_cannot_be_had_are_refused_before_the_first_step(evaluation, words):
    with pytest.raises(UserError, match=re.escape(words)):
        configured(DENSE, evaluation=evaluation).make_task().evaluation(Shard())


@pytest.mark.fast
def test_conditioning_accuracy_without_labels(monkeypatch):
    features = {"kind": "classifier", "steps": 1}
    config = configured(
        DENSE, evaluation={"features": features, "metrics": ["conditioning_accuracy"]}
    )
    with pytest.raises(UserError, match="has no labels"):
        unlabelled_task(config, monkeypatch)


@pytest.mark.fast
def test_an_unknown_best_metric_names_those_that_there_are():
    with pytest.raises(UserError, match="best_metric: no figure 'fid'; one of frechet_pixels"):
        configured(DENSE, checkpoint={"best_metric": "fid"}).make_task()
    configured(DENSE, checkpoint={"best_metric": "frechet_pixels"}).make_task()


@pytest.mark.fast
@pytest.mark.parametrize(
    ("tables", "request_", "words"),
    [
        ({}, {"label": 10}, "label: 10 is out of range; the run's classes are 0 to 9"),
        ({"source": POINTS}, {"label": 0}, "label: 0 is out of range; the run has no classes"),
        ({"source": POINTS}, {"mode": "mixing"}, 'mode: "mixing" is for images'),
        ({}, {"truncation": 0.5}, "truncation: DenseGenerator has no styles"),
        ({}, {"truncation_cutoff": 2}, "truncation: DenseGenerator has no styles"),
        ({}, {"mode": "mixing"}, 'mode: "mixing": DenseGenerator has no styles'),
        ({}, {"mode": "interpolation", "space": "w", "label": 1}, 'space: "w": DenseGenerator has'),
        ({}, {"mode": "interpolation"}, "label: an interpolation in z keeps one class"),
    ],
)
def test_requests_that_cannot_be_met(tables, request_, words):
    task = configured(DENSE, **tables).make_task()
    request = task.config.generation_schema()(**request_)
    state = jax.eval_shape(task.init, jax.random.key(0))
    with pytest.raises(UserError, match=re.escape(words)):
        list(task.generate(state, jax.random.key(0), request))


@pytest.mark.fast
def test_the_advice_names_fields_that_there_are():
    config = configured(DENSE)
    for path in re.findall(r"\w+\.\w+", config.divergence_advice()):
        table, field = path.split(".")
        assert field in type(getattr(config, table)).model_fields
    assert isinstance(config.make_task(), Adversarial) and adversarial.__doc__
