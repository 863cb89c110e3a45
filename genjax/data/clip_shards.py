"""Many clips decoded once, and read from memory maps ever after.

A folder in the cache, named after a hash of what it was made from, holds a set: the frames of all
clips one after the other in 00000.npy, 00001.npy, ... of at most 256 MiB each; what scene cuts are
found by, in changes.npy and origins.npy; and record.json with where each clip begins and what was
left out and why. The folder has another name until it is whole. Processes that decode the same set
at the same time do so independently, and the first one's folder, equal to the others', stays.

N clips asked for, n of them readable, M frames in all,
made of K; H height, W width, C channels.
"""

import contextlib
import dataclasses
import json
import logging
import os
import shutil
import uuid
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float32, Int, UInt8

from genjax.data.clip_decode import average_rate
from genjax.data.clip_stream import StoredClips, Summary, in_order
from genjax.data.image_decode import Decoding
from genjax.data.scene_cuts import find_cuts
from genjax.data.text_documents import Skipped, fingerprint
from genjax.errors import UserError

_log = logging.getLogger(__name__)
_NAMED = 5
# Part of every key: raise it when the same file would become other frames.
_VERSION = 1
_SHARD_BYTES = 2**28
_ABANDONED_SECONDS = 3600


@dataclasses.dataclass(frozen=True, eq=False)
class DecodedClips:
    """The clips that could be decoded, frame after frame.

    Attributes:
        shards: The frames, each [m, H, W, C], all but the last equally long; memory maps.
        starts: [n + 1], the first frame of each clip, and M.
        rates: [n], frames per second of each.
        kept: [n], the number of each among the clips asked for, ascending.
        labels: [n], the labels that were read with them; -1 where there was none.
        origins: [M], which of its clip's own frames each is; some may be left out, or repeated.
        changes: For each clip how much its own frames change (scene_cuts.py), all in one row.
        change_starts: [n + 1], where each clip begins in it, and its length.
        skipped: Why a clip was left out, by number.
        digest: sha256 in hex of the names, stored content and labels of those kept.
    """

    shards: tuple[UInt8[np.ndarray, "_ H W C"], ...]
    starts: Int[np.ndarray, " n_1"]
    rates: Sequence[float]
    kept: Int[np.ndarray, " n"]
    labels: Int[np.ndarray, " n"]
    origins: Int[np.ndarray, " M"]
    changes: Float32[np.ndarray, " K"]
    change_starts: Int[np.ndarray, " n_1"]
    skipped: dict[int, str]
    digest: str

    @property
    def frame_shape(self) -> tuple[int, int, int]:
        """(H, W, C)."""
        height, width, channels = self.shards[0].shape[1:]
        return height, width, channels

    def cuts(self, clip: int, threshold: float) -> Int[np.ndarray, " m"]:
        """The frames of a clip, counted from its own first one, that begin another shot."""
        first, end = self.change_starts[clip : clip + 2]
        cuts = find_cuts(self.changes[first:end], threshold)
        origins = self.origins[self.starts[clip] : self.starts[clip + 1]]
        begin = np.unique(np.searchsorted(origins, cuts))
        return begin[(begin > 0) & (begin < len(origins))]

    def frames(self, numbers: Int[np.ndarray, "*n"]) -> UInt8[np.ndarray, "*n H W C"]:
        """The frames of any numbers below M."""
        flat = numbers.reshape(-1)
        result = np.empty((len(flat), *self.frame_shape), np.uint8)
        shard, row = np.divmod(flat, len(self.shards[0]))
        for each in np.unique(shard):
            here = shard == each
            result[here] = self.shards[each][row[here]]
        return result.reshape(*numbers.shape, *self.frame_shape)


