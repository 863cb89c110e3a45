"""Which images a folder or a zip archive holds, by name, without decoding any."""

import json
import os
import stat
import threading
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from genjax.data.image_cache import Encoded
from genjax.data.image_decode import UnreadableImage
from genjax.errors import UserError

EXTENSIONS = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff")
LABEL_FILE = "dataset.json"
_MOST_BYTES = 2**29
# A member of an archive can be damaged in each of these ways.
_ZIP_ERRORS = (
    zipfile.BadZipFile,
    zlib.error,
    EOFError,
    OSError,
    RuntimeError,
    NotImplementedError,
    ValueError,
)


@dataclass(frozen=True)
class Listing:
    """The images below a folder or in an archive.

    Folders that hold nothing but one other folder are looked through, so that names begin where
    the images do. Hidden files and `__MACOSX` are left out.

    Attributes:
        path: The folder or archive.
        names: Names from there with "/" between the parts, in sorted order.
        stamp: Changes whenever an image does. It has the sizes and dates of files, which mean
            little without the folder's path, or the sizes and checksums of an archive's.
        folders: The first-level sub-folders in sorted order, with images or without.
        read: An image's bytes by number; raises `UnreadableImage`.
        label_file: Content of `dataset.json` beside the images, or None.
    """

    path: Path
    names: tuple[str, ...]
    stamp: tuple[object, ...]
    folders: tuple[str, ...]
    read: Callable[[int], Encoded]
    label_file: bytes | None


@dataclass(frozen=True)
class _File:
    """A file of a folder or an archive: how to read it, and what changes when it does."""

    read: Callable[[], bytes]
    stamp: tuple[object, ...]


def list_images(path: Path, key: str) -> Listing:
    """Lists a folder, recursively, or a zip archive.

    Args:
        path: The folder or archive.
        key: The config's name of it, for messages.

    Raises:
        UserError: There is no such folder or archive, it is damaged, or no image is in it.
    """
    path = path.expanduser()
    if path.is_dir():
        folders, files = _walk(path)
    elif zipfile.is_zipfile(path):
        folders, files = _open_zip(path, key)
    elif path.exists():
        damaged = path.suffix.lower() == ".zip"
        what = "is no whole zip archive" if damaged else "is neither a folder nor a zip archive"
        raise UserError(
            f"{key} = {path} {what}.\n"
            + (
                "Copy or download it again."
                if damaged
                else "Give the folder that the images are in."
            )
        )
    else:
        raise UserError(
            f"{key} = {path} does not exist (looked from {Path.cwd()}).\n"
            "Give the path of a folder of images or of a zip archive."
        )
    names = sorted((name for name in files if _is_image(name)), key=lambda name: name.split("/"))
    if not names:
        raise UserError(_no_image(path, key, files))
    outer = _outer_folder([*names, *(name for name in files if _is_label_file(name))], folders)
    inner = {name.removeprefix(outer).split("/")[0] for name in folders if name.startswith(outer)}
    images = [files[name] for name in names]
    label_file = files.get(f"{outer}{LABEL_FILE}")
    return Listing(
        path=path,
        names=tuple(name.removeprefix(outer) for name in names),
        stamp=(str(path.resolve()) if path.is_dir() else "zip", *(file.stamp for file in images)),
        folders=tuple(sorted(inner - {""})),
        read=lambda number: Encoded(images[number].read()),
        label_file=None if label_file is None else _read_label_file(label_file, path),
    )


def _is_image(name: str) -> bool:
    return PurePosixPath(name).suffix.lower() in EXTENSIONS


def _is_label_file(name: str) -> bool:
    return PurePosixPath(name).name == LABEL_FILE


def _hidden(name: str) -> bool:
    return any(part.startswith(".") or part == "__MACOSX" for part in name.split("/"))


def _outer_folder(names: Iterable[str], folders: Iterable[str]) -> str:
    """The folder, with "/" at its end, that all images lie below; "" for none.

    Sub-folders without images count: beside them, the one with images is not the only one.
    """
    outer = ""
    while True:
        beside = {name.removeprefix(outer).partition("/")[0] for name in names}
        below = {
            name.removeprefix(outer).partition("/")[0]
            for name in folders
            if name.startswith(outer) and name != outer
        }
        if beside != below or len(below) != 1:
            return outer
        outer += f"{below.pop()}/"


