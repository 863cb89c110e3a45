"""`python -m tools.convert_inception IN.pth OUT.npz`: Inception weights for FID, from PyTorch.

IN.pth is the state dict that FID programs for PyTorch use, pt_inception-2015-12-05-6726825d.pth:
the TensorFlow graph of 2015-12-05 with 1008 classes. A state dict of torchvision's Inception v3
(1000 classes) is taken too, but its figures are no FID and will not be called so. PyTorch is needed
here, and nowhere after.
"""

import argparse
import pickle
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np

from genjax.errors import UserError
from genjax.image.inception_v3 import FID_CLASSES, check_parameters, parameter_shapes

_EPSILON = 1e-3
"""Of the network's batch normalisations."""

_NORMALISATION = ("weight", "bias", "running_mean", "running_var")

_ADVICE = "give the state dict of FID's Inception, pt_inception-2015-12-05-6726825d.pth"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m tools.convert_inception",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("source", type=Path, metavar="IN.pth")
    parser.add_argument("target", type=Path, metavar="OUT.npz")
    options = parser.parse_args(arguments)
    try:
        if options.target.suffix != ".npz":
            raise UserError(f"{options.target}: the name must end in .npz")
        arrays = convert(read_state_dict(options.source), f"{options.source}")
        write(options.target, arrays)
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    num_classes = arrays["fc/kernel"].shape[1]
    print(f"{options.target}: Inception v3 with {num_classes} classes")
    if num_classes != FID_CLASSES:
        print(f"Not the weights of FID, which have {FID_CLASSES}: figures will not be called FID.")
    return 0


def read_state_dict(path: Path) -> dict[str, np.ndarray]:
    """The arrays of a PyTorch state dict by name; nothing else in the file is run.

    Raises:
        UserError: PyTorch is not installed, or the file is missing or something else.
    """
    try:
        import torch
    except ImportError as error:
        raise UserError(
            "reading a .pth file needs PyTorch: `pip install torch`, here or on another machine "
            "(the .npz file can be copied)"
        ) from error
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror or error}); {_ADVICE}") from error
    except (RuntimeError, EOFError, ValueError, KeyError, pickle.UnpicklingError) as error:
        reason = str(error).strip().split("\n")[0]
        raise UserError(f"{path} is not a PyTorch state dict ({reason}); {_ADVICE}") from error
    if not isinstance(state, dict) or not all(
        isinstance(name, str) and isinstance(value, torch.Tensor) for name, value in state.items()
    ):
        raise UserError(f"{path} holds no dict of tensors; {_ADVICE}")
    return {name: value.numpy() for name, value in state.items()}


def convert(state: Mapping[str, np.ndarray], where: str = "state dict") -> dict[str, np.ndarray]:
    """Parameters of `genjax.image.inception_v3.InceptionV3` from PyTorch's, in float32.

    Kernels go from [F, C, K, L] to [K, L, C, F]. A normalisation in inference is an affine map,
    y = weight (x - mean) / sqrt(variance + epsilon) + bias, which goes into kernel and bias.

    Args:
        state: arrays by PyTorch's names; auxiliary heads and counters may be among them.
        where: names the source in errors.

    Raises:
        UserError: names are missing, or shapes are not Inception's.
    """
    modules = [path.split("/")[:-1] for path in parameter_shapes() if path.endswith("/bias")]
    names = {"/".join(module): ".".join(module) for module in modules}
    needed = ["fc.weight"]
    for name in names.values():
        needed += [f"{name}.conv.weight", *(f"{name}.bn.{part}" for part in _NORMALISATION)]
    missing = [name for name in needed if name not in state]
    if missing:
        raise UserError(
            f"{where}: {len(missing)} of {len(needed)} arrays are missing, "
            f"first {', '.join(missing[:3])}; {_ADVICE}"
        )
    arrays = {"fc/kernel": state["fc.weight"].T}
    for path, name in names.items():
        kernel = state[f"{name}.conv.weight"].astype(np.float64)
        scale, bias, mean, variance = (
            state[f"{name}.bn.{part}"].astype(np.float64) for part in _NORMALISATION
        )
        if kernel.ndim != 4 or any(x.shape != kernel.shape[:1] for x in (scale, bias, mean)):
            raise UserError(f"{where}: {name} has arrays of other shapes; {_ADVICE}")
        scale = scale / np.sqrt(variance + _EPSILON)
        arrays[f"{path}/kernel"] = kernel.transpose(2, 3, 1, 0) * scale
        arrays[f"{path}/bias"] = bias - mean * scale
    check_parameters(arrays, where, _ADVICE)
    return {name: np.ascontiguousarray(array, np.float32) for name, array in arrays.items()}


def write(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Write the parameters for `load_inception`.

    Raises:
        UserError: the file cannot be written.
    """
    try:
        np.savez(path, **cast(Any, arrays))
    except OSError as error:
        raise UserError(f"{path} cannot be written ({error.strerror or error})") from error


if __name__ == "__main__":
    sys.exit(main())
