"""How many bytes a compiled program moves between a device and its main memory."""

from collections.abc import Sequence

from tools.rehearsal.loops import Visit
from tools.rehearsal.program_text import (
    Array,
    Computation,
    Instruction,
    ProgramText,
)

_FREE = {
    "parameter",
    "constant",
    "tuple",
    "get-tuple-element",
    "bitcast",
    "while",
    "conditional",
    "call",
    "after-all",
    "partition-id",
    "replica-id",
    "async-start",
    "async-update",
    "async-done",
    "copy-done",
    "opt-barrier",
    "optimization-barrier",
}
"""What moves nothing itself. A "-done" is free too: its "-start" counts."""

_THROUGH = {"bitcast", "convert", "copy", "reshape"}


def memory_traffic(program: ProgramText, visited: Sequence[Visit]) -> float:
    """Bytes read from and written to main memory in a call of the program, by each device.

    Each operation outside fusions, and each fusion as a whole, reads its operands once and writes
    its results once, unless they lie in on-chip memory; turns of loops are multiplied in. Where a
    fusion takes only slices of an operand, or puts a slice into an array in place, the slices
    count, as of stacked layers in a loop. What stays on the chip between operations makes the true
    figure smaller, what is read twice makes it larger.
    """
    total = 0.0
    for visit in visited:
        if not visit.fused:
            moved = sum(_moved(program, visit.computation, one) for one in visit.computation)
            total += visit.times * moved
    return total


def _moved(program: ProgramText, computation: Computation, one: Instruction) -> int:
    if one.opcode in _FREE or one.opcode.endswith("-done"):
        return 0
    known = computation.instructions
    operands = [known[name].results for name in one.operands if name in known]
    if one.opcode == "fusion":
        return _moved_by_fusion(program, one, operands)
    if one.opcode == "copy-start":
        return _bytes(one.results[:2])
    if one.opcode == "dynamic-update-slice":
        return 2 * _bytes(operands[1])
    if one.opcode in ("dynamic-slice", "slice", "gather"):
        return 2 * _bytes(one.results)
    if one.opcode.endswith("-start"):
        return 2 * sum(_bytes(arrays) for arrays in operands)
    return _bytes(one.results) + sum(_bytes(arrays) for arrays in operands)


def _bytes(arrays: Sequence[Array]) -> int:
    return sum(array.size for array in arrays if array.space == 0)


def _called(program: ProgramText, fusion: Instruction) -> Computation:
    return program.computations[fusion.called("calls")[0]]


def _moved_by_fusion(
    program: ProgramText, fusion: Instruction, operands: list[tuple[Array, ...]]
) -> int:
    inner = _called(program, fusion)
    total = 0
    in_place: set[str] = set()
    for parameter, arrays in zip(inner.parameters, operands, strict=False):
        whole = _bytes(arrays)
        if whole:
            part, updated = _part_used(program, inner, parameter)
            in_place |= updated
            total += whole if part is None else min(part, whole)
    root = inner.instructions[inner.root]
    made = [root.name]
    if root.opcode == "tuple":
        made = list(root.operands)
    for name, array in zip(made, fusion.results, strict=False):
        if array.space:
            continue
        behind = _behind(inner, name)
        if behind.opcode == "dynamic-update-slice" and behind.name in in_place:
            update = inner.instructions[behind.operands[1]]
            total += min(array.size, sum(one.size for one in update.results))
        else:
            total += array.size
    return total


def _behind(inner: Computation, name: str) -> Instruction:
    one = inner.instructions[name]
    while one.opcode in _THROUGH and one.operands:
        one = inner.instructions[one.operands[0]]
    return one


def _part_used(
    program: ProgramText, inner: Computation, parameter: Instruction
) -> tuple[int | None, set[str]]:
    """Bytes of a parameter that a fusion reads, None for all, and the updates made in it."""
    part = 0
    updated: set[str] = set()
    waiting = [parameter]
    while waiting:
        one = waiting.pop()
        if one.name == inner.root:
            return None, updated
        for user in inner.users[one.name]:
            if user.opcode in ("dynamic-slice", "slice") or (
                user.opcode == "gather" and user.operands[0] == one.name
            ):
                part += sum(array.size for array in user.results)
            elif user.opcode == "dynamic-update-slice" and user.operands[0] == one.name:
                # What is overwritten need not be read.
                updated.add(user.name)
            elif user.opcode in _THROUGH:
                waiting.append(user)
            elif user.opcode == "fusion":
                # One within a fusion: what a product reads, for one.
                nested = _called(program, user)
                for number, operand in enumerate(user.operands):
                    if operand == one.name:
                        read, within = _part_used(program, nested, nested.parameters[number])
                        if read is None or within:
                            return None, updated
                        part += read
            else:
                return None, updated
    return part, updated