def decode_clips(
    clips: StoredClips, decoding: Decoding, rate: float | None, cache: Path
) -> DecodedClips:
    """Decodes all clips, or reads what an earlier call made of the same ones.

    What is skipped, and what is kept only in part, is reported each time.

    Args:
        clips: The clips.
        decoding: Size and channels of frames.
        rate: Frames per second to resample to; None for the clips' own frames.
        cache: Folder of the cache.

    Raises:
        UserError: No clip is readable, the cache cannot hold them, or they have different sizes
            and `decoding` names none.
    """
    folder = cache.expanduser()
    key = fingerprint(_VERSION, clips.stamp, dataclasses.asdict(decoding), rate)
    decoded = _load(folder / key)
    if decoded is None:
        try:
            _decode_to_disk(clips, rate, folder, key)
        except OSError as error:
            raise UserError(
                f"data.source.cache = {folder} cannot hold the decoded {clips.what}: "
                f"{error.strerror or error}.\nSet data.source.cache to a folder with room, or use "
                "a smaller size or fewer frames_per_second."
            ) from error
        decoded = _load(folder / key)
        assert decoded is not None
    record, result = decoded
    _report(clips, result.skipped, {int(n): reason for n, reason in record["cut"].items()})
    return result


def _report(clips: StoredClips, skipped: dict[int, str], cut: dict[int, str]) -> None:
    reasons = [f"{clips.names[number]} {reason}" for number, reason in skipped.items()]
    Skipped(clips.what, reasons).report(len(clips.names))
    if cut:
        named = [f"{clips.names[number]} {reason}" for number, reason in cut.items()]
        more = f"; and {len(named) - _NAMED} more" if len(named) > _NAMED else ""
        _log.warning(
            "kept only the beginning of %d of %d %s: %s%s",
            *(len(named), len(clips.names), clips.what, "; ".join(named[:_NAMED]), more),
        )


def _load(folder: Path) -> tuple[dict[str, Any], DecodedClips] | None:
    """What was decoded before; None if there is nothing, or nothing whole."""
    try:
        record = json.loads((folder / "record.json").read_bytes())
        shards = tuple(
            np.load(folder / f"{number:05}.npy", mmap_mode="r")
            for number in range(record["shards"])
        )
        origins, changes = np.load(folder / "origins.npy"), np.load(folder / "changes.npy")
        if not sum(len(shard) for shard in shards) == len(origins) == record["starts"][-1]:
            return None
        if len(changes) != record["change_starts"][-1]:
            return None
    except (OSError, ValueError, EOFError, KeyError, TypeError):
        return None
    return record, DecodedClips(
        shards=shards,
        starts=np.array(record["starts"], np.int64),
        rates=record["rates"],
        kept=np.array(record["kept"], np.int64),
        labels=np.array(record["labels"], np.int64),
        origins=origins,
        changes=changes,
        change_starts=np.array(record["change_starts"], np.int64),
        skipped={int(number): reason for number, reason in record["skipped"].items()},
        digest=record["digest"],
    )


