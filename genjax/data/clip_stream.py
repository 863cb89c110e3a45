"""Many clips decoded by threads and handed on one after the other, frame by frame.

Threads decode the next clips while one is used, up to a bounded amount: clips of any length fit.
"""

import dataclasses
import os
import queue
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
from jaxtyping import Float32, Int

from genjax.data.clip_decode import TimedFrame, UnreadableClip, retimed
from genjax.data.scene_cuts import frame_changes, thumbnail

_WORKERS = min(8, os.cpu_count() or 1)
# What one clip may be ahead: blocks of frames.
_BLOCK_BYTES = 2**22
_BLOCKS_AHEAD = 8


class StoredClip(NamedTuple):
    """A clip before it is decoded.

    Attributes:
        frames: Begins to decode it; raises `UnreadableClip` where no more frames can be had.
        digest: sha256 of its stored content.
        label: Its class if that is stored with it, else -1.
    """

    frames: Callable[[], Iterator[TimedFrame]]
    digest: Callable[[], bytes]
    label: int = -1


@dataclasses.dataclass(frozen=True)
class StoredClips:
    """Clips to decode.

    Attributes:
        what: What to call them in messages, such as "clips of holiday".
        names: N names, which messages and the content hash use.
        stamp: Changes whenever any of the clips does; the key of the cache.
        read: A clip by number; raises `UnreadableClip`.
    """

    what: str
    names: Sequence[str]
    stamp: object
    read: Callable[[int], StoredClip]


@dataclasses.dataclass
class Summary:
    """What is known of a clip when all its frames have come.

    Attributes:
        origins: [T], which of the clip's own frames, from 0 on, each frame is.
        seconds: How long it plays.
        changes: [K], how much each of the clip's own frames changes (scene_cuts.py).
        digest: sha256 of its stored content.
        label: Its class if that is stored with it, else -1.
        reason: Why there are no more frames, if they broke off.
    """

    origins: Int[np.ndarray, " T"]
    seconds: float
    changes: Float32[np.ndarray, " K"]
    digest: bytes
    label: int
    reason: str | None


Block = list[np.ndarray] | Summary


def in_order(clips: StoredClips, rate: float | None) -> Generator[Iterator[Block], None, None]:
    """The blocks of each clip in turn, while threads decode the next clips ahead."""
    stopped = threading.Event()

    def work(number: int, out: queue.Queue[Block | BaseException]) -> None:
        def put(item: Block | BaseException) -> None:
            while not stopped.is_set():
                try:
                    return out.put(item, timeout=0.1)
                except queue.Full:
                    continue
            raise _Stopped

        try:
            _decode_one(clips, number, rate, put)
        except _Stopped:
            return
        except BaseException as error:
            put(error)

    def blocks(out: queue.Queue[Block | BaseException]) -> Iterator[Block]:
        while True:
            item = out.get()
            if isinstance(item, BaseException):
                raise item
            yield item

    waiting: deque[queue.Queue[Block | BaseException]] = deque()
    with ThreadPoolExecutor(_WORKERS) as pool:
        try:
            for number in range(len(clips.names)):
                waiting.append(queue.Queue(_BLOCKS_AHEAD))
                pool.submit(work, number, waiting[-1])
                if len(waiting) > 2 * _WORKERS:
                    yield blocks(waiting.popleft())
            while waiting:
                yield blocks(waiting.popleft())
        finally:
            stopped.set()
            pool.shutdown(cancel_futures=True)


class _Stopped(Exception):
    """Nobody waits for the frames any more."""


def _decode_one(
    clips: StoredClips, number: int, rate: float | None, put: Callable[[Block], None]
) -> None:
    """Hands on the frames of a clip in blocks, and then the summary."""
    block: list[np.ndarray] = []
    thumbnails: list[np.ndarray] = []
    origins: list[int] = []
    seconds, reason, digest, label = 0.0, None, b"", -1

    def watched(frames: Iterator[TimedFrame]) -> Iterator[TimedFrame]:
        for frame in frames:
            thumbnails.append(thumbnail(frame.pixels))
            yield frame

    try:
        clip = clips.read(number)
        label, digest = clip.label, clip.digest()
        for shown in retimed(watched(clip.frames()), rate):
            block.append(shown.pixels)
            origins.append(shown.number)
            seconds += shown.duration
            if len(block) * shown.pixels.nbytes >= _BLOCK_BYTES:
                put(block)
                block = []
    except UnreadableClip as error:
        reason = str(error)
    if block:
        put(block)
    changes = frame_changes(np.stack(thumbnails)) if thumbnails else np.zeros(0, np.float32)
    put(Summary(np.array(origins, np.int64), seconds, changes, digest, label, reason))
