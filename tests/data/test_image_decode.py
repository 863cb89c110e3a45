import numpy as np
import pytest
from PIL import Image

from genjax.data.image_decode import Decoding, UnreadableImage, decode_image
from tests.data.picture_files import encode, noise, png_of_claimed_size

pytestmark = pytest.mark.fast


def decode(encoded, size=None, **options):
    return decode_image(encoded, Decoding(size=size, **options))


@pytest.mark.parametrize("form", ["PNG", "BMP", "TIFF", "WEBP", "GIF"])
def test_lossless_formats_keep_their_pixels(form):
    pixels = noise(5, 7) if form != "GIF" else np.repeat(noise(5, 7, 1)[..., None], 3, axis=-1)
    encoded = encode(pixels, form, **({"lossless": True} if form == "WEBP" else {}))
    np.testing.assert_array_equal(decode(encoded), pixels)


def test_jpeg():
    smooth = np.broadcast_to(np.linspace(0, 255, 32), (24, 32)).astype(np.uint8)
    decoded = decode(encode(smooth, "JPEG", quality=95), channels=1)
    assert decoded.shape == (24, 32, 1)
    assert abs(decoded[..., 0].astype(int) - smooth).max() <= 4


def test_first_frame_of_several_counts():
    frames = [Image.fromarray(np.full((4, 4), value, np.uint8)) for value in (10, 200, 90)]
    encoded = encode(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert (decode(encoded, channels=1) == 10).all()


def test_several_views_in_one_jpeg():
    views = [Image.fromarray(np.full((8, 8), value, np.uint8)) for value in (40, 200)]
    encoded = encode(views[0], "MPO", save_all=True, append_images=views[1:])
    assert abs(decode(encoded, channels=1).astype(int) - 40).max() <= 2


# Channels ---------------------------------------------------------------------------------------


def test_gray_by_itu_601():
    pixels = noise(6, 6)
    expected = pixels.astype(float) @ [0.299, 0.587, 0.114]
    decoded = decode(encode(pixels), channels=1)
    assert decoded.shape == (6, 6, 1)
    assert abs(decoded[..., 0] - expected).max() <= 0.51


def test_gray_becomes_colour():
    pixels = noise(3, 5, 1)
    np.testing.assert_array_equal(decode(encode(pixels)), np.repeat(pixels[..., None], 3, -1))
    decoded = decode(encode(pixels), channels=4)
    np.testing.assert_array_equal(decoded[..., 1], pixels)
    assert (decoded[..., 3] == 255).all()


def test_sixteen_bits_are_scaled_not_cut_off():
    values = np.array(
        [[0, 255, 256, 257 * 100, 257 * 100 + 128, 257 * 100 + 129, 65535]], np.uint16
    )
    expected = [[0, 1, 1, 100, 100, 101, 255]]
    for form in ("PNG", "TIFF"):
        np.testing.assert_array_equal(decode(encode(values, form), channels=1)[..., 0], expected)


def test_two_shades():
    pixels = np.array([[True, False], [False, True]])
    decoded = decode(encode(Image.fromarray(pixels)), channels=1)
    np.testing.assert_array_equal(decoded[..., 0], pixels * 255)


def test_cmyk():
    cyan_off = Image.new("CMYK", (8, 8), (0, 255, 255, 0))
    decoded = decode(encode(cyan_off, "JPEG", quality=95))
    assert abs(decoded.astype(int) - [255, 0, 0]).max() <= 6


def test_palette_with_transparency():
    image = Image.new("P", (2, 1))
    image.putpalette([10, 20, 30, 40, 50, 60])
    image.putpixel((1, 0), 1)
    encoded = encode(image, transparency=1)
    assert decode(encoded, background=(1, 2, 3)).tolist() == [[[10, 20, 30], [1, 2, 3]]]
    assert decode(encoded, channels=4).tolist() == [[[10, 20, 30, 255], [0, 0, 0, 0]]]


def test_alpha_is_composited_over_the_background():
    pixels = noise(6, 6, 4)
    alpha = pixels[..., 3:] / 255
    expected = alpha * pixels[..., :3] + (1 - alpha) * [255, 255, 255]
    assert abs(decode(encode(pixels)) - expected).max() <= 1
    gray_alpha = noise(6, 6, 2)
    alpha = gray_alpha[..., 1] / 255
    expected = alpha * gray_alpha[..., 0] + (1 - alpha) * 40
    decoded = decode(encode(Image.fromarray(gray_alpha)), channels=1, background=(40, 40, 40))
    assert abs(decoded[..., 0] - expected).max() <= 1


def test_alpha_is_kept_and_hidden_colour_is_not():
    pixels = noise(6, 6, 4)
    pixels[..., 3] |= 1
    pixels[0, :, 3] = 0
    decoded = decode(encode(pixels), channels=4)
    np.testing.assert_array_equal(decoded[1:], pixels[1:])
    assert (decoded[0] == 0).all()


def test_hidden_colour_does_not_bleed_when_resized():
    pixels = np.array([[[255, 0, 0, 255], [0, 255, 0, 0]]], np.uint8)
    decoded = decode(encode(pixels), size=(1, 1), crop="none", resize="box", channels=4)
    assert decoded[0, 0].tolist() == [255, 0, 0, 128]


# Geometry ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("orientation", "stored"),
    [
        (1, lambda upright: upright),
        (2, lambda upright: upright[:, ::-1]),
        (3, lambda upright: upright[::-1, ::-1]),
        (4, lambda upright: upright[::-1]),
        (5, lambda upright: upright.swapaxes(0, 1)),
        (6, lambda upright: np.rot90(upright)),
        (7, lambda upright: upright[::-1, ::-1].swapaxes(0, 1)),
        (8, lambda upright: np.rot90(upright, -1)),
    ],
)
def test_exif_orientation(orientation, stored):
    upright = noise(3, 5)
    exif = Image.Exif()
    exif[0x0112] = orientation
    for form in ("PNG", "TIFF"):
        encoded = encode(np.ascontiguousarray(stored(upright)), form, exif=exif)
        np.testing.assert_array_equal(decode(encoded), upright, err_msg=form)


