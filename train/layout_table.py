"""Which parts of a tree each device holds, as tables: arrays that are alike share a line."""

import dataclasses
import itertools
import math
import re
from collections.abc import Iterable
from typing import Any

import jax
from jax.sharding import NamedSharding
from rich.table import Table
from rich.text import Text

from genjax.parallel.partition import path_name

_LISTED = 3
"""Numbers in a path that are written out; more are shown as the first and the last."""


@dataclasses.dataclass(frozen=True)
class Line:
    """Arrays that are alike: of the same shape and layout, their paths but for numbers.

    Attributes:
        path: of all of them, such as "layers_{0..11}/attention/qkv/kernel".
        count: how many.
        shape: of each.
        layout: type, shape and over which mesh axes each dimension is split, such as
            "float32[1024, 4096/fsdp]".
        whole: whether every device has all of it.
        total: bytes of all of them.
        own: bytes of them on each device.
    """

    path: str
    count: int
    shape: tuple[int, ...]
    layout: str
    whole: bool
    total: int
    own: int


@dataclasses.dataclass(frozen=True)
class Size:
    """A tree's numbers and bytes.

    Attributes:
        count: numbers in all its arrays.
        total: their bytes.
        own: bytes on each device.
        whole: bytes of arrays that every device has all of.
    """

    count: int
    total: int
    own: int
    whole: int


def layout_text(shape: tuple[int, ...], dtype: Any, sharding: NamedSharding) -> str:
    """An array's type, shape and layout: "float32[1024, 4096/fsdp]"."""
    parts: list[str] = []
    for size, entry in itertools.zip_longest(shape, sharding.spec):
        names = (entry,) if isinstance(entry, str) else entry or ()
        split = (name for name in names if sharding.mesh.shape[name] > 1)
        parts.append("/".join([str(size), *split]))
    return f"{dtype}[{', '.join(parts)}]"


def size_of(shapes: Any, shardings: Any) -> Size:
    """The size of a tree of arrays or their shapes."""
    lines = layout_lines(shapes, shardings)
    return Size(
        count=sum(line.count * math.prod(line.shape) for line in lines),
        total=sum(line.total for line in lines),
        own=sum(line.own for line in lines),
        whole=sum(line.total for line in lines if line.whole),
    )


def layout_lines(shapes: Any, shardings: Any) -> list[Line]:
    """A line for each kind of array, in the order of the tree."""
    groups: dict[tuple[str, str], list[tuple[str, Any, NamedSharding]]] = {}
    leaves = jax.tree_util.tree_leaves_with_path(shapes)
    for (path, leaf), sharding in zip(leaves, jax.tree.leaves(shardings), strict=True):
        name = path_name(path)
        key = (re.sub(r"\d+", "#", name), layout_text(leaf.shape, leaf.dtype, sharding))
        groups.setdefault(key, []).append((name, leaf, sharding))
    lines: list[Line] = []
    for (_, layout), alike in groups.items():
        _, leaf, sharding = alike[0]
        one = len(alike) * leaf.dtype.itemsize
        lines.append(
            Line(
                path=_common_path([name for name, _, _ in alike]),
                count=len(alike),
                shape=leaf.shape,
                layout=layout,
                whole=sharding.is_fully_replicated,
                total=one * math.prod(leaf.shape),
                own=one * math.prod(sharding.shard_shape(leaf.shape)),
            )
        )
    return lines


def _common_path(paths: list[str]) -> str:
    """Paths that differ in numbers alone as one: a/{0..11}/b."""
    words = re.split(r"\d+", paths[0])
    numbers = zip(*(map(int, re.findall(r"\d+", path)) for path in paths), strict=True)
    parts = [words[0]]
    for values, word in zip(map(sorted, map(set, numbers)), words[1:], strict=True):
        if len(values) == 1:
            parts.append(str(values[0]))
        elif len(values) <= _LISTED:
            parts.append(f"{{{','.join(map(str, values))}}}")
        else:
            parts.append(f"{{{values[0]}..{values[-1]}}}")
        parts.append(word)
    return "".join(parts)


def layout_table(lines: Iterable[Line], title: str) -> Table:
    """The lines as a table."""
    table = Table(box=None, pad_edge=False)
    table.add_column(title, overflow="fold")
    table.add_column("arrays", no_wrap=True)
    table.add_column("on each device", no_wrap=True, justify="right")
    for line in lines:
        times = f"{line.count} x " if line.count > 1 else ""
        arrays = Text(times + line.layout)
        table.add_row(Text(line.path), arrays, scaled(line.own, "B", 1024))
    return table


def scaled(number: float, unit: str, base: int = 1000) -> str:
    """A number with a prefix: 3_700_000_000 FLOP as "3.70 GFLOP"."""
    prefixes = ["", "K", "M", "G", "T", "P", "E"]
    power = 0
    while abs(number) >= base and power < len(prefixes) - 1:
        number /= base
        power += 1
    infix = "i" if base == 1024 and power else ""
    return f"{number:.{2 if power else 0}f} {prefixes[power]}{infix}{unit}"
