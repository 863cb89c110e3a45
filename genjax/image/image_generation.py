"""What `tools.generate` asks a trained generator for: images, mixing grids, interpolations.

Letters: N images, L layers, D style size.
"""

import re
from collections.abc import Iterator

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key

from genjax.errors import UserError
from genjax.image.adversarial_config import ImageGenerationConfig
from genjax.image.generator_view import GeneratorView, latents_by_number, to_uint8
from genjax.image.metrics.path_length import slerp
from genjax.media import AnimationSample, ImageSample, image_grid
from genjax.task import Sample, Tree


def generate_images(
    view: GeneratorView,
    variables: Tree,
    key: Key[Array, ""],
    request: ImageGenerationConfig,
    latent_size: int,
    num_classes: int,
) -> Iterator[Sample]:
    """Answer a request.

    Raises:
        UserError: it asks for styles of a generator that has none, or for layers that are not.
    """
    if request.truncation != 1.0 or request.truncation_cutoff is not None:
        view.check_styles("truncation")
    if request.truncation_cutoff is not None and request.truncation == 1.0:
        raise UserError("truncation_cutoff: does nothing at truncation 1; give a truncation")
    match request.mode:
        case "images":
            return _images(view, variables, key, request, latent_size, num_classes)
        case "mixing":
            return _mixing(view, variables, key, request, latent_size, num_classes)
        case "interpolation":
            return _interpolation(view, variables, key, request, latent_size, num_classes)


def _labels(
    request: ImageGenerationConfig, count: int, num_classes: int
) -> Int[np.ndarray, "N"] | None:
    """The class asked for, or all in turn."""
    if not num_classes:
        return None
    if request.label is not None:
        return np.full(count, request.label, np.int32)
    return (np.arange(count) % num_classes).astype(np.int32)


def _images(
    view: GeneratorView,
    variables: Tree,
    key: Array,
    request: ImageGenerationConfig,
    latent_size: int,
    num_classes: int,
) -> Iterator[Sample]:
    count = request.count or 64
    latents = latents_by_number(key, jnp.arange(count), latent_size)
    labels = _labels(request, count, num_classes)
    drawn = to_uint8(
        view.draw(variables, latents, labels, request.truncation, request.truncation_cutoff)
    )
    for number, image in enumerate(drawn):
        caption = {} if labels is None else {"label": int(labels[number])}
        yield ImageSample(index=number, name=f"{number:05d}", image=image, caption=caption)
    columns = request.columns
    if columns is None and labels is not None and request.label is None:
        # Rows of all classes, so that a column has one.
        columns = num_classes if num_classes <= 16 else None
    grid = image_grid(drawn, columns)
    yield ImageSample(index=count, name="grid", image=grid, caption={"what": "grid"})


def _mixing(
    view: GeneratorView,
    variables: Tree,
    key: Array,
    request: ImageGenerationConfig,
    latent_size: int,
    num_classes: int,
) -> Iterator[Sample]:
    """Row r, column c: the styles of r, but those of the chosen layers from c.

    The first row and column show the images whose styles they are.
    """
    view.check_styles('mode: "mixing"')
    rows, columns = request.rows or 6, request.columns or 6
    count = rows + columns
    latents = latents_by_number(key, jnp.arange(count), latent_size)
    labels = _labels(request, count, num_classes)
    styles = view.draw_styles(
        variables, latents, labels, request.truncation, request.truncation_cutoff
    )
    layers = _layer_range(request.mix_layers, styles.shape[1])
    mixed = np.repeat(styles[:rows, None], columns, 1)
    mixed[:, :, layers] = styles[None, rows:, layers]
    own = view.draw_synthesis(variables, styles)
    between = view.draw_synthesis(variables, mixed.reshape(-1, *styles.shape[1:]))
    images = to_uint8(np.concatenate([own, between]))
    blank = np.full((1, *images.shape[1:]), 255, np.uint8)
    table = [np.concatenate([blank, images[rows:count]])]
    for row in range(rows):
        first = count + row * columns
        table.append(np.concatenate([images[row : row + 1], images[first : first + columns]]))
    named = (request.mix_layers or f"{layers[0]}-{layers[-1]}").replace(" ", "")
    yield ImageSample(
        index=0,
        name="mixing",
        image=image_grid(np.concatenate(table), columns + 1),
        caption={"what": f"rows with layers {named} of columns"},
    )


def _layer_range(text: str | None, count: int) -> list[int]:
    """Layers of a text such as "4-7" or "0,1,5-6"; by default the upper half.

    Raises:
        UserError: the text is no such list, or names layers that there are not.
    """
    if text is None:
        return list(range(count // 2, count))
    layers: set[int] = set()
    for part in text.split(","):
        found = re.fullmatch(r"\s*(\d+)\s*(?:-\s*(\d+)\s*)?", part)
        if found is None:
            raise UserError(
                f'mix_layers: {text!r} is no list of layers; write such as "4-7" or "0,1"'
            )
        first, last = int(found[1]), int(found[2] or found[1])
        if not first <= last < count:
            raise UserError(
                f"mix_layers: {part.strip()!r} is out of range; the layers are 0 to {count - 1}"
            )
        layers |= set(range(first, last + 1))
    return sorted(layers)


def _interpolation(
    view: GeneratorView,
    variables: Tree,
    key: Array,
    request: ImageGenerationConfig,
    latent_size: int,
    num_classes: int,
) -> Iterator[Sample]:
    """A film through `count` images and back to the first."""
    count, frames_asked = request.count or 6, request.frames or 120
    space = request.space or ("w" if view.has_styles else "z")
    if space == "w":
        view.check_styles('space: "w"')
    latents = latents_by_number(key, jnp.arange(count), latent_size)
    labels = _labels(request, count, num_classes)
    if labels is not None and request.label is None and space == "z":
        raise UserError("label: an interpolation in z keeps one class; give it, or use space w")
    position = np.arange(frames_asked) * count / frames_asked
    if space == "w":
        styles = view.draw_styles(
            variables, latents, labels, request.truncation, request.truncation_cutoff
        )
        frames = view.draw_synthesis(variables, _closed_curve(styles, position))
    else:
        start = position.astype(np.int64) % count
        end = (start + 1) % count
        between = latents
        if count > 1:
            between = slerp(latents[start], latents[end], jnp.asarray(position % 1.0, jnp.float32))
        else:
            between = latents[start]
        some = None if labels is None else labels[start]
        frames = view.draw(variables, between, some, request.truncation, request.truncation_cutoff)
    yield AnimationSample(
        index=0,
        name="interpolation",
        animation=to_uint8(frames),
        frames_per_second=request.frames_per_second or 24.0,
        format=request.format or "webp",
        caption={"what": f"{count} images, in {space}"},
    )


def _closed_curve(
    points: Float[np.ndarray, "N L D"], position: Float[np.ndarray, "T"]
) -> Float[np.ndarray, "T L D"]:
    """A closed Catmull-Rom spline through points, at positions counted in points."""
    count = len(points)
    start = np.floor(position).astype(np.int64)
    t = (position - start).reshape(-1, *(1,) * (points.ndim - 1)).astype(points.dtype)
    before, first, second, after = (points[(start + n) % count] for n in (-1, 0, 1, 2))
    return 0.5 * (
        2 * first
        + (second - before) * t
        + (2 * before - 5 * first + 4 * second - after) * t**2
        + (3 * first - before - 3 * second + after) * t**3
    )
