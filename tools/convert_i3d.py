"""`python -m tools.convert_i3d IN OUT.npz`: I3D weights for FVD.

IN holds the RGB network trained on Kinetics-400, in one of three forms: a state dict of a PyTorch
port (.pt, .pth; modules named Mixed_3b.b1a.conv3d or mixed_3b.branch_1.0.conv3d), such a network
as TorchScript (its program is loaded, not run), or an .npz file of arrays under those names or
under TensorFlow's, RGB/inception_i3d/Mixed_3b/Branch_1/Conv3d_0a_1x1/conv_3d/w and so on, as the
variables of the TensorFlow Hub module deepmind/i3d-kinetics-400 are called. PyTorch is needed for
.pt and .pth files only, here and nowhere after.

OUT.npz holds float32 arrays by path, "Mixed_3b/b1a/kernel" [K, K, K, C, F] and ".../bias" [F] (see
genjax/video/i3d.py), and under "sources" the name and sha256 of IN, which go with every FVD.
"""

import argparse
import hashlib
import json
import pickle
import sys
import warnings
import zipfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np

from genjax.errors import UserError
from genjax.image.weight_files import SOURCES, check_shapes
from genjax.video.i3d import parameter_shapes

_EPSILON = 1e-3
"""Of the network's batch normalisations. (One PyTorch port computes with 1e-5: another network.)"""

_ADVICE = "give the weights of the RGB I3D network of Kinetics-400"

_KERNEL, _BIAS = "kernel", "bias"
_NORMALISATION = ("beta", "mean", "variance")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m tools.convert_i3d",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("source", type=Path, metavar="IN")
    parser.add_argument("target", type=Path, metavar="OUT.npz")
    options = parser.parse_args(arguments)
    try:
        arrays = convert(read_arrays(options.source, _ADVICE), f"{options.source}")
        write_weights(options.target, arrays, [options.source])
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    print(f"{options.target}: I3D, from a file with sha256 {sha256_of(options.source)}")
    return 0


def convert(state: Mapping[str, np.ndarray], where: str = "state dict") -> dict[str, np.ndarray]:
    """Parameters of `genjax.video.i3d.I3D` from a file's arrays, in float32.

    A normalisation in inference is an affine map, y = (x - mean) / sqrt(variance + epsilon) + beta,
    times a scale in PyTorch's ports; it goes into kernel and bias.

    Args:
        state: arrays under the names of PyTorch's ports or TensorFlow's.
        where: names the source in errors.

    Raises:
        UserError: names are missing, or shapes are not I3D's.
    """
    state = {
        name.removesuffix(":0").removeprefix("module."): value for name, value in state.items()
    }
    shapes = parameter_shapes()
    modules = [name.removesuffix(f"/{_KERNEL}") for name in shapes if name.endswith(_KERNEL)]
    naming = max(_NAMINGS, key=lambda one: sum(one(path)[_KERNEL] in state for path in modules))
    missing = [name for path in modules for name in naming(path).values() if name not in state]
    if missing:
        raise UserError(
            f"{where}: {len(missing)} arrays are missing, first {', '.join(missing[:3])}; {_ADVICE}"
        )
    arrays: dict[str, np.ndarray] = {}
    for path in modules:
        found = {part: np.asarray(state[name], np.float64) for part, name in naming(path).items()}
        kernel = found.pop(_KERNEL)
        if kernel.ndim != 5:
            raise UserError(f"{where}: {naming(path)[_KERNEL]} has {kernel.ndim} axes, not 5")
        if naming is not _tensorflow:
            kernel = kernel.transpose(2, 3, 4, 1, 0)
        # TensorFlow keeps vectors as [1, 1, 1, 1, F].
        vectors = {part: value.reshape(-1) for part, value in found.items()}
        for part, value in vectors.items():
            if len(value) != kernel.shape[-1]:
                name = naming(path)[part]
                raise UserError(
                    f"{where}: {name} has {len(value)} numbers, and its kernel makes "
                    f"{kernel.shape[-1]} channels; {_ADVICE}"
                )
        bias = vectors.get(_BIAS)
        if bias is None:
            beta, mean, variance = (vectors[part] for part in _NORMALISATION)
            scale = vectors.get("scale", np.ones_like(beta)) / np.sqrt(variance + _EPSILON)
            kernel, bias = kernel * scale, beta - mean * scale
        if path == "logits":
            kernel = kernel.reshape(kernel.shape[-2:])
        arrays[f"{path}/{_KERNEL}"], arrays[f"{path}/{_BIAS}"] = kernel, bias
    check_shapes(arrays, shapes, where, _ADVICE)
    return {name: np.ascontiguousarray(array, np.float32) for name, array in arrays.items()}


# ---- how files name the arrays of a module ------------------------------------------------------


def _pytorch(module: str, normalisation: str, logits: bool) -> dict[str, str]:
    names = {_KERNEL: f"{module}.conv3d.weight"}
    if logits:
        return names | {_BIAS: f"{module}.conv3d.bias"}
    parts = {"scale": "weight", "beta": "bias", "mean": "running_mean", "variance": "running_var"}
    return names | {part: f"{module}.{normalisation}.{name}" for part, name in parts.items()}