def _decode_to_disk(clips: StoredClips, rate: float | None, folder: Path, key: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    partial = folder / f"{key}.{uuid.uuid4().hex}.partial"
    partial.mkdir()
    try:
        _remove_abandoned(folder, partial)
        record, arrays = _decode(clips, rate, partial)
        for name, array in arrays.items():
            with (partial / f"{name}.npy").open("xb") as file:
                np.save(file, array)
                _sync(file)
        with (partial / "record.json").open("xb") as file:
            file.write(json.dumps(record).encode("ascii"))
            _sync(file)
        if _load(folder / key) is None:
            shutil.rmtree(folder / key, ignore_errors=True)
            try:
                partial.rename(folder / key)
            except OSError:
                # Another process was faster.
                if _load(folder / key) is None:
                    raise
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _remove_abandoned(folder: Path, youngest: Path) -> None:
    """Removes what killed runs left: nobody has written to it for an hour."""
    now = youngest.stat().st_mtime
    for partial in folder.glob("*.partial"):
        try:
            newest = max(path.stat().st_mtime for path in [partial, *partial.iterdir()])
        except (FileNotFoundError, NotADirectoryError):
            continue
        if now - newest > _ABANDONED_SECONDS:
            shutil.rmtree(partial, ignore_errors=True)


def _sync(file: Any) -> None:
    file.flush()
    os.fsync(file.fileno())


class _Shards:
    """Writes frames of one shape into numbered files of bounded size."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._file: Any = None
        self._shape: tuple[int, ...] = ()
        self._rows = 0
        self._most = 0
        self.count = 0

    def write(self, frames: Sequence[np.ndarray]) -> None:
        for frame in frames:
            if self._file is None:
                self._shape = frame.shape
                self._most = max(1, _SHARD_BYTES // max(frame.nbytes, 1))
                self._file = (self._folder / f"{self.count:05}.npy").open("xb")
                self._header()
                self.count += 1
            self._file.write(np.ascontiguousarray(frame).data)
            self._rows += 1
            if self._rows == self._most:
                self.close()

    def close(self) -> None:
        if self._file is not None:
            self._file.seek(0)
            self._header()
            _sync(self._file)
            self._file.close()
            self._file, self._rows = None, 0

    def _header(self) -> None:
        # NumPy leaves room in it for the first axis to grow.
        header = {"descr": "|u1", "fortran_order": False, "shape": (self._rows, *self._shape)}
        np.lib.format.write_array_header_1_0(self._file, header)


def _decode(
    clips: StoredClips, rate: float | None, folder: Path
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Writes the frames of one clip after the other; returns what the other files hold."""
    record: dict[str, Any] = {"starts": [0], "change_starts": [0]}
    record |= {"rates": [], "kept": [], "labels": []}
    skipped: dict[int, str] = {}
    cut: dict[int, str] = {}
    origins: list[np.ndarray] = []
    changes: list[np.ndarray] = []
    digest = fingerprint()
    first: tuple[str, tuple[int, ...]] | None = None
    # One filter around all threads: catch_warnings is not safe inside them.
    with (
        warnings.catch_warnings(),
        contextlib.closing(_Shards(folder)) as shards,
        contextlib.closing(in_order(clips, rate)) as each,
    ):
        warnings.simplefilter("ignore")
        for number, blocks in enumerate(each):
            name, summary = clips.names[number], None
            for block in blocks:
                if isinstance(block, Summary):
                    summary = block
                    break
                first = first or (name, block[0].shape)
                if block[0].shape != first[1]:
                    raise UserError(
                        f"The {clips.what} have different sizes: {first[0]} is "
                        f"{_sides(first[1])}, {name} is {_sides(block[0].shape)}.\n"
                        "Set data.source.size, such as 64."
                    )
                shards.write(block)
            assert summary is not None
            frames = len(summary.origins)
            if not frames:
                skipped[number] = summary.reason or "has no frames"
                continue
            if summary.reason is not None:
                cut[number] = f"({frames} frames): {summary.reason}"
            record["starts"].append(record["starts"][-1] + frames)
            record["change_starts"].append(record["change_starts"][-1] + len(summary.changes))
            record["rates"].append(average_rate(frames, summary.seconds, rate))
            record["kept"].append(number)
            record["labels"].append(summary.label)
            origins.append(summary.origins)
            changes.append(summary.changes)
            digest = fingerprint(digest, name, summary.digest, summary.label, frames)
    if first is None:
        number, reason = next(iter(skipped.items()))
        raise UserError(
            f"None of the {len(clips.names)} {clips.what} can be read; the first: "
            f"{clips.names[number]} {reason}.\nConvert them to H.264 mp4 or to numbered png, such "
            "as with: ffmpeg -i CLIP -c:v libx264 OTHER.mp4"
        )
    record |= {"shards": shards.count, "skipped": skipped, "cut": cut, "digest": digest}
    return record, {"origins": np.concatenate(origins), "changes": np.concatenate(changes)}


def _sides(shape: tuple[int, ...]) -> str:
    return f"{shape[0]} x {shape[1]} (height x width)"
