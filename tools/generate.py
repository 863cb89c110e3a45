"""`python -m tools.generate RUN`: let a trained model write.

The options after RUN belong to the run's family of models; `RUN --help` lists them.
"""

import argparse
import json
import os
import sys
import zlib
from collections.abc import Iterable, Sequence
from pathlib import Path

import jax

from genjax.config import add_arguments, from_arguments
from genjax.errors import UserError
from genjax.task import Sample
from tools.trained import add_run_arguments, load_trained, run_config


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    parser = argparse.ArgumentParser(prog="python -m tools.generate", description=__doc__)
    add_run_arguments(parser)
    parser.add_argument("--seed", type=int, default=0, help="seed of the samples (default 0)")
    parser.add_argument("--output", type=Path, help="also write the samples here as JSON lines")
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
        with jax.set_mesh(trained.mesh):
            pieces = trained.task.generate(trained.state, key, request)
            texts = show(pieces)
        if options.output is not None:
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


def _write(path: Path, texts: dict[int, str]) -> None:
    lines = [json.dumps({"index": i, "text": t}, ensure_ascii=False) for i, t in texts.items()]
    try:
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    except OSError as error:
        raise UserError(f"--output {path}: cannot be written ({error.strerror})") from error


if __name__ == "__main__":
    sys.exit(main())
