"""One recorded clip as frames of the size and channels that a model wants, and when they show.

T frames of a clip, H height, W width, C channels.
"""

import io
from collections.abc import Iterable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from genjax.data.clip_listing import VIDEO_EXTENSIONS, ClipFile, list_clips
from genjax.data.image_decode import Decoding, UnreadableImage, decode_image, pixels_of
from genjax.data.tfds_builder import first_line
from genjax.errors import UserError

FOLDER_RATE = 25.0
"""Frames per second of numbered pictures, which do not say, where nobody else does."""

# Named, since FFmpeg also opens lists that make it read other files or addresses.
_CONTAINERS = "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpegts,mpeg"
_LONGEST_SECONDS = 600.0
_TOLERANCE = 1e-6


class UnreadableClip(Exception):
    """Why a clip is left out, or why no more of its frames can be had, in a few words."""


class TimedFrame(NamedTuple):
    """A frame, when it appears and how long it is shown, in seconds."""

    start: float
    duration: float
    pixels: UInt8[np.ndarray, "H W C"]


class ClipFrames(NamedTuple):
    """A clip in memory: its frames [T, H, W, C], and how many are shown in a second."""

    frames: UInt8[np.ndarray, "T H W C"]
    frames_per_second: float


def read_clip(
    path: Path,
    *,
    size: int | tuple[int, int] | None = None,
    crop: Literal["center", "none"] = "center",
    channels: Literal[1, 3] = 3,
    frames_per_second: float | None = None,
) -> ClipFrames:
    """Reads one clip: a video, an animated picture, or a folder of numbered frames.

    Of a damaged file, the frames before the damage are returned.

    Args:
        path: The file or folder.
        size: (H, W), or one number for both; None for the clip's own.
        crop: "center" cuts to the aspect ratio of `size` first, "none" stretches.
        channels: C; 1 (gray) or 3 (colour).
        frames_per_second: The rate to resample to; None for the clip's own frames.

    Raises:
        UserError: There is no such clip, it cannot be read, or the folder holds several.
    """
    listing = list_clips(path, "input")
    clip, *others = listing.clips
    if others:
        raise UserError(f"{path} holds {1 + len(others)} clips.\nGive one: {clip.paths[0]}")
    size = (size, size) if isinstance(size, int) else size
    decoding = Decoding(size=size, crop=crop, channels=channels)
    frames: list[np.ndarray] = []
    seconds = 0.0
    try:
        for shown in retimed(decode_clip(clip, decoding, frames_per_second), frames_per_second):
            frames.append(shown.pixels)
            seconds += shown.duration
    except UnreadableClip as error:
        if not frames:
            raise UserError(
                f"{path} {error}.\nGive another clip, or convert it to an mp4 or to numbered png."
            ) from error
    return ClipFrames(np.stack(frames), average_rate(len(frames), seconds, frames_per_second))


def average_rate(frames: int, seconds: float, rate: float | None) -> float:
    """Frames per second of so many frames, where the rate is not given; without rounding errors."""
    return float(rate) if rate is not None else round(frames / seconds, 6)


def decode_clip(
    clip: ClipFile, decoding: Decoding, folder_rate: float | None = None
) -> Iterator[TimedFrame]:
    """Decodes a clip, frame by frame; the first is shown at 0 seconds.

    Frames are turned upright as their container says. Pixels that are not square become so where
    the decoding resizes. Transparency lies before the decoding's background.

    Args:
        clip: What to decode.
        decoding: Size and channels; channels are 1 or 3.
        folder_rate: Frames per second of numbered pictures; None for `FOLDER_RATE`.

    Raises:
        UnreadableClip: There are no frames, or none beyond those that came before: the file is
            empty, truncated, corrupt or of an unknown kind.
        UserError: It is a video, and PyAV is not installed.
    """
    if clip.is_frames:
        frames = _folder_frames(clip.paths, decoding, folder_rate or FOLDER_RATE)
    elif clip.paths[0].suffix.lower() in VIDEO_EXTENSIONS:
        frames = _video_frames(clip.paths[0], decoding)
    else:
        frames = _animation_frames(clip.paths[0], decoding)
    shape = None
    try:
        for frame in frames:
            shape = shape or frame.pixels.shape
            if frame.pixels.shape != shape:
                raise UnreadableClip(f"changes its size after {frame.start:.2f} seconds")
            yield frame
    except (UnreadableClip, UserError):
        raise
    except Exception as error:
        # A damaged file makes a decoder stumble anywhere: ValueError, SyntaxError, struct.error...
        reason = getattr(error, "strerror", None) or first_line(error)
        raise UnreadableClip(f"cannot be decoded ({reason})") from error
    if shape is None:
        raise UnreadableClip("has no frames")


class ShownFrame(NamedTuple):
    """A frame of a clip in its new timing: which one it is, from 0 on, and for how long."""

    number: int
    duration: float
    pixels: UInt8[np.ndarray, "H W C"]