def test_broken_exif_leaves_the_pixels():
    pixels = noise(3, 5)
    encoded = encode(pixels, exif=b"Exif\0\0II*\0\xff\xff\xff\xff broken")
    np.testing.assert_array_equal(decode(encoded), pixels)


def test_centre_crop_of_the_right_size_copies_pixels():
    pixels = noise(8, 13)
    np.testing.assert_array_equal(decode(encode(pixels), size=(8, 8)), pixels[:, 2:10])
    np.testing.assert_array_equal(decode(encode(pixels), size=(8, 13)), pixels)


def box_mean(pixels, rows, columns):
    height, width, channels = pixels.shape
    blocks = pixels.reshape(height // rows, rows, width // columns, columns, channels)
    return blocks.astype(float).mean((1, 3))


def test_crop_then_resize_by_the_box_filter_is_a_mean():
    pixels = noise(8, 16)
    decoded = decode(encode(pixels), size=(4, 4), resize="box")
    assert abs(decoded - box_mean(pixels[:, 4:12], 2, 2)).max() <= 1
    # Twice as wide as high is asked of a high image.
    decoded = decode(encode(pixels.swapaxes(0, 1).copy()), size=(2, 4), resize="box")
    middle = pixels.swapaxes(0, 1)[6:10]
    assert abs(decoded - box_mean(middle, 2, 2)).max() <= 1


def test_stretching_keeps_everything():
    pixels = noise(8, 16)
    decoded = decode(encode(pixels), size=(4, 4), crop="none", resize="box")
    assert abs(decoded - box_mean(pixels, 2, 4)).max() <= 1


@pytest.mark.parametrize("resize", ["lanczos", "bicubic", "bilinear", "box", "hamming"])
def test_every_filter_is_antialiased(resize):
    stripes = np.zeros((64, 64), np.uint8)
    stripes[:, ::2] = 255
    decoded = decode(encode(stripes), size=(8, 8), resize=resize, channels=1)
    # Every second column, picked without a filter, would be all 0 or all 255.
    assert abs(decoded[:, 1:-1].astype(int) - 127.5).max() <= 8


def test_filters_differ():
    encoded = encode(noise(16, 16))
    names = ["lanczos", "bicubic", "bilinear", "box", "hamming"]
    results = {decode(encoded, size=(8, 8), resize=name).tobytes() for name in names}
    assert len(results) == len(names)


def test_an_image_smaller_than_asked_for_is_enlarged():
    assert decode(encode(noise(1, 1)), size=(4, 6)).shape == (4, 6, 3)
    assert decode(encode(noise(1, 900)), size=(64, 64)).shape == (64, 64, 3)


# What cannot be read ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("encoded", "reason"),
    [
        (b"", "is empty"),
        (b"<html>not found</html>", "is no image of a known format"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "is no image of a known format"),
        (encode(noise(40, 40))[:900], "truncated"),
        (encode(noise(40, 40), "JPEG")[:900], "truncated"),
        (encode(noise(40, 40), "WEBP")[:300], "cannot be decoded|no image"),
        (encode(noise(9, 9))[:20], "cannot be decoded|no image"),
        (png_of_claimed_size(40, 40), "cannot be decoded"),
        (png_of_claimed_size(10_000, 10_000), r"has 10000 x 10000 pixels|100000000 pixels"),
        (png_of_claimed_size(50_000, 50_000), "2500000000 pixels"),
        (encode(np.ones((3, 3), np.float32), "TIFF"), "floating-point"),
        (encode(np.full((3, 3), 70_000, np.int32), "TIFF"), "32-bit"),
    ],
)
def test_unreadable(encoded, reason):
    with pytest.raises(UnreadableImage, match=reason):
        decode(encoded, size=(8, 8))
