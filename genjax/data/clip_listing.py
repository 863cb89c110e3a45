"""Which clips a folder holds, by name, without decoding any."""

import os
import re
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from genjax.errors import UserError

VIDEO_EXTENSIONS = (".mp4", ".m4v", ".mov", ".webm", ".mkv", ".avi")
"""Containers that PyAV opens."""
ANIMATION_EXTENSIONS = (".gif", ".webp")
"""Animated pictures, which Pillow opens."""
FRAME_EXTENSIONS = (".png", ".jpg", ".jpeg")
"""Pictures that are frames of a clip where several lie side by side, numbered at their end."""

_NUMBER = re.compile(r"\d+$")
_SPLIT_NAMES = {"train", "training", "val", "valid", "validation", "test"}


@dataclass(frozen=True)
class ClipFile:
    """A clip as it lies on the disk.

    Attributes:
        name: Its path from the folder that was listed, with "/" between the parts. Frames have
            the name of their folder, or, where several sequences share one, "folder/begin*.png".
        paths: One file, or the frames in the order of their numbers.
        is_frames: Whether they are frames.
    """

    name: str
    paths: tuple[Path, ...]
    is_frames: bool = False


@dataclass(frozen=True)
class ClipListing:
    """The clips below a folder; hidden files and `__MACOSX` are left out.

    Attributes:
        path: The folder, or the one clip.
        clips: In the order of their names, at least one.
        stamp: Changes whenever a clip does: the folder's path, and the sizes and dates of files.
    """

    path: Path
    clips: tuple[ClipFile, ...]
    stamp: tuple[object, ...]


def list_clips(path: Path, key: str) -> ClipListing:
    """Lists a folder, recursively, or a single clip.

    Args:
        path: A folder of clips, a folder of numbered frames, or one file.
        key: What the path is called where it was given, for messages.

    Raises:
        UserError: There is no such folder or file, or no clip in it.
    """
    path = path.expanduser()
    if not path.exists():
        raise UserError(
            f"{key} = {path} does not exist (looked from {Path.cwd()}).\n"
            "Give the path of a folder of clips or of a single one."
        )
    files = _walk(path) if path.is_dir() else {path.name: path}
    found: list[ClipFile] = []
    frames: defaultdict[tuple[str, str, str], list[tuple[int, str]]] = defaultdict(list)
    for name, file in files.items():
        place = PurePosixPath(name)
        ending = place.suffix.lower()
        number = _NUMBER.search(place.stem)
        if ending in VIDEO_EXTENSIONS + ANIMATION_EXTENSIONS:
            found.append(ClipFile(name, (file,)))
        elif ending in FRAME_EXTENSIONS and number:
            folder = name[: -len(place.name)]
            begin = place.stem[: number.start()]
            frames[folder, begin, place.suffix].append((int(number.group()), name))
    # One picture is no clip, and numbers without a second tell nothing of an order.
    sequences = {which: sorted(names) for which, names in frames.items() if len(names) > 1}
    shared = Counter(folder for folder, _, _ in sequences)
    for (folder, begin, ending), numbered in sequences.items():
        name = f"{folder}{begin}*{ending}" if shared[folder] > 1 else folder.rstrip("/")
        paths = tuple(files[frame] for _, frame in numbered)
        found.append(ClipFile(name or path.name, paths, is_frames=True))
    if not found:
        raise UserError(_no_clip(path, key, files))
    clips = tuple(sorted(found, key=lambda clip: clip.name.split("/")))
    states = tuple((clip.name, *(_state(file) for file in clip.paths)) for clip in clips)
    return ClipListing(path, clips, (str(path.resolve()), *states))


def classes_of(
    names: Iterable[str], choice: str, path: Path, key: str
) -> tuple[tuple[str, ...], list[int]] | None:
    """Class names, and the class of each clip by its first-level folder.

    Args:
        names: Names of the clips.
        choice: "auto", "folders" or "none", as in `ClipFiles.labels`.
        path: The folder that was listed.
        key: What it is called in the config.

    Returns:
        None where there are no labels.

    Raises:
        UserError: Clips lie in no class folder, or the folders are splits, not classes.
    """
    names = list(names)
    folders = sorted({name.split("/")[0] for name in names if "/" in name})
    if choice == "none" or (choice == "auto" and len(folders) < 2):
        return None
    way_out = 'set data.source.labels = "none"'
    if choice == "auto" and {folder.lower() for folder in folders} <= _SPLIT_NAMES:
        raise UserError(
            f"{key} = {path}: the folders {', '.join(folders)} look like splits, not classes.\n"
            f"Set data.source.path to one of them, or {way_out} to divide all clips anew."
        )
    if len(folders) < 2:
        raise UserError(
            f"{key} = {path} has no class folders: clips in two or more sub-folders are needed.\n"
            f"Sort the clips into some, or {way_out}."
        )
    loose = [name for name in names if "/" not in name]
    if loose:
        raise UserError(
            f"{key} = {path}: {len(loose)} clips, such as {loose[0]}, lie in no class folder.\n"
            f"Move them into {', '.join(folders[:3])}, or {way_out}."
        )
    numbers = {folder: number for number, folder in enumerate(folders)}
    return tuple(folders), [numbers[name.split("/")[0]] for name in names]


def _walk(path: Path) -> dict[str, Path]:
    """The files below a folder by name; links are followed."""
    files: dict[str, Path] = {}
    waiting: list[tuple[str, tuple[tuple[int, int], ...]]] = [("", ())]
    while waiting:
        folder, above = waiting.pop()
        try:
            state = (path / folder).stat()
            entries = list(os.scandir(path / folder))
        except OSError as error:
            raise UserError(
                f"{path / folder} cannot be listed: {error.strerror}.\n"
                "Check its permissions (ls -ld)."
            ) from error
        # A link to a folder that it lies in would never end.
        identity = (state.st_dev, state.st_ino)
        if identity in above:
            continue
        for entry in entries:
            if entry.name.startswith(".") or entry.name == "__MACOSX":
                continue
            if entry.is_dir():
                waiting.append((f"{folder}{entry.name}/", (*above, identity)))
            else:
                files[f"{folder}{entry.name}"] = Path(entry.path)
    return files


def _state(file: Path) -> tuple[object, ...]:
    try:
        state = file.stat()
        return state.st_size, state.st_mtime_ns
    except OSError as error:
        return (error.errno,)


def _no_clip(path: Path, key: str, files: Iterable[str]) -> str:
    endings = Counter(PurePosixPath(name).suffix.lower() or "no ending" for name in files)
    other = ", ".join(f"{count} with {ending}" for ending, count in endings.most_common(3))
    where = "no clip in it or below it" if path.is_dir() else "is no clip"
    return (
        f"{key} = {path}: {where}; its files: {other or 'none'}.\nClips end in "
        f"{', '.join(VIDEO_EXTENSIONS + ANIMATION_EXTENSIONS)}, or are folders of numbered frames "
        f"({', '.join(FRAME_EXTENSIONS)}); convert or unpack others."
    )