def _no_image(path: Path, key: str, files: Iterable[str]) -> str:
    endings = Counter(PurePosixPath(name).suffix.lower() or "no ending" for name in files)
    other = ", ".join(f"{count} with {ending}" for ending, count in endings.most_common(3))
    return (
        f"{key} = {path}: no image in it or below it; its files: {other or 'none'}.\n"
        f"Images end in {', '.join(EXTENSIONS)}; convert others to one of these."
    )


def _read_label_file(file: _File, path: Path) -> bytes:
    try:
        return file.read()
    except UnreadableImage as error:
        raise UserError(
            f"{LABEL_FILE} in {path} {error}.\nRestore it, or remove it to train without labels."
        ) from error


def parse_label_file(content: bytes, path: Path) -> dict[str, int] | None:
    """The label of each file name, of `{"labels": [["a/b.png", 3], ...]}`; None if it has none.

    Raises:
        UserError: It is not of that form.
    """
    try:
        labels = json.loads(content)["labels"]
        if labels is None:
            return None
        table = {str(name).replace("\\", "/"): label for name, label in labels}
    except (ValueError, TypeError, KeyError) as error:
        raise UserError(
            f"{LABEL_FILE} in {path} cannot be read ({type(error).__name__}: {error}).\n"
            'It should be such as {"labels": [["cats/1.png", 0], ["dogs/1.png", 1]]}.'
        ) from error
    for name, label in table.items():
        if type(label) is not int or label < 0:
            raise UserError(
                f"{LABEL_FILE} in {path}: the label of {name} is {label!r}, not a class number.\n"
                "Labels are whole numbers from 0 on, one an image."
            )
    return table


# Folders ----------------------------------------------------------------------------------------


def _walk(path: Path) -> tuple[list[str], dict[str, _File]]:
    """Folders (with "/" at the end) and files below a path; links are followed."""
    folders: list[str] = []
    files: dict[str, _File] = {}
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
            name = f"{folder}{entry.name}"
            if _hidden(entry.name):
                continue
            if entry.is_dir():
                folders.append(f"{name}/")
                waiting.append((f"{name}/", (*above, identity)))
            else:
                files[name] = _file(Path(entry.path))
    return folders, files


def _file(path: Path) -> _File:
    def read() -> bytes:
        try:
            state = path.stat()
            # Opening a pipe would wait for somebody to write into it.
            if not stat.S_ISREG(state.st_mode):
                raise UnreadableImage("is not a regular file")
            _check_size(state.st_size)
            return path.read_bytes()
        except OSError as error:
            raise UnreadableImage(f"cannot be read ({error.strerror})") from error

    try:
        state = path.stat()
        return _File(read, (state.st_size, state.st_mtime_ns))
    except OSError as error:
        return _File(read, (error.errno,))


def _check_size(size: int) -> None:
    if size > _MOST_BYTES:
        raise UnreadableImage(f"has {size:,} bytes, more than {_MOST_BYTES:,}")


# Zip archives -----------------------------------------------------------------------------------


def _open_zip(path: Path, key: str) -> tuple[list[str], dict[str, _File]]:
    """Folders and files of an archive, which stays open for as long as one of them is held."""
    try:
        archive = zipfile.ZipFile(path)
        members = archive.infolist()
    except (OSError, *_ZIP_ERRORS) as error:
        raise UserError(
            f"{key} = {path} cannot be opened ({error}).\nCopy or download it again."
        ) from error
    lock = threading.Lock()
    folders: set[str] = set()
    files: dict[str, _File] = {}
    for member in members:
        name = member.filename.replace("\\", "/").lstrip("/")
        if _hidden(name):
            continue
        parts = name.split("/")
        folders |= {"/".join(parts[:depth]) + "/" for depth in range(1, len(parts))}
        if not member.is_dir():
            files[name] = _member(archive, lock, member)
    return sorted(folders), files


def _member(archive: zipfile.ZipFile, lock: threading.Lock, member: zipfile.ZipInfo) -> _File:
    def read() -> bytes:
        _check_size(member.file_size)
        if member.flag_bits & 1:
            raise UnreadableImage("is encrypted")
        try:
            # ZipFile counts its open members without a lock of its own.
            with lock:
                return archive.read(member)
        except _ZIP_ERRORS as error:
            raise UnreadableImage(f"cannot be read ({error})") from error

    return _File(read, (member.file_size, member.CRC))
