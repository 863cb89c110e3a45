"""What a trained generator draws: images by number, mixing grids, films."""

import dataclasses
import io

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from genjax.data.gaussian_mixture import GaussianMixture, open_mixture
from genjax.errors import UserError
from genjax.image.adversarial_config import ImageGenerationConfig
from genjax.image.generator_view import GeneratorView, latents_by_number, to_uint8
from genjax.image.image_generation import generate_images
from genjax.image.scatter import scatter
from tests.image.small_gans import (
    DCGAN,
    POINTS,
    StyledGenerator,
    configured,
    styled,
    trained,
    unlabelled_task,
)

KEY = jax.random.key(5)


@pytest.fixture(scope="module")
def dcgan():
    """A conditional run of a step, and its state."""
    task = configured(DCGAN, evaluation={"batch_size": 5}).make_task()
    return task, trained(task, 1)[0]


@pytest.fixture(scope="module")
def styles():
    """A run with styles and classes."""
    task = styled(evaluation={"batch_size": 6}).make_task()
    return task, trained(task, 2)[0]


def ask(run, **request):
    task, state = run
    return list(task.generate(state, KEY, ImageGenerationConfig(**request)))


def images_of(samples):
    assert samples[-1].name == "grid"
    return np.stack([sample.image for sample in samples[:-1]])


# ---- single images -------------------------------------------------------------------------------


@pytest.mark.parametrize("run", ["dcgan", "styles"])
def test_an_image_is_the_same_whatever_the_count(run, request):
    run = request.getfixturevalue(run)
    many, few = images_of(ask(run, count=13)), images_of(ask(run, count=3))
    assert many.shape == (13, 8, 8, 1) and many.dtype == np.uint8
    np.testing.assert_array_equal(many[:3], few)
    assert len(np.unique(many.reshape(13, -1), axis=0)) == 13


def test_an_image_is_the_same_whatever_the_chunk(dcgan):
    task, state = dcgan
    request = ImageGenerationConfig(count=7)
    variables = task._variables(state)
    drawn = [
        images_of(
            list(
                generate_images(
                    GeneratorView(task.step.generator, size), variables, KEY, request, 8, 10
                )
            )
        ).astype(int)
        for size in (1, 3, 16)
    ]
    for other in drawn[1:]:
        assert abs(other - drawn[0]).max() <= 1


def test_images_are_those_of_the_generator(dcgan):
    task, state = dcgan
    samples = ask(dcgan, count=6, label=4)
    assert [sample.caption["label"] for sample in samples[:-1]] == [4] * 6
    assert [sample.name for sample in samples[:2]] == ["00000", "00001"]
    assert [sample.index for sample in samples] == list(range(7))
    latents = latents_by_number(KEY, jnp.arange(6), 8)
    expected = task.step.generator.apply(task._variables(state), latents, jnp.full(6, 4, jnp.int32))
    off = abs(images_of(samples).astype(int) - to_uint8(np.asarray(expected)))
    assert off.max() <= 1
    np.testing.assert_array_equal(latents_by_number(KEY, jnp.arange(9), 8)[:6], latents)


def test_labels_go_round_and_stand_in_columns(dcgan):
    samples = ask(dcgan, count=23)
    assert [sample.caption["label"] for sample in samples[:-1]] == [n % 10 for n in range(23)]
    images = images_of(samples)
    grid = samples[-1].image
    assert grid.shape == (3 * 8, 10 * 8, 1)
    for number, image in enumerate(images):
        row, column = divmod(number, 10)
        np.testing.assert_array_equal(
            grid[8 * row : 8 * row + 8, 8 * column : 8 * column + 8], image
        )
    assert ask(dcgan, count=6, columns=2)[-1].image.shape == (24, 16, 1)


def test_without_classes_captions_have_no_label(monkeypatch):
    task = unlabelled_task(styled(), monkeypatch)
    samples = ask((task, jax.jit(task.init)(KEY)), count=4)
    assert "label" not in samples[0].caption and samples[-1].image.shape == (16, 16, 1)


def test_rounding_and_clipping():
    values = np.array([-3.0, -1.0, -0.5, 0.0, 1.0, 2.0], np.float32).reshape(1, 1, 6, 1)
    assert to_uint8(values).ravel().tolist() == [0, 0, 64, 128, 255, 255]
    levels = np.arange(256, dtype=np.float32).reshape(1, 16, 16, 1)
    np.testing.assert_array_equal(to_uint8(levels / 127.5 - 1), levels.astype(np.uint8))