def retimed(frames: Iterable[TimedFrame], rate: float | None) -> Iterator[ShownFrame]:
    """The frames to show at a steady rate: at each tick the one whose turn it is.

    A frame's turn begins halfway from the frame before it, but at most half a tick before its
    own time. So times that a container rounded neither double nor drop a frame, and a picture
    that stands still for long gives way when it should. Frames come several times where the rate
    is higher than theirs.

    Args:
        frames: As `decode_clip` yields them; what it raises comes after the last tick.
        rate: Ticks per second; None for each frame as it is.
    """
    if rate is None:
        for number, frame in enumerate(frames):
            yield ShownFrame(number, frame.duration, frame.pixels)
        return
    tick, number = 0, -1
    current: TimedFrame | None = None
    problem: UnreadableClip | None = None
    stream = iter(frames)
    while problem is None:
        try:
            following = next(stream)
        except StopIteration:
            break
        except UnreadableClip as error:
            problem = error
            break
        if current is not None:
            turn = following.start - 0.5 * min(following.start - current.start, 1.0 / rate)
            while tick / rate < turn - _TOLERANCE:
                yield ShownFrame(number, 1.0 / rate, current.pixels)
                tick += 1
        current, number = following, number + 1
    if current is not None:
        ticks = max(1, round((current.start + current.duration) * rate))
        for _ in range(tick, ticks):
            yield ShownFrame(number, 1.0 / rate, current.pixels)
    if problem is not None:
        raise problem


# What clips are stored as ------------------------------------------------------------------------


def _folder_frames(
    paths: tuple[Path, ...], decoding: Decoding, rate: float
) -> Iterator[TimedFrame]:
    for number, path in enumerate(paths):
        try:
            pixels = decode_image(path.read_bytes(), decoding)
        except (UnreadableImage, OSError) as error:
            raise UnreadableClip(f"breaks off: {path.name} {first_line(error)}") from error
        yield TimedFrame(number / rate, 1.0 / rate, pixels)


def _animation_frames(path: Path, decoding: Decoding) -> Iterator[TimedFrame]:
    data = path.read_bytes()
    if not data:
        raise UnreadableClip("is empty")
    # Without the mark at its end, the last frame of a GIF may be half a frame.
    truncated = path.suffix.lower() == ".gif" and data.rstrip(b"\0")[-1:] != b";"
    with Image.open(io.BytesIO(data), formats=("GIF", "WEBP")) as image:
        start = 0.0
        for number in range(getattr(image, "n_frames", 1) - truncated):
            image.seek(number)
            image.load()
            milliseconds = image.info.get("duration") or 0
            # Viewers take shorter than this for "not said".
            duration = (milliseconds if milliseconds > 10 else 100) / 1000.0
            yield TimedFrame(start, duration, pixels_of(image, decoding))
            start += duration
    if truncated:
        raise UnreadableClip("is truncated")


def _video_frames(path: Path, decoding: Decoding) -> Iterator[TimedFrame]:
    av = _import_av(path)
    if not path.stat().st_size:
        raise UnreadableClip("is empty")
    with av.open(str(path.absolute()), options={"format_whitelist": _CONTAINERS}) as container:
        if not container.streams.video:
            raise UnreadableClip("has no video stream")
        stream = container.streams.video[0]
        if stream.codec_context is None:
            raise UnreadableClip("needs a codec that PyAV does not have")
        usual = float(1 / stream.average_rate) if stream.average_rate else 1.0 / FOLDER_RATE
        aspect = stream.sample_aspect_ratio or Fraction(1)
        origin, start, end = None, 0.0, 0.0
        for frame in container.decode(stream):
            if frame.is_corrupt:
                raise UnreadableClip(f"is damaged after {end:.2f} seconds")
            time = end if frame.time is None else frame.time - (origin or 0.0)
            if origin is None:
                origin, time = frame.time or 0.0, 0.0
            if time - start > _LONGEST_SECONDS:
                raise UnreadableClip(f"shows one frame for {time - start:.0f} seconds")
            start = max(start, time)
            duration = float(frame.duration * frame.time_base) if frame.duration else usual
            end = start + duration
            yield TimedFrame(
                start, duration, pixels_of(_picture(frame, aspect, decoding), decoding)
            )
        # Some containers end early without a word.
        claims = [container.duration and container.duration / av.time_base]
        claims.append(stream.duration and float(stream.duration * stream.time_base))
        claimed = min((claim for claim in claims if claim), default=0.0)
        if end < 0.95 * claimed - 3 * usual:
            raise UnreadableClip(f"ends after {end:.2f} of {claimed:.2f} seconds")


def _picture(frame: Any, aspect: Fraction, decoding: Decoding) -> Image.Image:
    """A frame of PyAV, with its alpha if it has any, upright and with square pixels."""
    alpha = any(component.is_alpha for component in frame.format.components)
    image = Image.fromarray(frame.to_ndarray(format="rgba" if alpha else "rgb24"))
    if decoding.size is not None and aspect > 0 and aspect != 1:
        width = round(image.width * max(aspect, 1))
        image = image.resize((width, round(image.height / min(aspect, 1))))
    turns = {
        90: Image.Transpose.ROTATE_90,
        180: Image.Transpose.ROTATE_180,
        -180: Image.Transpose.ROTATE_180,
        -90: Image.Transpose.ROTATE_270,
    }
    turn = turns.get(frame.rotation)
    return image if turn is None else image.transpose(turn)


def _import_av(path: Path) -> Any:
    try:
        import av
    except ImportError as error:
        raise UserError(
            f"{path} is a video, which PyAV reads, and PyAV is not installed.\n"
            "Install it: pip install 'genjax[video]' (gif, webp and numbered frames go without)."
        ) from error
    return av
