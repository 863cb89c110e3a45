"""How often each part of a compiled program runs."""

import dataclasses
import math
import re
from collections.abc import Callable

from tools.rehearsal.program_text import Computation, Instruction, ProgramText


@dataclasses.dataclass(frozen=True)
class Visit:
    """A computation, how often a call of the program runs it, and whether within a fusion."""

    computation: Computation
    times: float
    fused: bool


def visits(program: ProgramText) -> tuple[list[Visit], int]:
    """Every computation that runs, with the turns of loops multiplied in.

    Of a conditional's branches the longest counts.

    Returns:
        The visits, and the number of loops whose turns the text does not tell: they count once.
    """
    found: list[Visit] = []
    unknown = 0

    def visit(name: str, times: float, fused: bool) -> None:
        nonlocal unknown
        computation = program.computations[name]
        found.append(Visit(computation, times, fused))
        for one in computation:
            match one.opcode:
                case "while":
                    turns = loop_turns(program, computation, one)
                    unknown += turns is None
                    turns = 1 if turns is None else turns
                    for inner in (*one.called("body"), *one.called("condition")):
                        visit(inner, times * turns, fused)
                case "fusion":
                    for inner in one.called("calls"):
                        visit(inner, times, True)
                case "call":
                    for inner in one.called("to_apply"):
                        visit(inner, times, fused)
                case "async-start":
                    for inner in one.called("calls"):
                        visit(inner, times, fused)
                case "conditional":
                    branches = one.called("branch_computations") or [
                        *one.called("true_computation"),
                        *one.called("false_computation"),
                    ]
                    if branches:
                        longest = max(
                            branches, key=lambda n: len(program.computations[n].instructions)
                        )
                        visit(longest, times, fused)

    visit(program.entry, 1.0, False)
    return found, unknown


def loop_turns(program: ProgramText, outer: Computation, loop: Instruction) -> int | None:
    """How often a loop runs its body, or None where its text does not tell.

    XLA:CPU writes the number down. XLA:TPU does not: there the condition compares a counter with
    a constant, the counter's start is in the tuple that the loop is given, its step in the body.
    """
    written = re.search(r'"known_trip_count":\{"n":"(\d+)"\}', loop.attributes)
    if written is not None:
        return int(written.group(1))
    condition = program.computations[loop.called("condition")[0]]
    body = program.computations[loop.called("body")[0]]
    start = outer.instructions.get(loop.operands[0])
    if start is None or start.opcode != "tuple":
        return None

    def constant(computation: Computation, name: str) -> int | None:
        """The value of an instruction; of what the loop carries unchanged, its first value."""
        one = _source(computation, name)
        if one.opcode == "constant" and re.fullmatch(r"-?\d+", one.literal):
            return int(one.literal)
        place = _carried(computation, one)
        if place is not None and _carried(body, _source(body, _kept(body, place))) == place:
            return constant(outer, start.operands[place])
        return None

    compare = _compare(program, condition)
    if compare is None:
        return None
    direction, left, right = compare
    counter = _carried(condition, _source(condition, left))
    limit = constant(condition, right)
    if counter is None or limit is None:
        return None
    first = constant(outer, start.operands[counter])
    step = None
    added = _source(body, _kept(body, counter))
    if added.opcode == "fusion":
        step = _step_of_fusion(program, body, added, constant)
    elif added.opcode == "add":
        steps = [constant(body, name) for name in added.operands]
        step = next((one for one in steps if one is not None), None)
    if first is None or not step:
        return None
    match direction:
        case "LT" | "GT" | "NE":
            return max(0, math.ceil((limit - first) / step))
        case "LE" | "GE":
            return max(0, (limit - first) // step + 1)
    return None


def _source(computation: Computation, name: str) -> Instruction:
    """The instruction behind copies."""
    one = computation.instructions[name]
    while one.opcode in ("copy", "bitcast", "convert", "copy-done", "copy-start") and one.operands:
        one = computation.instructions[one.operands[0]]
    return one


def _carried(computation: Computation, one: Instruction) -> int | None:
    """Which of the values that a loop carries an instruction takes, if it is one."""
    if one.opcode != "get-tuple-element":
        return None
    return one.index if computation.instructions[one.operands[0]].opcode == "parameter" else None


def _kept(body: Computation, place: int) -> str:
    root = body.instructions[body.root]
    return root.operands[place] if root.opcode == "tuple" else body.root


def _compare(program: ProgramText, condition: Computation) -> tuple[str, str, str] | None:
    """Direction, and the names of both sides, of the comparison that a condition makes."""
    root = condition.instructions[condition.root]
    names = dict(enumerate(root.operands))
    if root.opcode == "fusion":
        inner = program.computations[root.called("calls")[0]]
        root = inner.instructions[inner.root]
        if root.opcode != "compare":
            return None
        sides = [_source(inner, name) for name in root.operands]
        if any(side.opcode != "parameter" for side in sides):
            return None
        left, right = (names[int(side.literal)] for side in sides)
    elif root.opcode == "compare":
        left, right = root.operands
    else:
        return None
    direction = re.search(r"direction=(\w+)", root.attributes)
    return None if direction is None else (direction.group(1), left, right)


def _step_of_fusion(
    program: ProgramText,
    body: Computation,
    fusion: Instruction,
    constant: Callable[[Computation, str], int | None],
) -> int | None:
    """What a fusion that is a single addition adds to a loop's counter."""
    inner = program.computations[fusion.called("calls")[0]]
    root = inner.instructions[inner.root]
    for name in root.operands if root.opcode == "add" else ():
        side = _source(inner, name)
        if side.opcode == "constant" and re.fullmatch(r"-?\d+", side.literal):
            return int(side.literal)
        if side.opcode == "parameter":
            value = constant(body, fusion.operands[int(side.literal)])
            if value is not None:
                return value
    return None
