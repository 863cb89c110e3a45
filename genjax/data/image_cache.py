"""Many encoded images decoded once, and read from a memory map ever after.

Two files in the cache folder hold a set, both named after a hash of what they were made from: the
pixels as .npy, and a .json with what was left out and why. Each is written under another name and
renamed when it is whole, the .json last, so that a run that dies leaves nothing half done that a
later run would read. Processes that decode the same set at the same time do so independently, and
the last one's files, equal to the others', stay.

N images asked for, n of them readable; H height, W width, C channels.
"""

import dataclasses
import errno
import hashlib
import json
import logging
import os
import shutil
import uuid
import warnings
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
from jaxtyping import Int, UInt8

from genjax.data.image_decode import Decoding, UnreadableImage, decode_image
from genjax.data.text_documents import Skipped, fingerprint
from genjax.errors import UserError

_log = logging.getLogger(__name__)
# Part of every key: raise it when the same file would become other pixels.
_VERSION = 1
_HEADER_BYTES = 128
_MOST_IN_MEMORY = 2**30
_ABANDONED_SECONDS = 3600
_WORKERS = min(8, os.cpu_count() or 1)


class Encoded(NamedTuple):
    """An image as it is stored, and its label if it is stored with it, else -1."""

    data: bytes
    label: int = -1


@dataclasses.dataclass(frozen=True)
class EncodedImages:
    """Images to decode.

    Attributes:
        what: What to call them in messages, such as "images of photos.zip".
        names: N names, which messages and the content hash use.
        stamp: Changes whenever any of the images does; the key of the cache.
        read: An encoded image by number; raises `UnreadableImage`.
    """

    what: str
    names: Sequence[str]
    stamp: object
    read: Callable[[int], Encoded]


@dataclasses.dataclass(frozen=True, eq=False)
class DecodedImages:
    """The images that could be decoded.

    Attributes:
        pixels: [n, H, W, C], usually a memory map.
        kept: [n], the number of each among the images asked for, ascending.
        labels: [n], the labels that were read with them; -1 where there was none.
        skipped: Why an image was left out, by number.
        digest: sha256 in hex of the names, encoded content and labels of those kept.
    """

    pixels: UInt8[np.ndarray, "n H W C"]
    kept: Int[np.ndarray, " n"]
    labels: Int[np.ndarray, " n"]
    skipped: dict[int, str]
    digest: str


def decode_all(images: EncodedImages, decoding: Decoding, cache: Path) -> DecodedImages:
    """Decodes all images, or reads what an earlier call made of the same ones.

    What is skipped is reported each time. Where the cache cannot be written, up to 1 GiB is held
    in memory instead, with a warning.

    Raises:
        UserError: No image is readable, the cache cannot hold them and memory should not, or they
            have different sizes and `decoding` names none.
    """
    folder = cache.expanduser()
    options = dataclasses.asdict(decoding)
    key = fingerprint(_VERSION, images.stamp, options)
    record, pixels = _load(folder, key) or (None, None)
    if record is None or pixels is None:
        try:
            record = _decode_to_disk(images, decoding, folder, key)
            pixels = np.load(folder / f"{key}.npy", mmap_mode="r")
        except OSError as error:
            record, pixels = _decode_to_memory(images, decoding, folder, error)
    skipped = {int(number): reason for number, reason in record["skipped"].items()}
    report = Skipped(images.what)
    report.reasons += [f"{images.names[number]} {reason}" for number, reason in skipped.items()]
    report.report(len(images.names))
    kept = np.array([n for n in range(len(images.names)) if n not in skipped], np.int64)
    labels = record["labels"]
    return DecodedImages(
        pixels=pixels,
        kept=kept,
        labels=np.full(len(kept), -1) if labels is None else np.array(labels, np.int64),
        skipped=skipped,
        digest=record["digest"],
    )


def _load(folder: Path, key: str) -> tuple[dict[str, Any], np.ndarray] | None:
    """What was decoded before; None if there is nothing, or nothing whole."""
    try:
        record = json.loads((folder / f"{key}.json").read_bytes())
        pixels = np.load(folder / f"{key}.npy", mmap_mode="r")
        return (record, pixels) if record["shape"] == list(pixels.shape) else None
    except (OSError, ValueError, EOFError, KeyError, TypeError):
        return None


def _decode_to_disk(
    images: EncodedImages, decoding: Decoding, folder: Path, key: str
) -> dict[str, Any]:
    folder.mkdir(parents=True, exist_ok=True)
    needed = _bytes_needed(images, decoding)
    if needed > shutil.disk_usage(folder).free:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def write(file: BinaryIO) -> dict[str, Any]:
        file.write(b"\0" * _HEADER_BYTES)
        record = _decode(images, decoding, file.write)
        file.seek(0)
        file.write(_npy_header(tuple(record["shape"])))
        return record

    record = _write_whole(folder / f"{key}.npy", write)
    text = json.dumps(record).encode("ascii")
    _write_whole(folder / f"{key}.json", lambda file: file.write(text))
    return record


