"""Sources of text: the standard library's documentation, the user's files, TFDS.

A source is described by a config class and opened by `open_text`.
"""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from genjax.config import Config
from genjax.data.text_documents import Skipped, Summary, TextSource, cut_readers, fingerprint
from genjax.data.tfds_text import TfdsText, open_tfds
from genjax.errors import UserError

ValidationFraction = Annotated[float, Field(gt=0.0, lt=1.0)]


class BuiltinText(Config):
    """The Python documentation inside the standard library: half a megabyte of real text.

    Each help topic is a document; topics come in alphabetical order. The text differs a little
    from one Python version to the next, so figures compare within one version only.
    """

    kind: Literal["builtin"] = "builtin"
    validation_fraction: ValidationFraction = 0.1
    """The last part of the text, by characters, that is kept for validation; between 0 and 1."""


class TextFiles(Config):
    """The user's own UTF-8 text: one file, or a folder read recursively in sorted order."""

    kind: Literal["files"] = "files"
    path: Path
    """A text file, or a folder of text files."""
    patterns: tuple[str, ...] = ("*.txt",)
    """Which files of a folder are text, as glob patterns."""
    document_separator: Annotated[str, Field(min_length=1)] | None = None
    """Splits each file into documents, e.g. "\\n\\n" or "<|endoftext|>"; unset: one file is one
    document. The separator itself is not part of the text."""
    validation_path: Path | None = None
    """A file or folder with the validation text; unset: the end of `path` is kept for it."""
    validation_fraction: ValidationFraction = 0.1
    """Without `validation_path`: the last part of the text, by characters, kept for validation."""


TextSourceConfig = Annotated[BuiltinText | TextFiles | TfdsText, Field(discriminator="kind")]


def open_text(config: BuiltinText | TextFiles | TfdsText) -> TextSource:
    """Opens a source of text and checks all of it that can be checked without training.

    Raises:
        UserError: Something named in the config is missing, empty, unreadable or not UTF-8.
    """
    match config:
        case BuiltinText():
            return _open_builtin(config)
        case TextFiles():
            return _open_files(config)
        case TfdsText():
            return open_tfds(config)


# Built-in text ----------------------------------------------------------------------------------


def _open_builtin(config: BuiltinText) -> TextSource:
    from pydoc_data.topics import topics

    documents = [topics[key] for key in sorted(topics) if topics[key]]
    summary = Summary()
    summary.watch(documents)
    return TextSource(
        name="the built-in text",
        readers=cut_readers(
            lambda: iter(documents), summary.characters, config.validation_fraction
        ),
        fingerprint=fingerprint(summary.sha256.hexdigest(), config.validation_fraction),
    )


# Files ------------------------------------------------------------------------------------------


def _open_files(config: TextFiles) -> TextSource:
    read, summary = _scan_files(config.path, config, "data.source.path")
    if config.validation_path is None:
        return TextSource(
            name=str(config.path),
            readers=cut_readers(read, summary.characters, config.validation_fraction),
            fingerprint=fingerprint(summary.sha256.hexdigest(), config.validation_fraction),
        )
    validation, validation_summary = _scan_files(
        config.validation_path, config, "data.source.validation_path"
    )
    return TextSource(
        name=str(config.path),
        readers={"train": read, "validation": validation},
        fingerprint=fingerprint(summary.sha256.hexdigest(), validation_summary.sha256.hexdigest()),
    )


def _scan_files(
    path: Path, config: TextFiles, key: str
) -> tuple[Callable[[], Iterator[str]], Summary]:
    """Reads every file once, so that a bad one is known before the first step."""
    files = _list_files(path.expanduser(), config.patterns, key)
    summary, skipped, good = Summary(), Skipped("files"), []
    for file in files:
        try:
            documents = _read_file(file, config.document_separator)
        except UserError as error:
            if len(files) == 1:
                raise
            skipped.reasons.append(str(error).splitlines()[0].rstrip("."))
            continue
        good.append(file)
        summary.watch(documents)
    if not good:
        raise UserError(
            f"{key} = {path}: none of its {len(files)} files can be read; the first:\n"
            f"{skipped.reasons[0]}.\nConvert them to UTF-8: iconv -f LATIN1 -t UTF-8 IN > OUT"
        )
    skipped.report(len(files))
    if summary.characters == 0:
        raise UserError(f"{key} = {path} is empty.\nPoint it at a file or folder with text in it.")

    def read() -> Iterator[str]:
        for file in good:
            yield from _read_file(file, config.document_separator)

    return read, summary


def _list_files(path: Path, patterns: Sequence[str], key: str) -> list[Path]:
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise UserError(
            f"{key} = {path} does not exist (looked from {Path.cwd()}).\n"
            "Give the path of a text file or of a folder of text files."
        )
    found = {file for pattern in patterns for file in path.rglob(pattern) if file.is_file()}
    if not found:
        raise UserError(
            f"{key} = {path}: no file in this folder matches {', '.join(patterns)}.\n"
            'Set data.source.patterns, e.g. ["*.txt", "*.md"].'
        )
    return sorted(found, key=lambda file: file.relative_to(path).parts)


def _read_file(file: Path, separator: str | None) -> list[str]:
    try:
        raw = file.read_bytes()
    except OSError as error:
        raise UserError(
            f"{file} cannot be read: {error.strerror}.\nCheck its permissions (ls -l)."
        ) from error
    try:
        # A byte order mark is a note to the editor, not text.
        text = raw.decode("utf-8").removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        raise UserError(
            f"{file} is not UTF-8 text: byte 0x{raw[error.start]:02x} at offset {error.start}.\n"
            f"Convert it: iconv -f LATIN1 -t UTF-8 {file} > converted.txt (or -f UTF-16, ...)"
        ) from error
    documents = text.split(separator) if separator else [text]
    return [document for document in documents if document]
