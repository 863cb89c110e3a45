"""The user's own clips: a folder of video files, animated pictures and folders of frames."""

import hashlib
from pathlib import Path
from typing import Literal

import numpy as np

from genjax.data.clip_decode import UnreadableClip, decode_clip
from genjax.data.clip_listing import classes_of, list_clips
from genjax.data.clip_shards import decode_clips
from genjax.data.clip_source import ClipSource
from genjax.data.clip_stream import StoredClip, StoredClips
from genjax.data.clip_windows import ClipOptions, ClipSet, decoding_of, windowed_source


class ClipFiles(ClipOptions):
    """Clips of a folder, read recursively: videos, animated pictures, folders of frames.

    Videos are mp4, m4v, mov, webm, mkv and avi; animated pictures gif and webp. Frames are png or
    jpg whose names end in a number.
    """

    kind: Literal["files"] = "files"
    path: Path
    """A folder of clips, a single clip, or a folder of numbered frames."""
    labels: Literal["auto", "folders", "none"] = "auto"
    """"folders": each first-level sub-folder is a class; "none": no labels; "auto": folders where
    two or more hold clips."""


def open_clip_files(config: ClipFiles, frames: int) -> ClipSource:
    """Opens a folder of clips; the first time, all are decoded into the cache.

    Args:
        config: The folder, and what is made of its clips.
        frames: T, how many frames a window has.

    Raises:
        UserError: Something named in the config is missing, empty or unreadable, the labels
            contradict themselves, or the clips are too short.
    """
    key = "data.source.path"
    listing = list_clips(config.path, key)
    names = [clip.name for clip in listing.clips]
    classes, numbers = classes_of(names, config.labels, config.path, key) or ((), None)
    decoding = decoding_of(config)

    def read(number: int) -> StoredClip:
        clip = listing.clips[number]
        return StoredClip(
            frames=lambda: decode_clip(clip, decoding, config.frames_per_second),
            digest=lambda: _digest(clip.paths),
        )

    stored = StoredClips(f"clips of {config.path}", names, listing.stamp, read)
    decoded = decode_clips(stored, decoding, config.frames_per_second, config.cache)
    clips = ClipSet(
        what=stored.what,
        decoded=decoded,
        names=[names[number] for number in decoded.kept],
        labels=None if numbers is None else np.array(numbers, np.int64)[decoded.kept],
    )
    return windowed_source(str(config.path), clips, None, frames, config, classes)


def _digest(paths: tuple[Path, ...]) -> bytes:
    digest = hashlib.sha256()
    try:
        for path in paths:
            with path.open("rb") as file:
                digest.update(hashlib.file_digest(file, "sha256").digest())
    except OSError as error:
        raise UnreadableClip(f"cannot be read ({error.strerror})") from error
    return digest.digest()
