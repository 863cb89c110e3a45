"""One encoded image as pixels of the size and channels that a model wants.

H height, W width, C channels.
"""

import dataclasses
import io
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
from jaxtyping import UInt8
from PIL import Image
from pydantic import Field

from genjax.config import Config
from genjax.data.tfds_builder import first_line

Side = Annotated[int, Field(ge=1, le=16384)]
Byte = Annotated[int, Field(ge=0, le=255)]

_FILTERS = {
    "lanczos": Image.Resampling.LANCZOS,
    "bicubic": Image.Resampling.BICUBIC,
    "bilinear": Image.Resampling.BILINEAR,
    "box": Image.Resampling.BOX,
    "hamming": Image.Resampling.HAMMING,
}
# Named, since Pillow also reads formats that run other programs, whatever a file's ending says.
_FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF")
_MOST_PIXELS = 89_000_000
_ORIENTATION = 0x0112
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


class PixelOptions(Config):
    """How encoded images become pixels, for every source that decodes."""

    crop: Literal["center", "none"] = "center"
    """"center": first cut to the aspect ratio of `size`, around the middle; "none": stretch."""
    resize: Literal["lanczos", "bicubic", "bilinear", "box", "hamming"] = "lanczos"
    """Filter that resizes, antialiased. Figures of image quality compare within one filter only."""
    channels: Literal[1, 3, 4] = 3
    """1 (gray), 3 (colour), or 4 (colour and alpha; the colour of fully transparent pixels, which
    nobody sees, is stored as 0)."""
    background: tuple[Byte, Byte, Byte] = (255, 255, 255)
    """With 1 or 3 channels: the colour behind transparent pixels; red, green, blue, 0 to 255."""
    # Not validated: strict JSON knows no paths, only texts that become paths.
    cache: Path = Field(default=Path("~/.cache/genjax/images"), validate_default=False)
    """Folder where decoded pixels are kept for the next run: H * W * C bytes an image."""


@dataclasses.dataclass(frozen=True)
class Decoding:
    """What `decode_image` makes of an image.

    Attributes:
        size: (H, W), or None to keep each image's own.
        crop: "center" or "none".
        resize: Name of the filter.
        channels: C; 1, 3 or 4.
        background: Red, green and blue behind transparent pixels.
    """

    size: tuple[int, int] | None
    crop: str = "center"
    resize: str = "lanczos"
    channels: int = 3
    background: tuple[int, int, int] = (255, 255, 255)

    @classmethod
    def of(cls, size: int | tuple[int, int] | None, options: PixelOptions) -> "Decoding":
        """The decoding that a source's config asks for."""
        return cls(
            size=(size, size) if isinstance(size, int) else size,
            crop=options.crop,
            resize=options.resize,
            channels=options.channels,
            background=options.background,
        )


class UnreadableImage(Exception):
    """Why an image is left out, in a few words."""


def decode_image(encoded: bytes, decoding: Decoding) -> UInt8[np.ndarray, "H W C"]:
    """Decodes, turns upright (EXIF), crops and resizes one image.

    The first frame of several counts. 16 bits a channel become 8; palettes, CMYK and gray values
    become the channels asked for, gray by ITU-R 601; embedded colour profiles are not applied.
    Resizing weighs colour by alpha, so that no hidden colour bleeds into what is seen.

    Raises:
        UnreadableImage: It is empty, truncated, corrupt, too large or of an unknown kind.
    """
    if not encoded:
        raise UnreadableImage("is empty")
    try:
        with Image.open(io.BytesIO(encoded), formats=_FORMATS) as image:
            if image.width * image.height > _MOST_PIXELS:
                raise UnreadableImage(
                    f"has {image.width} x {image.height} pixels, more than {_MOST_PIXELS:,}"
                )
            image.load()
            return pixels_of(_upright(image), decoding)
    except UnreadableImage:
        raise
    except Image.UnidentifiedImageError:
        raise UnreadableImage("is no image of a known format") from None
    except Exception as error:
        # A damaged file makes a decoder stumble anywhere: ValueError, SyntaxError, struct.error...
        raise UnreadableImage(f"cannot be decoded ({first_line(error)})") from error


def _upright(image: Image.Image) -> Image.Image:
    try:
        turn = _UPRIGHT.get(image.getexif().get(_ORIENTATION, 1))
    except Exception:
        # Broken metadata beside pixels that are whole: they stay as stored.
        return image
    return image if turn is None else image.transpose(turn)


def pixels_of(image: Image.Image, decoding: Decoding) -> UInt8[np.ndarray, "H W C"]:
    """The pixels of an opened image, in the size and with the channels that are wanted.

    Raises:
        UnreadableImage: its values have no known range.
    """
    image = _eight_bits(image)
    if decoding.channels == 4:
        image = _resized(image.convert("RGBA"), decoding)
        pixels = np.array(image)
        pixels[pixels[..., 3] == 0] = 0
        return pixels
    if image.has_transparency_data:
        image = image.convert("RGBA")
        behind = Image.new("RGBA", image.size, (*decoding.background, 255))
        image = Image.alpha_composite(behind, image)
    image = _resized(image.convert("L" if decoding.channels == 1 else "RGB"), decoding)
    return np.array(image).reshape(image.height, image.width, decoding.channels)


def _eight_bits(image: Image.Image) -> Image.Image:
    """Scales what Pillow would cut off at 255."""
    if image.mode == "F":
        raise UnreadableImage("has floating-point pixels, whose range is not known")
    if image.mode != "I" and not image.mode.startswith("I;16"):
        return image
    values = np.asarray(image).astype(np.int64)
    if values.min() < 0 or values.max() > 65535:
        raise UnreadableImage("has 32-bit pixels, whose range is not known")
    return Image.fromarray(((values + 128) // 257).astype(np.uint8))


def _resized(image: Image.Image, decoding: Decoding) -> Image.Image:
    if decoding.size is None:
        return image
    height, width = decoding.size
    across, down = image.size
    if decoding.crop == "center":
        # Whole pixels: half of one would blur an image that needs no resizing.
        across = min(across, max(1, round(image.height * width / height)))
        down = min(down, max(1, round(image.width * height / width)))
    left, top = (image.width - across) // 2, (image.height - down) // 2
    box = (left, top, left + across, top + down)
    if (across, down) == (width, height):
        return image.crop(box)
    return image.resize((width, height), _FILTERS[decoding.resize], box=box)
