"""`python -m tools.generate RUN`: let a trained model write or draw.

The options after RUN belong to the run's family of models; `RUN --help` lists them. Text is
printed. Images and clips are written into RUN/generated, with the request beside them.
"""

import argparse
import json
import os
import sys
import zlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax

from genjax.config import add_arguments, differences, from_arguments
from genjax.errors import UserError
from genjax.media import MediaSample
from genjax.task import Sample
from tools.trained import add_run_arguments, load_trained, run_config

REQUEST = "request.json"
"""The file beside generated images that says what they are."""
_PATHS_SHOWN = 8


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    parser = argparse.ArgumentParser(prog="python -m tools.generate", description=__doc__)
    add_run_arguments(parser)
    parser.add_argument("--seed", type=int, default=0, help="seed of the samples (default 0)")
    parser.add_argument(
        "--output",
        type=Path,
        help="text: also write it to this file as JSON lines; images and clips: the folder for "
        "them (default RUN/generated/step-STEP-seed-SEED)",
    )
    try:
        arguments = _run_first(arguments)
        if not arguments or arguments[0].startswith("-"):
            parser.parse_args(arguments)
            return 2
        config = run_config(Path(arguments[0]))
        schema = config.generation_schema()
        add_arguments(parser, schema)
        options = parser.parse_args(arguments)
        request = from_arguments(options, schema)
        trained = load_trained(options.run, config, options.step)
        # Apart from the key of a run with the same seed.
        key = jax.random.fold_in(jax.random.key(options.seed), zlib.crc32(b"generate"))
        told = {
            "run": str(options.run.resolve()),
            "step": trained.step,
            "seed": options.seed,
            "options": request.model_dump(mode="json"),
        }
        files = Files(options.run / "generated", options.output, told)
        with jax.set_mesh(trained.mesh):
            pieces = trained.task.generate(trained.state, key, request)
            texts = show(files.taken(pieces))
        files.finish()
        if options.output is not None and not files.saved:
            _write(options.output, texts)
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(file=sys.stderr)
        return 130
    return 0


def _run_first(arguments: list[str]) -> list[str]:
    """The words with the run directory first, wherever it stands among them.

    Which words are values of options is known only once the family of the run is.
    """
    places = [i for i, word in enumerate(arguments) if not word.startswith("-")]
    runs = [i for i in places if os.path.isfile(os.path.join(arguments[i], "config.toml"))]
    place = next(iter(runs or places), 0)
    return [*arguments[place : place + 1], *arguments[:place], *arguments[place + 1 :]]


def show(pieces: Iterable[Sample]) -> dict[int, str]:
    """Print samples as they come, each whole and in order; returns them by index.

    Of several samples that are written at once, the first unfinished one is streamed; the others
    wait for their turn.
    """
    texts: dict[int, str] = {}
    done: set[int] = set()
    current = printed = 0
    for piece in pieces:
        texts[piece.index] = texts.get(piece.index, "") + piece.preview()
        if piece.done:
            done.add(piece.index)
        while current in texts:
            print(texts[current][printed:], end="", flush=True)
            printed = len(texts[current])
            if current not in done:
                break
            print("\n" if current + 1 in texts else "", flush=True)
            current, printed = current + 1, 0
    return texts


class Files:
    """The folder of a request's images and clips; it is made when the first of them comes."""

    def __init__(self, generated: Path, output: Path | None, request: dict[str, Any]) -> None:
        """Choose no folder yet.

        Args:
            generated: where requests have their folders if they name none.
            output: the folder that the user named.
            request: what was asked for, to be written beside the files.
        """
        self._generated = generated
        self._output = output
        self._request = request
        self._folder: Path | None = None
        self.saved: list[dict[str, Any]] = []
        """What the log says of each file: its path below the folder, and more."""

    def taken(self, pieces: Iterable[Sample]) -> Iterator[Sample]:
        """Save the images and clips among the pieces, and pass on the others.

        Raises:
            UserError: the folder belongs to something else, or a file cannot be written.
        """
        for piece in pieces:
            if not isinstance(piece, MediaSample):
                yield piece
                continue
            try:
                if self._folder is None:
                    self._folder = self._made()
                fields = piece.save(self._folder)
            except OSError as error:
                raise UserError(
                    f"--output {self._folder or self._output or self._generated}: cannot be "
                    f"written ({error.strerror}); make room, or choose another folder"
                ) from error
            self.saved.append({"index": piece.index, **fields})
            if len(self.saved) <= _PATHS_SHOWN:
                path = self._folder / fields.get("image", fields.get("video", ""))
                print(f"{path}  {piece.preview()}", flush=True)

    def finish(self) -> None:
        """Complete the request's file, and say how many files there are.

        Raises:
            UserError: it cannot be written.
        """
        if self._folder is None:
            return
        try:
            _write_json(self._folder / REQUEST, self._request | {"files": self.saved})
        except OSError as error:
            raise UserError(
                f"{self._folder / REQUEST}: cannot be written ({error.strerror}); make room"
            ) from error
        print(f"{len(self.saved)} files in {self._folder}")

    def _made(self) -> Path:
        """The folder, with the request in it: a free one, or that of the same request."""
        if self._output is not None:
            if (reason := self._taken_by_others(self._output)) is not None:
                raise UserError(f"--output {self._output}: {reason}; choose another folder")
            folder = self._output
        else:
            name = f"step-{self._request['step']}-seed-{self._request['seed']}"
            folder, number = self._generated / name, 1
            while self._taken_by_others(folder) is not None:
                number += 1
                folder = self._generated / f"{name}-{number}"
        folder.mkdir(parents=True, exist_ok=True)
        _write_json(folder / REQUEST, self._request)
        return folder

    def _taken_by_others(self, folder: Path) -> str | None:
        """Why files of this request cannot go into a folder, or None."""
        if folder.is_file():
            return "it is a file, and images need a folder"
        if not folder.is_dir() or not any(folder.iterdir()):
            return None
        try:
            there = json.loads((folder / REQUEST).read_text(encoding="utf-8"))
            there.pop("files", None)
        except (OSError, ValueError, AttributeError, TypeError):
            return "it holds files of something else"
        changed = differences(there, self._request)
        if not changed:
            return None
        line = changed[0].replace("in the run", "there")
        return f"it holds the files of another request ({line})"


def _write_json(path: Path, content: dict[str, Any]) -> None:
    part = path.with_name(f"{path.name}.part")
    part.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    part.replace(path)


def _write(path: Path, texts: dict[int, str]) -> None:
    lines = [json.dumps({"index": i, "text": t}, ensure_ascii=False) for i, t in texts.items()]
    try:
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    except OSError as error:
        raise UserError(f"--output {path}: cannot be written ({error.strerror})") from error


if __name__ == "__main__":
    sys.exit(main())
