"""From a profiler's trace to a table of the operations that take longest."""

import re
from collections import defaultdict
from collections.abc import Container, Iterable, Mapping
from typing import Any, NamedTuple

import jax

LONGEST = 50
"""Operations in a table; the rest is summed."""


class Operation(NamedTuple):
    """One execution of an operation of a compiled program on a device."""

    device: str
    line: str
    """What runs one thing at a time: a core, a stream, a thread."""
    program: str
    name: str
    start: float
    """Nanoseconds."""
    duration: float
    source: str
    """Where in the model it comes from, where the trace says so."""


def read_operations(profile: Any) -> list[Operation]:
    """The operations of a trace: of TPUs and GPUs, or else of the CPU's threads.

    A TPU's plane has a line of them, a GPU's a line of kernels for each stream. On CPUs they are
    those events of the host's threads that name an operation.

    Args:
        profile: a `jax.profiler.ProfileData`.
    """
    found: list[Operation] = []
    planes = list(profile.planes)
    for plane in planes:
        if not re.fullmatch(r"/device:(TPU|GPU):\d+", plane.name):
            continue
        lines = list(plane.lines)
        chosen = [line for line in lines if line.name == "XLA Ops"] or [
            line for line in lines if line.name.startswith("Stream")
        ]
        for line in chosen:
            for event in line.events:
                stats = dict(event.stats)
                found.append(_operation(plane.name, line.name, event, stats))
    if found:
        return found
    for plane in planes:
        if plane.name == "/host:CPU":
            for line in plane.lines:
                for event in line.events:
                    # Its name is never that of an operation otherwise, and stats cost time to read.
                    if "::" in event.name or event.name.startswith("end: "):
                        continue
                    stats = dict(event.stats)
                    if "hlo_op" in stats:
                        device = f"CPU:{stats.get('device_ordinal', 0)}"
                        found.append(_operation(device, line.name, event, stats))
    return found


def _operation(device: str, line: str, event: Any, stats: Mapping[str | None, Any]) -> Operation:
    # A TPU's events are called by the whole instruction, "%fusion.3 = f32[8]{0} fusion(..)".
    name = str(stats.get("hlo_op") or event.name).split(" = ")[0].lstrip("%")
    program = str(stats.get("hlo_module") or "").split("(")[0]
    source = str(stats.get("tf_op") or "")
    return Operation(device, line, program, name, event.start_ns, event.duration_ns, source)


def own_times(operations: Iterable[Operation]) -> list[float]:
    """Nanoseconds of each operation less those of the operations inside of it on the same line.

    A loop holds the operations of its body, for one.
    """
    operations = list(operations)
    own = [operation.duration for operation in operations]
    by_line: dict[tuple[str, str], list[int]] = defaultdict(list)
    for index, operation in enumerate(operations):
        by_line[operation.device, operation.line].append(index)
    for indices in by_line.values():
        indices.sort(key=lambda index: (operations[index].start, -operations[index].duration))
        outer: list[int] = []
        for index in indices:
            start = operations[index].start
            while outer and start >= operations[outer[-1]].start + operations[outer[-1]].duration:
                outer.pop()
            if outer:
                own[outer[-1]] -= operations[index].duration
            outer.append(index)
    return [max(duration, 0.0) for duration in own]


def idle_share(operations: Iterable[Operation]) -> float:
    """Share of the time from a device's first operation to its last in which it ran none.

    The mean over devices. Steps that follow one another without a gap leave none.
    """
    by_device: dict[str, list[tuple[float, float]]] = defaultdict(list)
    for operation in operations:
        span = operation.start, operation.start + operation.duration
        by_device[operation.device].append(span)
    shares = []
    for spans in by_device.values():
        spans.sort()
        busy, end = 0.0, spans[0][0]
        for start, stop in spans:
            busy += max(0.0, stop - max(start, end))
            end = max(end, stop)
        window = end - spans[0][0]
        shares.append(1 - busy / window if window > 0 else 0.0)
    return sum(shares) / len(shares) if shares else 0.0


def summary(
    operations: list[Operation], sources: Mapping[tuple[str, str], str], longest: int = LONGEST
) -> dict[str, Any]:
    """The operations by name, those that take longest first, as the table holds them.

    Args:
        operations: of `read_operations`.
        sources: where in the model an operation comes from, by program and name.
        longest: how many to list.

    Returns:
        "devices", their number; "idle_share"; "seconds" of all operations; "operations": of each
        "program", "name", "source", "seconds", "count" and the "share" of all seconds; "others",
        the sum of those not listed. Seconds and counts are the mean over devices.
    """
    devices = sorted({operation.device for operation in operations})
    times: dict[tuple[str, str], float] = defaultdict(float)
    counts: dict[tuple[str, str], int] = defaultdict(int)
    told: dict[tuple[str, str], str] = {}
    for operation, time_taken in zip(operations, own_times(operations), strict=True):
        key = operation.program, operation.name
        times[key] += time_taken / 1e9 / len(devices)
        counts[key] += 1
        told[key] = operation.source or sources.get(key, "")
    total = sum(times.values())
    ranked = sorted(times, key=lambda key: -times[key])

    def row(keys: list[tuple[str, str]]) -> dict[str, Any]:
        seconds = sum(times[key] for key in keys)
        count = sum(counts[key] for key in keys) / len(devices)
        return {
            "seconds": round(seconds, 9),
            "share": round(seconds / total, 4) if total else 0.0,
            "count": int(count) if count.is_integer() else round(count, 2),
        }

    rows = [
        {"program": key[0], "name": key[1], "source": told[key], **row([key])}
        for key in ranked[:longest]
    ]
    rest = ranked[longest:]
    return {
        "devices": len(devices),
        "idle_share": round(idle_share(operations), 4),
        "seconds": round(total, 9),
        "operations": rows,
        "others": {"names": len(rest), **row(rest)} if rest else None,
    }


_INSTRUCTION = re.compile(r'^\s*(?:ROOT )?%?([\w.-]+) = .*metadata={[^}]*op_name="([^"]*)"', re.M)


def sources(programs: Container[str]) -> dict[tuple[str, str], str]:
    """Where in the model each operation of these programs comes from, where XLA knows.

    Names such as "transpose(jvp(Transformer))/block_0/mlp/dot_general", by program and name of the
    operation. Only programs that are in memory are found.
    """
    found: dict[tuple[str, str], str] = {}
    for executable in jax.devices()[0].client.live_executables():
        for module in executable.hlo_modules():
            if module.name in programs:
                for name, source in _INSTRUCTION.findall(module.to_string()):
                    # The first part is the program again.
                    found[module.name, name] = re.sub(r"^jit\(\w+\)/", "", source)
    return found
