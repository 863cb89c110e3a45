"""Slices of TPUs that this machine does not have, from the TPU's own compiler."""

import contextlib
import importlib.util
import os
import re
import sys
from collections.abc import Iterator
from typing import Any

from genjax.errors import UserError
from tools.rehearsal.chips import chip_of

KNOWN = (
    "v4:2x2x1 to v4:16x16x16, v5e:2x2 to v5e:16x16, v5p:2x2x1 to v5p:16x16x16, "
    "v6e:1x1 to v6e:16x16, tpu7x:2x2x1 to tpu7x:4x4x4"
)
"""Shapes that the compiler takes."""

_QUIET = {
    # No look for the machine's own TPU, nor for what a cloud would tell of it.
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-8",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_MIN_LOG_LEVEL": "3",
    "TF_CPP_MIN_LOG_LEVEL": "3",
    # Several rehearsals at a time: none of them holds a device.
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
}


def prepare() -> None:
    """Set what JAX and the compiler read when they start; call before JAX is used.

    Raises:
        UserError: the compiler is not installed.
    """
    if importlib.util.find_spec("libtpu") is None:
        raise UserError(
            "a rehearsal compiles with the TPU's own compiler, libtpu, which is not installed\n"
            "Install it; no TPU is needed: make install VENV=.venv-rehearse EXTRAS=rehearse"
        )
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    for name, value in _QUIET.items():
        os.environ.setdefault(name, value)


def devices_of(topology: str) -> list[Any]:
    """The devices of a slice such as "v5e:16x16", or of several: "2*v5e:16x16".

    A device is a core or a chip; slices count from 0 in their `slice_index`.

    Raises:
        UserError: the compiler knows no such slice.
    """
    from jax.errors import JaxRuntimeError
    from jax.experimental import topologies

    slices, name = split_slices(topology)
    chip_of(name)
    options = {"num_slices": slices} if slices > 1 else {}
    try:
        with native_messages_dropped():
            described = topologies.get_topology_desc(platform="tpu", topology_name=name, **options)
    except JaxRuntimeError as error:
        reason = str(error).splitlines()[0].partition(": ")[2]
        raise UserError(
            f"--topology {topology} is refused: {reason}\nShapes that are known to work: {KNOWN}"
        ) from error
    return list(described.devices)


def split_slices(topology: str) -> tuple[int, str]:
    """The number of slices and the name of each: "2*v5e:16x16" is (2, "v5e:16x16")."""
    found = re.fullmatch(r"(?:(\d+)\*)?(.+)", topology)
    assert found is not None
    return max(1, int(found.group(1) or 1)), found.group(2)


@contextlib.contextmanager
def native_messages_dropped() -> Iterator[None]:
    """Drop what libraries write past Python to the standard error.

    The compiler writes pages there even where all is well, and JAX raises what matters.
    """
    sys.stderr.flush()
    kept = os.dup(2)
    try:
        with open(os.devnull, "wb") as nowhere:
            os.dup2(nowhere.fileno(), 2)
            try:
                yield
            finally:
                sys.stderr.flush()
                os.dup2(kept, 2)
    finally:
        os.close(kept)
