"""Files of networks that are not a run's own: weights from elsewhere, and judges that were trained.

All are .npz files of arrays by "/"-joined path, with a little JSON beside them.
"""

import contextlib
import dataclasses
import json
import os
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar, cast

import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from genjax.errors import UserError
from genjax.task import Tree

Network = TypeVar("Network")

_ABOUT = "about"


@dataclasses.dataclass(frozen=True, eq=False)
class Weights:
    """Parameters that came from somewhere else.

    Attributes:
        params: of the network, float32.
        sha256: in hex, of the file that they were converted from; of several files, joined by "+".
    """

    params: Tree
    sha256: str


SOURCES = "sources"
"""The array of a file of weights that is none: JSON of [name, sha256] of each original file."""


def shapes_of(params: Tree) -> dict[str, tuple[int, ...]]:
    """Shapes of a nested dict of arrays by "/"-joined path."""
    flat = cast(dict[str, Any], flatten_dict(params, sep="/"))
    return {path: leaf.shape for path, leaf in flat.items()}


def check_shapes(
    arrays: Mapping[str, np.ndarray],
    shapes: Mapping[str, tuple[int, ...]],
    where: str,
    advice: str,
) -> None:
    """Check that arrays by path are all of a network's parameters, with their shapes.

    Raises:
        UserError: some are missing, left over or of another shape; names the first.
    """
    for wrong, what in (
        (sorted(shapes.keys() - arrays.keys()), "missing"),
        (sorted(arrays.keys() - shapes.keys()), "not known"),
    ):
        if wrong:
            raise UserError(f"{where}: {len(wrong)} arrays are {what}, first {wrong[0]}; {advice}")
    for name, shape in shapes.items():
        if arrays[name].shape != shape:
            raise UserError(
                f"{where}: {name} has shape {arrays[name].shape} in place of {shape}; {advice}"
            )


def read_weights(
    path: Path, shapes: Mapping[str, tuple[int, ...]], network: str, advice: str
) -> Weights:
    """Read a file of converted weights.

    Args:
        path: an .npz file: arrays by "/"-joined path, and `SOURCES`.
        shapes: of all of them.
        network: what errors call it.
        advice: how to make such a file.

    Raises:
        UserError: the file is missing, is not such a file, or its arrays do not fit.
    """
    try:
        with np.load(path) as file:
            arrays = {name: file[name] for name in file.files}
        sources = json.loads(str(arrays.pop(SOURCES, "[]")))
        digests = [str(digest) for _, digest in sources]
    except OSError as error:
        raise UserError(
            f"{path}: no {network} weights there ({error.strerror or error}); {advice}"
        ) from error
    except (ValueError, zipfile.BadZipFile, AttributeError, TypeError, EOFError) as error:
        raise UserError(f"{path} is not a file of {network} weights; {advice}") from error
    check_shapes(arrays, shapes, f"{path}", advice)
    if not digests:
        raise UserError(f"{path}: it does not say what it was converted from; {advice}")
    params = {name: jnp.asarray(array, jnp.float32) for name, array in arrays.items()}
    return Weights(unflatten_dict(params, sep="/"), "+".join(digests))


def save_trained(path: Path, params: Tree, about: Mapping[str, Any], network: str) -> None:
    """Write the parameters of a network that was trained here, whole or not at all.

    Args:
        path: of the .npz file.
        params: of the network.
        about: what else there is to know of it, for JSON.
        network: what errors call it.

    Raises:
        UserError: the file cannot be written.
    """
    arrays = cast(dict[str, Any], flatten_dict(params, sep="/"))
    content = {name: np.asarray(array) for name, array in arrays.items()}
    content[_ABOUT] = np.array(json.dumps(about))
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with part.open("wb") as file:
            np.savez(file, **cast(Any, content))
        part.replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):
            part.unlink()
        raise UserError(
            f"{path}: the {network} cannot be written ({error.strerror or error}); "
            "make room, or choose another place"
        ) from error


def load_trained(
    path: Path, make: Callable[[Tree, dict[str, Any]], Network], network: str
) -> Network:
    """Read what `save_trained` wrote.

    Args:
        path: of the .npz file.
        make: from parameters and what there is to know of them to the network; ValueError,
            KeyError and TypeError say that they do not fit.
        network: what errors call it.

    Raises:
        UserError: the file is missing or is not such a file.
    """
    try:
        with np.load(path) as file:
            content = {name: file[name] for name in file.files}
        about = json.loads(str(content.pop(_ABOUT)))
        arrays = {name: jnp.asarray(array) for name, array in content.items()}
        return make(unflatten_dict(arrays, sep="/"), about)
    except OSError as error:
        raise UserError(
            f"{path}: the {network} cannot be read ({error.strerror or error})"
        ) from error
    except (ValueError, KeyError, TypeError, AttributeError, zipfile.BadZipFile) as error:
        raise UserError(
            f"{path} is not a {network} of this version ({error}); remove it to train a new one"
        ) from error