# ---- truncation ----------------------------------------------------------------------------------


def test_truncation(styles):
    average = images_of(ask(styles, count=8, truncation=0.0))
    assert (average == average[0]).all()
    whole, half = (
        images_of(ask(styles, count=8, truncation=psi)).astype(float) for psi in (1.0, 0.5)
    )
    spread = [abs(images - average[0]).mean() for images in (whole, half)]
    assert 0 < spread[1] < spread[0]
    np.testing.assert_array_equal(images_of(ask(styles, count=8)), whole)


def test_truncation_up_to_a_layer(styles):
    every = images_of(ask(styles, count=4, truncation=0.3, truncation_cutoff=4))
    np.testing.assert_array_equal(every, images_of(ask(styles, count=4, truncation=0.3)))
    some = images_of(ask(styles, count=4, truncation=0.3, truncation_cutoff=2))
    assert (some != every).any() and (some != images_of(ask(styles, count=4))).any()
    with pytest.raises(UserError, match="truncation_cutoff: does nothing at truncation 1"):
        ask(styles, truncation_cutoff=2)


# ---- mixing --------------------------------------------------------------------------------------


def cells(run, **request):
    (sample,) = ask(run, mode="mixing", rows=2, columns=3, **request)
    assert sample.name == "mixing" and sample.image.shape == (3 * 8, 4 * 8, 1)
    return sample.image.reshape(3, 8, 4, 8).swapaxes(1, 2), sample.caption["what"]


def test_mixing_grids(styles):
    every, _ = cells(styles, mix_layers="0-3")
    # The corner is empty; the rest of the edges are the images that give their styles.
    assert (every[0, 0] == 255).all()
    own = images_of(ask(styles, count=5))
    np.testing.assert_array_equal(every[1:, 0], own[:2, ..., 0])
    np.testing.assert_array_equal(every[0, 1:], own[2:, ..., 0])
    for row in (1, 2):
        np.testing.assert_array_equal(every[row, 1:], every[0, 1:])
    upper, words = cells(styles)
    assert words == "rows with layers 2-3 of columns"
    listed, words = cells(styles, mix_layers=" 2, 3")
    assert words == "rows with layers 2,3 of columns"
    np.testing.assert_array_equal(listed, upper)
    lower, _ = cells(styles, mix_layers="0,1")
    inside = upper[1:, 1:], lower[1:, 1:]
    assert (inside[0] != inside[1]).any()
    for grid in inside:
        assert (grid != every[1:, 1:]).any() and (grid != every[1:, :1]).any()
    # What rows and columns give the other way round.
    task, state = styles
    variables, labels = task._variables(state), np.arange(5, dtype=np.int32)
    latents = latents_by_number(KEY, jnp.arange(5), 4)
    style = task.view.draw_styles(variables, latents, labels)
    mixed = np.concatenate([style[3, :2], style[1, 2:]])[None]
    expected = to_uint8(task.view.draw_synthesis(variables, mixed))[0, ..., 0]
    np.testing.assert_array_equal(lower[2, 2], expected)


def test_mixing_with_truncation_shows_truncated_images(styles):
    grid, _ = cells(styles, mix_layers="0", truncation=0.0)
    assert (grid[1:, 1:] == grid[1, 0]).all() and (grid[0, 1:] == grid[1, 0]).all()


@pytest.mark.parametrize(
    ("layers", "words"),
    [
        ("coarse", "'coarse' is no list of layers"),
        ("", "'' is no list of layers"),
        ("1,,2", "is no list of layers"),
        ("-1", "is no list of layers"),
        ("2-4", "'2-4' is out of range; the layers are 0 to 3"),
        ("0,7", "'7' is out of range; the layers are 0 to 3"),
        ("3-1", "'3-1' is out of range"),
    ],
)
def test_layers_that_there_are_not(styles, layers, words):
    with pytest.raises(UserError, match=f"mix_layers: .*{words}"):
        ask(styles, mode="mixing", mix_layers=layers)


# ---- interpolations ------------------------------------------------------------------------------


def film(run, **request):
    (sample,) = ask(run, mode="interpolation", **request)
    assert sample.name == "interpolation"
    return sample


