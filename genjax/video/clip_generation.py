"""A trained generator of clips as something to draw from, and what is asked of it.

Letters: B batch, N clips, T time, H height, W width, C channels, Z latent size.
"""

import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key, UInt8

from genjax.data.clip_decode import read_clip
from genjax.data.clip_listing import FRAME_EXTENSIONS
from genjax.data.clip_source import LABELS, ClipSource
from genjax.data.image_decode import Decoding, UnreadableImage, decode_image
from genjax.errors import UserError
from genjax.image.generator_view import latents_by_number
from genjax.media import AnimationSample, ImageSample, film_strip, image_grid
from genjax.nn.layout import gathered
from genjax.parallel.partition import split_like_batch
from genjax.task import Sample, Tree
from genjax.video.conditions import Conditions
from genjax.video.video_adversarial_config import ClipGenerationConfig
from genjax.video.video_judges import stored

_GAP = 2
"""Pixels between clips side by side."""

_STRIP_FRAMES = 16
"""Frames of a clip in a film strip at most."""


class ClipView:
    """Clips of a generator with its trained (averaged) parameters, any number at a time."""

    def __init__(
        self,
        generator: nn.Module,
        latent_size: Callable[[int], int],
        frames: int,
        batch_size: int,
    ) -> None:
        """Prepare to draw `batch_size` clips at a time.

        Args:
            generator: the module.
            latent_size: Z of clips of so many frames.
            frames: T of the clips that the generator was trained on.
            batch_size: B.
        """
        self.generator = generator
        self.frames = frames
        self.batch_size = batch_size
        self.latent_size = latent_size(frames)
        self._sizes = latent_size
        # Whole everywhere, so that each of several processes can fetch all clips.
        self._draw = jax.jit(lambda *arguments: gathered(stored(self.clips(*arguments))))

    @property
    def motion_size(self) -> int:
        """Latent numbers of a further frame; 0 where the number of frames is fixed."""
        return self._sizes(self.frames + 1) - self.latent_size

    def clips(
        self, variables: Tree, latents: Float[Array, "B Z"], conditions: Conditions
    ) -> Float[Array, "B T H W C"]:
        """Clips of latents, in about [-1, 1]."""
        variables, latents = gathered(variables), split_like_batch(latents)
        result: Any = self.generator.apply(variables, latents, conditions)
        return result

    def latents(
        self, key: Key[Array, ""], count: int, frames: int | None = None
    ) -> Float[Array, "N Z"]:
        """Latents of clips 0 to `count`, each a function of the key and its own number alone.

        Those of a longer clip begin with those of a shorter one.

        Raises:
            UserError: the generator's number of frames is fixed to another one.
        """
        wanted = self.frames if frames is None else frames
        latents = latents_by_number(key, jnp.arange(count), self.latent_size)
        if wanted == self.frames:
            return latents
        if not self.motion_size:
            raise UserError(
                f"frames: this model makes clips of {self.frames} frames and no others, not of "
                f'{wanted}; a run with model.kind = "mocogan" or "stylegan2_video" makes any '
                "number"
            )
        if wanted < self.frames:
            return latents[:, : self._sizes(wanted)]
        # Frame by frame, so that nothing depends on how many there are.
        further = [
            latents_by_number(jax.random.fold_in(key, frame), jnp.arange(count), self.motion_size)
            for frame in range(self.frames, wanted)
        ]
        return jnp.concatenate([latents, *further], 1)

    def draw(
        self, variables: Tree, latents: Float[Array, "N Z"], conditions: Conditions
    ) -> UInt8[np.ndarray, "N T H W C"]:
        """Stored clips of any number of latents."""
        count, parts = len(latents), []
        for start in range(0, count, self.batch_size):
            # The last piece begins again from the front, so that all have one shape.
            rows = np.arange(start, start + self.batch_size) % count
            some = jax.tree.map(lambda leaf, rows=rows: leaf[rows], conditions)
            parts.append(np.asarray(self._draw(variables, latents[rows], some)))
        return np.concatenate(parts)[:count]


# ---- what `tools.generate` asks for --------------------------------------------------------------


def generate_clips(
    view: ClipView,
    variables: Tree,
    key: Key[Array, ""],
    request: ClipGenerationConfig,
    source: ClipSource,
    *,
    image_conditional: bool,
) -> Iterator[Sample]:
    """Answer a request: a file for each clip, all side by side, and their frames as a film strip.

    Raises:
        UserError: it asks for a class, a number of frames or a first frame that cannot be.
    """
    if request.label is not None and request.label >= source.num_classes:
        known = f"the run's classes are 0 to {source.num_classes - 1}"
        raise UserError(
            f"label: {request.label} is out of range; "
            f"{known if source.num_classes else 'the run has no classes'}"
        )
    if request.input is not None and not image_conditional:
        raise UserError(
            f"input: {request.input} does nothing for this run, which was trained without first "
            "frames; train one with image_conditional = true"
        )
    latents = view.latents(key, request.count, request.frames)
    return _generate(view, variables, latents, request, source, image_conditional)


