"""Generated images and clips: how they are shown, encoded and written.

Letters: T time, B batch, H height, W width, C channels (1 grey, 3 colour, 4 colour and alpha).
"""

import abc
import dataclasses
import io
import itertools
import math
import re
from fractions import Fraction
from pathlib import Path
from typing import Any, Literal

import numpy as np
from jaxtyping import Bool, UInt8
from PIL import Image

from genjax.errors import UserError
from genjax.task import Sample

_MODES = {1: "grey", 3: "RGB", 4: "RGBA"}
_NAME = re.compile(r"\w[\w.+-]*")
_LOSSLESS_PIXELS = 256 * 256
"""Frames up to this size are encoded without loss: chroma subsampling smears a few pixels."""

_SHORTEST_FRAME = 0.02
"""Seconds."""
_SMALLEST_IN_STRIP = 64
"""Pixels of the shorter side of a frame in a film strip, at least."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class MediaSample(Sample):
    """Something generated that is looked at: it goes to a file, and its path to the log.

    Attributes:
        name: the file's name without its ending, such as "grid" or "00003".
        caption: further fields of the log line, such as `{"what": "real images"}`.
    """

    name: str
    caption: dict[str, Any] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.name):
            raise ValueError(f"name {self.name!r} is no plain file name")
        if reserved := {"step", "index", "image", "video"} & self.caption.keys():
            raise ValueError(f"caption cannot hold {', '.join(sorted(reserved))}")

    @property
    @abc.abstractmethod
    def suffix(self) -> str:
        """The ending of the file, with its dot."""

    @abc.abstractmethod
    def encoded(self) -> bytes:
        """The content of the file.

        Raises:
            UserError: what encodes it is not installed.
        """

    def save(self, folder: Path, within: str = "") -> dict[str, Any]:
        """Write the file, so that a crash leaves either the old one or the new; see `Sample`."""
        content = self.encoded()
        path = folder / within / (self.name + self.suffix)
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_name(path.name + ".part")
        try:
            part.write_bytes(content)
            part.replace(path)
        except OSError:
            part.unlink(missing_ok=True)
            raise
        kind = "video" if self.suffix == ".mp4" else "image"
        return {kind: path.relative_to(folder).as_posix(), **self.caption}

    def _told(self, size: str) -> str:
        words = ", ".join(str(value) for value in self.caption.values() if value != self.name)
        return f"{self.name}{f' ({words})' if words else ''}: {size}"


@dataclasses.dataclass(frozen=True, kw_only=True)
class ImageSample(MediaSample):
    """A generated image, or a grid of them, written as PNG.

    Attributes:
        image: the pixels.
    """

    image: UInt8[np.ndarray, "H W C"]

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_pixels(self.image, 3)

    @property
    def suffix(self) -> str:
        """PNG."""
        return ".png"

    def preview(self) -> str:
        """Its name, caption and size in one line."""
        height, width, channels = self.image.shape
        return self._told(f"{width} x {height} pixels, {_MODES[channels]}")

    def encoded(self) -> bytes:
        """The image as PNG, alpha included."""
        buffer = io.BytesIO()
        _picture(self.image).save(buffer, "png")
        return buffer.getvalue()


@dataclasses.dataclass(frozen=True, kw_only=True)
class AnimationSample(MediaSample):
    """A generated clip.

    Attributes:
        animation: the frames.
        frames_per_second: how fast it plays.
        format: "webp" and "gif" loop, in any viewer of images; "mp4" (H.264) is smaller, and
            needs PyAV. It has no alpha: frames are laid over white.
    """

    animation: UInt8[np.ndarray, "T H W C"]
    frames_per_second: float = 24.0
    format: Literal["webp", "gif", "mp4"] = "webp"

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_pixels(self.animation, 4)
        if not 0 < self.frames_per_second < math.inf:
            raise ValueError(f"frames_per_second is {self.frames_per_second}, not positive")

    @property
    def suffix(self) -> str:
        """By the format."""
        return f".{self.format}"

    def preview(self) -> str:
        """Its name, caption and size in one line."""
        frames, height, width, channels = self.animation.shape
        seconds = frames / self.frames_per_second
        size = f"{width} x {height} pixels, {_MODES[channels]}"
        return self._told(f"{frames} frames of {size}, {seconds:.1f} s")

    def encoded(self) -> bytes:
        """The clip in its format.

        Raises:
            UserError: the format is mp4, and PyAV is not installed or has no encoder for it.
        """
        if self.format == "mp4":
            return _mp4(self.animation, self.frames_per_second)
        buffer = io.BytesIO()
        shown, durations = _shown(len(self.animation), self.frames_per_second, self.format)
        # WebP has no grey.
        first, *rest = [_picture(self.animation[frame], colour=True) for frame in shown]
        settings: dict[str, Any] = {}
        if self.format == "webp":
            lossless = first.width * first.height <= _LOSSLESS_PIXELS
            settings = {"lossless": True} if lossless else {"quality": 90}
        first.save(
            buffer,
            self.format,
            save_all=True,
            append_images=rest,
            duration=durations,
            loop=0,
            **settings,
        )
        return buffer.getvalue()


def image_grid(
    images: UInt8[np.ndarray, "B H W C"], columns: int | None = None, gap: int = 0
) -> UInt8[np.ndarray, "height width C"]:
    """Images tiled row by row, by default so that the whole is about square.

    Args:
        images: the images.
        columns: how many stand in a row.
        gap: pixels between them.

    Returns:
        The grid. Gaps and the places left over in the last row are white, or transparent where
        the images have an alpha channel.

    Raises:
        ValueError: there are no images, or a number is out of range.
    """
    _check_pixels(images, 4)
    count, height, width, channels = images.shape
    if columns is None:
        columns = math.ceil(math.sqrt(count * (height + gap) / (width + gap)))
        columns = min(columns, count)
    if columns < 1 or gap < 0:
        raise ValueError(f"columns is {columns} and gap {gap}: at least 1 and 0 are wanted")
    rows = math.ceil(count / columns)
    blank = 0 if channels == 4 else 255
    cells = np.full((rows * columns, height + gap, width + gap, channels), blank, np.uint8)
    cells[:count, :height, :width] = images
    cells = cells.reshape(rows, columns, height + gap, width + gap, channels)
    whole = cells.swapaxes(1, 2).reshape(rows * (height + gap), columns * (width + gap), channels)
    return whole[: whole.shape[0] - gap, : whole.shape[1] - gap]


def film_strip(
    clips: UInt8[np.ndarray, "B T H W C"], shown: Bool[np.ndarray, "B T"] | None = None
) -> UInt8[np.ndarray, "height width C"]:
    """Frames of clips from left to right, a row for each clip.

    Small frames are enlarged by a whole factor, so that one can see them.

    Args:
        clips: the clips.
        shown: False leaves the place of a frame blank.

    Raises:
        ValueError: there are no pixels.
    """
    _check_pixels(clips, 5)
    factor = -(-_SMALLEST_IN_STRIP // min(clips.shape[2:4]))
    frames = clips.repeat(factor, 2).repeat(factor, 3)
    if shown is not None:
        blank = np.uint8(0 if clips.shape[-1] == 4 else 255)
        frames = np.where(shown[:, :, None, None, None], frames, blank)
    return image_grid(frames.reshape(-1, *frames.shape[2:]), clips.shape[1], gap=2)


def _check_pixels(pixels: np.ndarray, dimensions: int) -> None:
    if pixels.dtype != np.uint8 or pixels.ndim != dimensions or pixels.shape[-1] not in _MODES:
        raise ValueError(
            f"{pixels.dtype}{list(pixels.shape)} are no pixels: uint8 with "
            f"{dimensions} dimensions is wanted, the last of 1, 3 or 4 channels"
        )
    if 0 in pixels.shape:
        raise ValueError(f"there are no pixels in {list(pixels.shape)}")


def _picture(image: UInt8[np.ndarray, "H W C"], *, colour: bool = False) -> Image.Image:
    """The image for Pillow, which tells grey, colour and alpha by the shape."""
    picture = Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image)
    return picture.convert("RGB") if colour and picture.mode == "L" else picture


def _mp4(frames: UInt8[np.ndarray, "T H W C"], frames_per_second: float) -> bytes:
    """H.264 where the installation can encode it, otherwise MPEG-4 part 2; 4:2:0 either way."""
    try:
        import av
    except ImportError as error:
        raise UserError(
            "writing mp4 needs PyAV: pip install 'genjax[video]', or ask for webp"
        ) from error
    frames = _opaque(frames)
    # Chroma has half the size, so both sides must be even: the last row or column is doubled.
    odd = [(0, size % 2) for size in frames.shape[1:3]]
    frames = np.pad(frames, [(0, 0), *odd, (0, 0)], mode="edge")
    encoder, settings = "libx264", {"crf": "16"}
    if encoder not in av.codecs_available:
        encoder, settings = "mpeg4", {"qscale": "2"}
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as container:
        rate = Fraction(frames_per_second).limit_denominator(1001)
        stream: Any = container.add_stream(encoder, rate=rate, options=settings)
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "yuv420p"
        for pixels in frames:
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return buffer.getvalue()


def _shown(
    count: int, frames_per_second: float, format: Literal["webp", "gif"]
) -> tuple[list[int], list[int]]:
    """The frames that a looping picture shows, and for how many milliseconds each.

    GIF counts hundredths of a second and WebP thousandths; times are rounded so that errors do not
    add up. Browsers show a frame for at least a fiftieth of a second or slow it down to a tenth, so
    of faster clips as many frames are left out as it takes to keep their speed.
    """
    unit = 10 if format == "gif" else 1
    step = max(1, math.ceil(frames_per_second * _SHORTEST_FRAME - 1e-9))
    shown = list(range(0, count, step))
    times = [1000 * frame / frames_per_second / unit for frame in [*shown, len(shown) * step]]
    ends = [round(time) for time in times]
    return shown, [unit * max(1, end - start) for start, end in itertools.pairwise(ends)]


def _opaque(frames: UInt8[np.ndarray, "T H W C"]) -> UInt8[np.ndarray, "T H W 3"]:
    """Grey as colour, and transparent pixels over white."""
    if frames.shape[-1] < 4:
        return np.broadcast_to(frames, (*frames.shape[:-1], 3))
    alpha = frames[..., 3:].astype(np.float32) / 255
    return np.round(frames[..., :3] * alpha + 255 * (1 - alpha)).astype(np.uint8)
