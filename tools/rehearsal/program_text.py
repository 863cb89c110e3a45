"""Reading a compiled program's text (HLO): what runs how often, and what it works on."""

import dataclasses
import functools
import math
import re
from collections.abc import Iterator

_BITS = {"pred": 8, "bf16": 16, "token": 0, "opaque": 0}
_ARRAY = re.compile(r"\b(\w+)\[([\d,<=]*)\](\{[^{}]*\})?")
_SPACE = re.compile(r"S\((\d+)\)")
_NAME = re.compile(r"%([\w.\-]+)")
_HEADER = re.compile(r"^(ENTRY )?%?([\w.\-]+) (?:\(.*)?\{$")
_LINE = re.compile(r"^\s+(ROOT )?%?([\w.\-]+) = ")


@dataclasses.dataclass(frozen=True)
class Array:
    """An array: its bytes, and where it lies (0 is the device's main memory)."""

    size: int
    space: int = 0


@dataclasses.dataclass(frozen=True)
class Instruction:
    """An operation of a program.

    Attributes:
        name: unique in its computation.
        opcode: such as "fusion" or "all-gather-start".
        results: the arrays that it makes, those of a tuple in order.
        operands: names of the instructions that it reads.
        literal: what stands between its parentheses.
        attributes: what follows them.
    """

    name: str
    opcode: str
    results: tuple[Array, ...]
    operands: tuple[str, ...]
    literal: str
    attributes: str

    def called(self, attribute: str) -> list[str]:
        """Names of the computations that an attribute such as "body" gives."""
        found = re.search(rf"\b{attribute}=(\{{[^}}]*\}}|%?[\w.\-]+)", self.attributes)
        return [] if found is None else re.findall(r"[\w.\-]+", found.group(1))

    @property
    def index(self) -> int:
        """The place in the tuple that a "get-tuple-element" takes."""
        found = re.search(r"\bindex=(\d+)", self.attributes)
        return int(found.group(1)) if found else 0


@dataclasses.dataclass(frozen=True)
class Computation:
    """A function of a program: its instructions by name, in order, and the last of them."""

    name: str
    instructions: dict[str, Instruction]
    root: str

    def __iter__(self) -> Iterator[Instruction]:
        return iter(self.instructions.values())

    @functools.cached_property
    def parameters(self) -> list[Instruction]:
        """By number."""
        found = [one for one in self if one.opcode == "parameter"]
        return sorted(found, key=lambda one: int(one.literal or 0))

    @functools.cached_property
    def users(self) -> dict[str, list[Instruction]]:
        """Who reads each instruction."""
        found: dict[str, list[Instruction]] = {name: [] for name in self.instructions}
        for one in self:
            for operand in dict.fromkeys(one.operands):
                found.setdefault(operand, []).append(one)
        return found


@dataclasses.dataclass(frozen=True)
class ProgramText:
    """A parsed program."""

    computations: dict[str, Computation]
    entry: str


def parse(text: str) -> ProgramText:
    """Read what `Compiled.as_text()` writes.

    Raises:
        ValueError: there is no entry computation.
    """
    computations: dict[str, Computation] = {}
    entry = name = root = None
    instructions: dict[str, Instruction] = {}
    for line in text.splitlines():
        if name is None:
            header = _HEADER.match(line)
            if header is not None and not line.startswith("HloModule"):
                name, root, instructions = header.group(2), None, {}
                entry = name if header.group(1) else entry
            continue
        # Not any line that starts so: a kernel's own text may go over several lines.
        if line.rstrip() == "}" or line.startswith("}, execution_thread="):
            last = root or next(reversed(instructions), "")
            computations[name] = Computation(name, instructions, last)
            name = None
            continue
        start = _LINE.match(line)
        if start is None:
            continue
        one = _instruction(start.group(2), line[start.end() :])
        instructions[one.name] = one
        root = one.name if start.group(1) else root
    if entry is None:
        raise ValueError("the text holds no compiled program: no entry computation")
    return ProgramText(computations, entry)


def _instruction(name: str, text: str) -> Instruction:
    kind_end = _closing(text, 0) + 1 if text.startswith("(") else text.index(" ")
    kind, rest = text[:kind_end], text[kind_end:].lstrip()
    opening = rest.index("(")
    closing = _closing(rest, opening)
    inside = rest[opening + 1 : closing]
    results = tuple(_arrays(kind))
    return Instruction(
        name,
        rest[:opening],
        results,
        tuple(_NAME.findall(inside)),
        inside,
        rest[closing + 1 :],
    )


def _closing(text: str, opening: int) -> int:
    depth = 0
    for place in range(opening, len(text)):
        if text[place] == "(":
            depth += 1
        elif text[place] == ")":
            depth -= 1
            if depth == 0:
                return place
    return len(text) - 1


def _arrays(kind: str) -> Iterator[Array]:
    for element, sides, layout in _ARRAY.findall(kind):
        digits = re.search(r"\d+", element)
        bits = _BITS.get(element, int(digits.group()) if digits else 0)
        count = math.prod(int(side.lstrip("<=")) for side in sides.split(",") if side)
        space = _SPACE.search(layout)
        yield Array((count * bits + 7) // 8, int(space.group(1)) if space else 0)
