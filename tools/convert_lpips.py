"""`python -m tools.convert_lpips IN [IN ...] OUT.npz`: weights for LPIPS with AlexNet.

IN are state dicts of PyTorch, or .npz files of arrays under the same names: torchvision's AlexNet
(features.0.weight and so on) and the linear heads of version 0.1 (lin0.model.1.weight and so on),
or one file with the whole network (net.slice1.0.weight and so on). PyTorch is needed for .pth
files only, here and nowhere after.

OUT.npz holds float32 arrays by path, "conv1/kernel" [K, K, C, F], "conv1/bias" [F] and
"head1/weight" [F] to 5 (see genjax/image/lpips.py), and under "sources" each IN's name and sha256.
"""

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from genjax.errors import UserError
from genjax.image.lpips import parameter_shapes
from genjax.image.weight_files import check_shapes
from tools.convert_i3d import read_arrays, write_weights

_ADVICE = (
    "give torchvision's AlexNet of ImageNet (alexnet-owt-7be5be79.pth) and LPIPS's heads "
    "(weights/v0.1/alex.pth)"
)

_PLACES = (0, 3, 6, 8, 10)
"""Of the convolutions among the layers of torchvision's AlexNet."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m tools.convert_lpips",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("sources", type=Path, nargs="+", metavar="IN")
    parser.add_argument("target", type=Path, metavar="OUT.npz")
    options = parser.parse_args(arguments)
    try:
        state: dict[str, np.ndarray] = {}
        for source in options.sources:
            state |= read_arrays(source, _ADVICE)
        where = ", ".join(map(str, options.sources))
        write_weights(options.target, convert(state, where), options.sources)
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    print(f"{options.target}: LPIPS with AlexNet")
    return 0


def convert(state: Mapping[str, np.ndarray], where: str = "state dict") -> dict[str, np.ndarray]:
    """Parameters of `genjax.image.lpips.Lpips` from PyTorch's, in float32.

    Args:
        state: arrays by PyTorch's names; AlexNet's classifier may be among them.
        where: names the source in errors.

    Raises:
        UserError: names are missing, shapes are others, or a weight of a head is negative.
    """
    names: dict[str, tuple[str, ...]] = {}
    for number, place in enumerate(_PLACES, 1):
        for part, name in (("kernel", "weight"), ("bias", "bias")):
            names[f"conv{number}/{part}"] = (
                f"features.{place}.{name}",
                f"net.slice{number}.{place}.{name}",
            )
        head = number - 1
        names[f"head{number}/weight"] = (
            f"lin{head}.model.1.weight",
            f"lins.{head}.model.1.weight",
        )
    found = {path: [name for name in given if name in state] for path, given in names.items()}
    missing = [names[path][0] for path, known in found.items() if not known]
    if missing:
        raise UserError(
            f"{where}: {len(missing)} of {len(names)} arrays are missing, "
            f"first {', '.join(missing[:3])}; {_ADVICE}"
        )
    arrays = {path: np.asarray(state[known[0]], np.float32) for path, known in found.items()}
    for path, array in arrays.items():
        if path.endswith("kernel") and array.ndim == 4:
            arrays[path] = array.transpose(2, 3, 1, 0)
        if path.startswith("head"):
            arrays[path] = array.reshape(-1)
    check_shapes(arrays, parameter_shapes(), where, _ADVICE)
    for path, array in arrays.items():
        if path.startswith("head") and array.min() < 0:
            raise UserError(
                f"{where}: {found[path][0]} has negative weights, so that these are no distances; "
                f"{_ADVICE}"
            )
    return {name: np.ascontiguousarray(array) for name, array in arrays.items()}


if __name__ == "__main__":
    sys.exit(main())