def _write_whole(path: Path, write: Callable[[BinaryIO], Any]) -> Any:
    """Calls `write` on a new file, which has its name only once it is complete on the disk."""
    partial = path.with_name(f"{path.name}.{uuid.uuid4().hex}.partial")
    try:
        with partial.open("xb") as file:
            _remove_abandoned(path.parent, partial)
            result = write(file)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    return result


def _remove_abandoned(folder: Path, newest: Path) -> None:
    """Removes what killed runs left: nobody has written to it for an hour."""
    now = newest.stat().st_mtime
    for partial in folder.glob("*.partial"):
        try:
            if now - partial.stat().st_mtime > _ABANDONED_SECONDS:
                partial.unlink(missing_ok=True)
        except FileNotFoundError:
            continue


def _npy_header(shape: tuple[int, ...]) -> bytes:
    """Header of an .npy file of bytes, of a length that does not depend on the shape."""
    text = f"{{'descr': '|u1', 'fortran_order': False, 'shape': {shape}, }}".encode("ascii")
    begin = b"\x93NUMPY\x01\x00" + (_HEADER_BYTES - 10).to_bytes(2, "little")
    return begin + text.ljust(_HEADER_BYTES - 11) + b"\n"


def _decode_to_memory(
    images: EncodedImages, decoding: Decoding, folder: Path, error: OSError
) -> tuple[dict[str, Any], np.ndarray]:
    reason = error.strerror or type(error).__name__
    content = bytearray()

    def write(data: memoryview) -> None:
        if len(content) + data.nbytes > _MOST_IN_MEMORY:
            raise MemoryError
        content.extend(data.cast("B"))

    try:
        if _bytes_needed(images, decoding) > _MOST_IN_MEMORY:
            raise MemoryError
        record = _decode(images, decoding, write)
    except MemoryError:
        needed = _bytes_needed(images, decoding) / 2**30
        raise UserError(
            f"data.source.cache = {folder} cannot hold the decoded {images.what}"
            + (f", {needed:.1f} GiB" if needed else "")
            + f": {reason}.\nSet data.source.cache to a folder with room, or use a smaller size."
        ) from error
    _log.warning(
        "data.source.cache = %s cannot be written (%s): the decoded %s are held in memory, "
        "and decoded again next time",
        *(folder, reason, images.what),
    )
    pixels = np.frombuffer(content, np.uint8).reshape(record["shape"])
    return record, pixels


def _bytes_needed(images: EncodedImages, decoding: Decoding) -> int:
    """Bytes of all images, or 0 where their size is not known."""
    height, width = decoding.size or (0, 0)
    return len(images.names) * height * width * decoding.channels


def _decode(
    images: EncodedImages, decoding: Decoding, write: Callable[[memoryview], Any]
) -> dict[str, Any]:
    """Writes the pixels of one image after the other; returns what the .json holds."""

    def work(number: int) -> tuple[bytes, np.ndarray, int] | str:
        try:
            encoded = images.read(number)
            pixels = decode_image(encoded.data, decoding)
            return hashlib.sha256(encoded.data).digest(), pixels, encoded.label
        except UnreadableImage as error:
            return str(error)

    skipped: dict[int, str] = {}
    labels: list[int] = []
    first: tuple[str, tuple[int, ...]] | None = None
    digest = hashlib.sha256()
    # One filter around all threads: catch_warnings is not safe inside them.
    with warnings.catch_warnings(), ThreadPoolExecutor(_WORKERS) as pool:
        warnings.simplefilter("ignore")
        for number, done in enumerate(_in_order(pool, work, len(images.names))):
            name = images.names[number]
            if isinstance(done, str):
                skipped[number] = done
                continue
            content, pixels, label = done
            first = first or (name, pixels.shape)
            if pixels.shape != first[1]:
                raise UserError(
                    f"The {images.what} have different sizes: {first[0]} is {_sides(first[1])}, "
                    f"{name} is {_sides(pixels.shape)}.\nSet data.source.size, such as 64."
                )
            write(np.ascontiguousarray(pixels).data)
            digest.update(repr((name, content, label)).encode("utf-8"))
            labels.append(label)
    if first is None:
        raise UserError(_nothing_readable(images, skipped))
    return {
        "shape": [len(labels), *first[1]],
        "digest": digest.hexdigest(),
        "labels": labels if max(labels) >= 0 else None,
        "skipped": skipped,
    }


def _in_order(pool: ThreadPoolExecutor, work: Callable[[int], Any], count: int) -> Iterator[Any]:
    """Results of `work` for 0 to count - 1; only a few are held at a time."""
    waiting: deque[Future[Any]] = deque()
    for number in range(count):
        waiting.append(pool.submit(work, number))
        if len(waiting) > 4 * _WORKERS:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()


def _sides(shape: tuple[int, ...]) -> str:
    return f"{shape[0]} x {shape[1]} (height x width)"


def _nothing_readable(images: EncodedImages, skipped: dict[int, str]) -> str:
    number, reason = next(iter(skipped.items()))
    return (
        f"None of the {len(images.names)} {images.what} can be read; the first: "
        f"{images.names[number]} {reason}.\nExport them again as PNG or JPEG."
    )