def _generate(
    view: ClipView,
    variables: Tree,
    latents: Array,
    request: ClipGenerationConfig,
    source: ClipSource,
    image_conditional: bool,
) -> Iterator[Sample]:
    count, classes = request.count, source.num_classes
    labels = None
    if classes:
        asked = np.arange(count) % classes if request.label is None else request.label
        labels = np.broadcast_to(np.asarray(asked, np.int32), (count,))
    first = None
    if image_conditional:
        first = _first_frames(request.input, source, count)
    drawn = view.draw(variables, latents, conditions_of(labels, first))
    rate = request.frames_per_second or source.frames_per_second
    for number, clip in enumerate(drawn):
        yield AnimationSample(
            index=number,
            name=f"{number:05d}",
            animation=clip,
            frames_per_second=rate,
            format=request.format,
            caption=_caption(labels, number, source),
        )
    if request.grid:
        columns = request.columns
        if columns is None and labels is not None and request.label is None and classes <= 16:
            # Rows of all classes, so that a column has one.
            columns = min(classes, count)
        yield AnimationSample(
            index=count,
            name="grid",
            animation=clip_grid(drawn, columns),
            frames_per_second=rate,
            format=request.format,
            caption={"what": "grid"},
        )
        yield _strip(count + 1, "film_strip", drawn)


def _caption(labels: np.ndarray | None, number: int, source: ClipSource) -> dict[str, Any]:
    if labels is None:
        return {}
    label = int(labels[number])
    named = {"class": source.class_names[label]} if source.class_names else {}
    return {"label": label, **named}


def conditions_of(
    labels: Int[np.ndarray, "N"] | None, first: UInt8[np.ndarray, "N H W C"] | None
) -> Conditions:
    """Conditions from what the host has: labels, and stored first frames."""
    scaled = None if first is None else jnp.asarray(first / np.float32(127.5) - 1)
    return Conditions(None if labels is None else jnp.asarray(labels), scaled)


def _first_frames(
    path: Path | None, source: ClipSource, count: int
) -> UInt8[np.ndarray, "N H W C"]:
    """The first frame of a file for all clips, or of validation clips, each its own."""
    if path is None:
        return source.clips("validation", _some(source, count))[:, 0]
    path = path.expanduser()
    _, height, width, channels = source.clip_shape
    decoding = Decoding(size=(height, width), channels=channels)
    if path.is_file() and path.suffix.lower() in FRAME_EXTENSIONS:
        try:
            picture = decode_image(path.read_bytes(), decoding)
        except (OSError, UnreadableImage) as error:
            raise UserError(f"input: {path} cannot be read: {error}; give another one") from error
    elif channels not in (1, 3):
        raise UserError(f"input: clips have 1 or 3 channels, and this run's have {channels}")
    else:
        clip = read_clip(path, size=(height, width), channels=1 if channels == 1 else 3)
        picture = clip.frames[0]
    return np.repeat(picture[None], count, 0)


def _some(source: ClipSource, count: int) -> Int[np.ndarray, "N"]:
    """Numbers of validation clips, spread over the split."""
    last = len(source.splits["validation"]) - 1
    return np.linspace(0, last, count).astype(np.int64)


# ---- what the loop shows -------------------------------------------------------------------------


def sample_clips(
    view: ClipView,
    variables: Tree,
    key: Key[Array, ""],
    count: int,
    source: ClipSource,
    *,
    image_conditional: bool,
) -> list[Sample]:
    """Generated clips beside the real ones whose classes and first frames they have been given."""
    numbers = _some(source, count)
    description = source.splits["validation"].read(numbers)
    labels = description.get(LABELS) if source.num_classes else None
    if labels is not None:
        order = np.argsort(labels, kind="stable")
        numbers, labels = numbers[order], labels[order]
    real = source.clips("validation", numbers)
    conditions = conditions_of(labels, real[:, 0] if image_conditional else None)
    drawn = view.draw(variables, view.latents(key, count), conditions)
    samples: list[Sample] = []
    for name, clips in (("generated", drawn), ("real", real)):
        samples.append(
            AnimationSample(
                index=len(samples),
                name=name,
                animation=clip_grid(clips),
                frames_per_second=source.frames_per_second,
                caption={"what": name},
            )
        )
        samples.append(_strip(len(samples), f"{name}_frames", clips))
    return samples


def clip_grid(
    clips: UInt8[np.ndarray, "N T H W C"], columns: int | None = None
) -> UInt8[np.ndarray, "T height width C"]:
    """Clips that play side by side, in about a square by default."""
    columns = columns or math.ceil(math.sqrt(len(clips)))
    return np.stack([image_grid(frames, columns, _GAP) for frames in clips.swapaxes(0, 1)])


def _strip(index: int, name: str, clips: UInt8[np.ndarray, "N T H W C"]) -> ImageSample:
    """A row for each clip, of long clips some frames spread evenly."""
    frames = clips.shape[1]
    shown = np.linspace(0, frames - 1, min(frames, _STRIP_FRAMES)).round().astype(np.int64)
    some = f"{len(shown)} of {frames} frames" if len(shown) < frames else "frames"
    return ImageSample(
        index=index,
        name=name,
        image=film_strip(clips[:, shown]),
        caption={"what": f"{some} in order"},
    )