@pytest.mark.parametrize("space", ["w", "z"])
def test_a_film_goes_round(styles, space):
    sample = film(styles, count=3, frames=60, space=space, label=2)
    frames = sample.animation.astype(float)
    assert frames.shape == (60, 8, 8, 1)
    steps = abs(frames - np.roll(frames, 1, 0)).mean((1, 2, 3))
    # The step from the last frame to the first is one like the others.
    assert steps[0] <= steps[1:].max() * 1.5 + 1 and steps.mean() > 0
    images = images_of(ask(styles, count=3, label=2))
    assert abs(frames[[0, 20, 40]] - images).max() <= 1
    assert sample.caption["what"] == f"3 images, in {space}"


def test_styles_pass_between_classes_and_z_keeps_one(styles, dcgan):
    film(styles, count=2, frames=4)
    assert film(dcgan, count=2, frames=4, label=1).caption["what"] == "2 images, in z"
    with pytest.raises(UserError, match="label: an interpolation in z keeps one class"):
        film(dcgan, count=2, frames=4)


@pytest.mark.parametrize("space", ["w", "z"])
def test_a_film_of_one_image_stands_still(styles, space):
    frames = film(styles, count=1, frames=5, space=space, label=0).animation
    assert (frames == frames[0]).all()


@pytest.mark.parametrize("kind", ["webp", "gif"])
def test_films_can_be_read(styles, tmp_path, kind):
    sample = film(styles, count=3, frames=7, frames_per_second=20, format=kind, label=1)
    entry = sample.save(tmp_path)
    assert entry["image"] == f"interpolation.{kind}"
    with Image.open(io.BytesIO((tmp_path / entry["image"]).read_bytes())) as picture:
        assert picture.n_frames == 7 and picture.size == (8, 8)
        assert picture.info["loop"] == 0 and picture.info.get("duration", 50) == 50
        shown = np.asarray(picture.convert("L"))
    assert abs(shown.astype(int) - sample.animation[0, ..., 0]).max() <= 1


# ---- points --------------------------------------------------------------------------------------


def test_points_are_drawn_as_a_picture():
    task = configured(
        {"kind": "dense", "latent_size": 2, "generator_sizes": [4], "output": "linear"}, POINTS
    ).make_task()
    (sample,) = ask((task, jax.jit(task.init)(KEY)), count=50)
    assert sample.image.shape == (320, 320, 3)


@pytest.mark.fast
def test_a_scatter_shows_points_where_they_are():
    mixture = open_mixture(GaussianMixture(layout="ring", samples=10)).mixture
    assert mixture is not None
    points = np.array([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0], [9.0, 0.0], [np.nan, 0.0]])
    picture = scatter(points, mixture, size=100)
    blue = np.argwhere((picture == (31, 98, 189)).all(-1))
    # Rows go down as y goes up; 1.25 is the edge.
    assert {tuple(place) for place in blue} == {(49, 50), (49, 90), (9, 50)}
    grey = (picture == (170, 170, 170)).all(-1)
    assert 8 <= grey.sum() < 300


# ---- the view ------------------------------------------------------------------------------------


@pytest.mark.fast
def test_latents_are_normal_and_each_its_own():
    latents = np.asarray(latents_by_number(KEY, jnp.arange(500), 20))
    assert abs(latents.mean()) < 0.05 and abs(latents.std() - 1) < 0.05
    assert len(np.unique(latents[:, 0])) == 500
    other = np.asarray(latents_by_number(jax.random.key(6), jnp.arange(500), 20))
    assert abs(latents - other).min() > 0


@pytest.mark.fast
def test_only_generators_with_styles_have_styles(dcgan):
    assert GeneratorView(StyledGenerator((2, 2, 1)), 4).has_styles
    view = dcgan[0].view
    assert not view.has_styles
    with pytest.raises(UserError, match=r"DCGANGenerator has no styles; .*stylegan2"):
        view.check_styles("truncation")


@pytest.mark.fast
def test_averaged_parameters_are_drawn_from(styles):
    task, state = styles
    images = images_of(ask(styles, count=2))
    params = jax.tree.map(lambda leaf: 2 * leaf, state.params)
    moved = dataclasses.replace(state, params=params)
    np.testing.assert_array_equal(images_of(ask((task, moved), count=2)), images)
    plain = dataclasses.replace(moved, ema={})
    assert (images_of(ask((task, plain), count=2)) != images).any()