def _by_letters(path: str) -> dict[str, str]:
    """Names such as Mixed_3b.b1a.conv3d.weight."""
    return _pytorch(path.replace("/", "."), "bn", path == "logits")


_BRANCHES = {
    "b0": "branch_0",
    "b1a": "branch_1.0",
    "b1b": "branch_1.1",
    "b2a": "branch_2.0",
    "b2b": "branch_2.1",
    "b3b": "branch_3.1",
}


def _by_branches(path: str) -> dict[str, str]:
    """Names such as mixed_3b.branch_1.0.conv3d.weight."""
    block, _, branch = path.partition("/")
    module = {"logits": "conv3d_0c_1x1"}.get(block, block.lower())
    module = f"{module}.{_BRANCHES[branch]}" if branch else module
    return _pytorch(module, "batch3d", path == "logits")


_UNITS = {
    "b0": "Branch_0/Conv3d_0a_1x1",
    "b1a": "Branch_1/Conv3d_0a_1x1",
    "b1b": "Branch_1/Conv3d_0b_3x3",
    "b2a": "Branch_2/Conv3d_0a_1x1",
    "b2b": "Branch_2/Conv3d_0b_3x3",
    "b3b": "Branch_3/Conv3d_0b_1x1",
}


def _tensorflow(path: str) -> dict[str, str]:
    """Names such as RGB/inception_i3d/Mixed_3b/Branch_1/Conv3d_0a_1x1/conv_3d/w."""
    block, _, branch = path.partition("/")
    module = "/".join(["RGB/inception_i3d", block, *([_UNITS[branch]] if branch else [])])
    if path == "logits":
        module = "RGB/inception_i3d/Logits/Conv3d_0c_1x1"
        return {_KERNEL: f"{module}/conv_3d/w", _BIAS: f"{module}/conv_3d/b"}
    if path == "Mixed_5b/b2b":
        # So misnamed in the original graph.
        module = module.replace("Conv3d_0b_3x3", "Conv3d_0a_3x3")
    parts = {"beta": "beta", "mean": "moving_mean", "variance": "moving_variance"}
    return {_KERNEL: f"{module}/conv_3d/w"} | {
        part: f"{module}/batch_norm/{name}" for part, name in parts.items()
    }


_NAMINGS: tuple[Callable[[str], dict[str, str]], ...] = (_by_letters, _by_branches, _tensorflow)


# ---- files ------------------------------------------------------------------------------------


def read_arrays(path: Path, advice: str) -> dict[str, np.ndarray]:
    """The arrays of an .npz file, a PyTorch state dict or a TorchScript network, by name.

    Raises:
        UserError: PyTorch is needed and not installed, or the file is missing or something else.
    """
    try:
        if path.suffix == ".npz":
            with np.load(path) as file:
                return {name: file[name] for name in file.files}
        return _read_torch(path, advice)
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror or error}); {advice}") from error
    except (
        RuntimeError,
        TypeError,
        EOFError,
        ValueError,
        KeyError,
        AttributeError,
        pickle.UnpicklingError,
        zipfile.BadZipFile,
    ) as error:
        reason = str(error).strip().split("\n")[0]
        raise UserError(f"{path} is no file of weights ({reason}); {advice}") from error


def _read_torch(path: Path, advice: str) -> dict[str, np.ndarray]:
    try:
        import torch
    except ImportError as error:
        raise UserError(
            f"reading {path.name} needs PyTorch: `pip install torch`, here or on another machine "
            "(the .npz file can be copied)"
        ) from error
    state: Any
    if _is_torchscript(path):
        with warnings.catch_warnings():
            # TorchScript is deprecated, and yet what these weights are published in.
            warnings.simplefilter("ignore", DeprecationWarning)
            state = torch.jit.load(f"{path}", map_location="cpu").state_dict()
    else:
        state = torch.load(path, map_location="cpu", weights_only=True)
    if isinstance(state, Mapping) and isinstance(state.get("state_dict"), Mapping):
        state = state["state_dict"]
    if not isinstance(state, Mapping) or not all(
        isinstance(name, str) and isinstance(value, torch.Tensor) for name, value in state.items()
    ):
        raise UserError(f"{path} holds no dict of tensors; {advice}")
    return {name: value.numpy() for name, value in state.items()}


def _is_torchscript(path: Path) -> bool:
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any(name.endswith("/constants.pkl") for name in archive.namelist())


def sha256_of(path: Path) -> str:
    """The sha256 of a file, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_weights(path: Path, arrays: Mapping[str, np.ndarray], sources: Sequence[Path]) -> None:
    """Write parameters for `genjax.image.weight_files.read_weights`, and what they were made from.

    Raises:
        UserError: the name does not end in .npz, or the file cannot be written.
    """
    if path.suffix != ".npz":
        raise UserError(f"{path}: the name must end in .npz")
    about = json.dumps([[source.name, sha256_of(source)] for source in sources])
    try:
        np.savez(path, **cast(Any, {**arrays, SOURCES: np.array(about)}))
    except OSError as error:
        raise UserError(f"{path} cannot be written ({error.strerror or error})") from error


if __name__ == "__main__":
    sys.exit(main())
