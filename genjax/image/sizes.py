"""The sizes of an image that networks go through by doubling."""

from collections.abc import Sequence


def resolutions(image_shape: Sequence[int]) -> list[tuple[int, int]]:
    """Heights and widths from the smallest, whose shorter side is 4 to 7, to the image's own.

    Raises:
        ValueError: the size is not that of a small image doubled at least once.
    """
    height, width = image_shape[:2]
    doublings = max((min(height, width) // 4).bit_length() - 1, 0)
    if doublings < 1 or height % 2**doublings or width % 2**doublings:
        raise ValueError(
            f"{height}x{width} is no size that doubling makes: sides should be a small number "
            "times a power of two, and 8 at least, such as 64x64 or 96x64"
        )
    return [(height >> n, width >> n) for n in range(doublings, -1, -1)]
