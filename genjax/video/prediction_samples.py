"""Pictures and clips of predictions, for people to look at.

Letters: B batch, T time, H height, W width, C channels, K known frames, N all frames of a result.
"""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key, UInt8

from genjax.data.clip_decode import ClipFrames, read_clip
from genjax.data.clip_windows import ClipOptions
from genjax.errors import UserError
from genjax.media import AnimationSample, ImageSample, MediaSample, film_strip
from genjax.task import Tree
from genjax.video.conditioning import Interpolate, Known, Predict
from genjax.video.prediction_config import PredictionGenerationConfig

if TYPE_CHECKING:
    from genjax.video.prediction import FramePrediction

_COUNT = 8
"""Clips of the run's data, if a request does not say how many."""

Clips = UInt8[np.ndarray, "B T H W C"]


def unit_to_uint8(frames: Any) -> UInt8[np.ndarray, "..."]:
    """Frames in about [0, 1] as stored ones; what lies outside is clipped."""
    return np.clip(np.round(np.asarray(frames, np.float32) * 255.0), 0, 255).astype(np.uint8)


def prediction_strips(
    clips: Clips, predicted: Float[Array, "B T H W C"], known: Known, mask: Any
) -> list[MediaSample]:
    """For each clip the known frames, the true ones below each other with the predicted ones.

    Args:
        clips: whole and true.
        predicted: the same with what is unknown predicted, in about [0, 1].
        known: which frames are known.
        mask: 1 for known pixels [B, T, H, W, 1], if frames are known in part.
    """
    drawn = unit_to_uint8(predicted)
    below = np.tile(~np.array(known), (len(clips), 1))
    rows, shown = [clips, drawn], [np.ones_like(below), below]
    if mask is not None:
        seen = np.where(np.asarray(mask) > 0, clips, np.uint8(127))
        rows, shown = [clips, seen, drawn], [np.ones_like(below)] * 3
    # Clip by clip: its rows one below the other.
    stacked = np.stack(rows, 1).reshape(-1, *clips.shape[1:])
    strip = film_strip(stacked, np.stack(shown, 1).reshape(-1, clips.shape[1]))
    what = "truth, what is known, prediction" if mask is not None else "truth above prediction"
    return [ImageSample(index=0, name="predictions", image=strip, caption={"what": what})]


def generate_predictions(
    task: "FramePrediction",
    variables: Tree,
    key: Key[Array, ""],
    request: PredictionGenerationConfig,
) -> Iterator[MediaSample]:
    """What a request asks for: clips as files, and a strip of all of them.

    Raises:
        UserError: the request does not fit the run, or its input cannot be read.
    """
    del key  # Nothing is random about it.
    predicting = isinstance(task.conditioning, Predict)
    if request.frames is not None and not predicting:
        raise UserError(
            f'frames: the run fills in, by conditioning.kind = "{task.conditioning.kind}"; frames '
            'are for runs of "predict"'
        )
    if request.input is not None:
        yield from _from_input(task, variables, request)
        return
    future = request.frames if predicting else None
    split = request.split or task.config.evaluation.split
    if split not in task.source.splits:
        raise UserError(
            f"split: {task.source.name} has no {split!r}; one of {', '.join(task.source.splits)}"
        )
    if future is not None and future != len(task.known) - sum(task.known):
        task = task.with_future(future)
    clips = task.shown_clips(split, request.count or _COUNT)
    if request.count is not None and len(clips) < request.count:
        raise UserError(
            f"count: the {split} split has {len(clips)} clips of {len(task.known)} frames and "
            f"{request.count} are asked for; lower count or frames"
        )
    numbers = np.arange(len(clips), dtype=np.int32)
    predicted, mask = task.shown(variables, clips, numbers)
    drawn = unit_to_uint8(predicted)
    rate = request.frames_per_second or task.source.frames_per_second
    for index, (true, new) in enumerate(zip(clips, drawn, strict=True)):
        yield AnimationSample(
            index=index,
            name=f"{index:05}",
            animation=np.concatenate([_framed(true), _framed(new)], 2),
            frames_per_second=rate,
            format=request.format,
            caption={"what": "truth and prediction side by side"},
        )
    (strips,) = prediction_strips(clips, predicted, task.known, mask)
    assert isinstance(strips, ImageSample)
    yield ImageSample(index=len(clips), name="strips", image=strips.image, caption=strips.caption)


def _from_input(
    task: "FramePrediction", variables: Tree, request: PredictionGenerationConfig
) -> Iterator[MediaSample]:
    """A user's clip, continued or with its gaps filled."""
    assert request.input is not None
    _, height, width, channels = task.source.clip_shape
    assert channels in (1, 3)
    source = task.config.data.source
    predicting = isinstance(task.conditioning, Predict)
    # Going on is at the speed of the training clips, filling in between at that of the input.
    prepared = isinstance(source, ClipOptions)
    read = read_clip(
        request.input,
        size=(height, width),
        channels=channels,
        crop=source.crop if prepared else "center",
        frames_per_second=source.frames_per_second if prepared and predicting else None,
    )
    if prepared and predicting:
        read = ClipFrames(read.frames[:: source.stride], read.frames_per_second / source.stride)
    rate = request.frames_per_second or read.frames_per_second
    frames = jnp.asarray(read.frames, jnp.float32) / 255.0
    match task.conditioning:
        case Predict(past=past, future=future):
            future = request.frames or future
            seen = frames[None, -past:]
            new = task.view.continue_clip(variables, seen, future)[0]
            result = np.concatenate([read.frames, unit_to_uint8(new)])
            # The strip begins where the network does.
            strip = result[-(future + seen.shape[1]) :]
            what = f"{len(read.frames)} frames of the input and {future} predicted ones"
        case Interpolate(between=between):
            result = unit_to_uint8(task.view.fill_gaps(variables, frames))
            # As long as before.
            rate = request.frames_per_second or rate * (between + 1)
            strip = result[: 8 * (between + 1) + 1]
            what = f"{between} frames filled in after each of the input's"
        case _:
            raise UserError(
                f'input: the run fills holes, by conditioning.kind = "{task.conditioning.kind}"; '
                'clips can be continued by runs of "predict", and filled by runs of "interpolate"'
            )
    yield AnimationSample(
        index=0,
        name=_plain_name(request.input.stem),
        animation=result,
        frames_per_second=rate,
        format=request.format,
        caption={"what": what},
    )
    yield ImageSample(index=1, name="strip", image=film_strip(strip[None]), caption={"what": what})


def _plain_name(stem: str) -> str:
    plain = "".join(letter if letter.isalnum() or letter in "_-" else "-" for letter in stem)
    return plain.lstrip("-") or "clip"


def _framed(clip: UInt8[np.ndarray, "T H W C"]) -> UInt8[np.ndarray, "T _ _ C"]:
    """A margin of grey, so that two clips side by side can be told apart."""
    return np.pad(clip, ((0, 0), (1, 1), (1, 1), (0, 0)), constant_values=127)
