"""What the benchmarks share: peers timed in turn, the machine's own ceiling, dated records.

Each peer runs in a process of its own, so that neither thread pool nor allocator of one disturbs
the other, and blocks of calls alternate, so that a noisy moment hits all of them.
"""

import dataclasses
import json
import multiprocessing
import os
import statistics
import time
from collections.abc import Callable, Collection, Mapping
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np

Call = Callable[[], Any]
"""A piece of work that waits for its own result."""


@dataclasses.dataclass(frozen=True)
class Part:
    """A kind of call among several, such as steps with a regulariser that few steps have.

    Attributes:
        call: the work.
        share: how much of all calls are of this kind.
    """

    call: Call
    share: float


Work = Call | Mapping[str, Part]
"""What is timed: one call, or several kinds of it, whose times are averaged by their shares."""

Factory = Callable[[], tuple[Work, dict[str, Any]]]
"""Makes the work in its own process, and tells what is known about it; must be picklable.

A fact that is a function is asked for after the last call, such as the memory used at most.
"""


@dataclasses.dataclass(frozen=True)
class Timing:
    """Seconds of a call.

    Attributes:
        first: the first call, which compiles.
        median: of all timed calls.
        low: their 10% point.
        high: their 90% point.
        ratio: the median, over blocks, of a block's median to that of the reference's block.
        facts: what the factory told.
        parts: the median of each kind of call, where there are several.
    """

    first: float
    median: float
    low: float
    high: float
    ratio: float
    facts: dict[str, Any]
    parts: dict[str, float]


Sample = tuple[float, dict[str, float]]
"""Seconds of a call, averaged over its kinds, and those of each kind."""


def compare(
    peers: Mapping[str, Factory],
    blocks: int,
    block_size: int,
    references: Collection[str] = (),
) -> dict[str, Timing]:
    """Time peers in alternating blocks; each block begins with a call that is not timed.

    Args:
        peers: the factory of each.
        blocks: blocks of each peer, after one that is not counted.
        block_size: timed calls of a block (of each kind).
        references: ratios are to the fastest of these; to the first peer by default.
    """
    context = multiprocessing.get_context("spawn")
    connections: dict[str, Connection] = {}
    workers = []
    firsts: dict[str, float] = {}
    for name, factory in peers.items():
        connections[name], other = context.Pipe()
        workers.append(context.Process(target=_serve, args=(factory, other), daemon=True))
        workers[-1].start()
        # Without this end of its own, a worker that fails is noticed.
        other.close()
        firsts[name] = connections[name].recv()
    samples: dict[str, list[list[Sample]]] = {name: [] for name in peers}
    for block in range(blocks + 1):
        for name, connection in connections.items():
            connection.send(block_size)
            values = connection.recv()
            if block:
                samples[name].append(values)
    facts: dict[str, dict[str, Any]] = {}
    for (name, connection), worker in zip(connections.items(), workers, strict=True):
        connection.send(0)
        facts[name] = connection.recv()
        worker.join()
    medians = {
        name: [statistics.median(total for total, _ in block) for block in values]
        for name, values in samples.items()
    }
    reference = min(
        references or [next(iter(peers))], key=lambda name: statistics.median(medians[name])
    )
    timings = {}
    for name, values in samples.items():
        all_values = [sample for block in values for sample in block]
        totals = [total for total, _ in all_values]
        pairs = zip(medians[name], medians[reference], strict=True)
        low, high = np.quantile(totals, [0.1, 0.9])
        timings[name] = Timing(
            firsts[name],
            statistics.median(totals),
            float(low),
            float(high),
            statistics.median(a / b for a, b in pairs),
            facts[name],
            {
                part: statistics.median(seconds[part] for _, seconds in all_values)
                for part in all_values[0][1]
            },
        )
    return timings


def _serve(factory: Factory, connection: Connection) -> None:
    """Time blocks of calls, of the sizes that are asked for, until asked for none."""
    work, facts = factory()
    parts = {"": Part(work, 1.0)} if callable(work) else work
    began = time.perf_counter()
    for part in parts.values():
        part.call()
    connection.send(time.perf_counter() - began)
    first = next(iter(parts.values()))
    while block_size := connection.recv():
        first.call()
        samples: list[Sample] = []
        for _ in range(block_size):
            seconds = {}
            for name, part in parts.items():
                began = time.perf_counter()
                part.call()
                seconds[name] = time.perf_counter() - began
            total = sum(part.share * seconds[name] for name, part in parts.items())
            samples.append((total, {} if callable(work) else seconds))
        connection.send(samples)
    connection.send({name: fact() if callable(fact) else fact for name, fact in facts.items()})


def program_memory(compiled: Any) -> int:
    """Bytes that a compiled program holds: arguments, results and temporaries."""
    analysis = compiled.memory_analysis()
    return (
        analysis.argument_size_in_bytes
        + analysis.output_size_in_bytes
        - analysis.alias_size_in_bytes
        + analysis.temp_size_in_bytes
    )


def matmul_ceiling(dtype: str = "float32") -> float:
    """Floating-point operations a second of the best square product of several sizes.

    In float32 an accelerator rounds the factors as JAX does by default.
    """
    import jax

    best = 0.0
    product = jax.jit(lambda a, b: a @ b)
    larger = () if jax.default_backend() == "cpu" else (4096, 8192)
    for size in (1024, 2048, 3072, *larger):
        # Ones would take less power, and some devices then run faster.
        matrix = jax.random.normal(jax.random.key(0), (size, size), dtype)
        product(matrix, matrix).block_until_ready()
        for _ in range(6):
            began = time.perf_counter()
            product(matrix, matrix).block_until_ready()
            best = max(best, 2 * size**3 / (time.perf_counter() - began))
    return best


def has_torch() -> bool:
    """Whether the peer is installed."""
    import importlib.util

    return importlib.util.find_spec("torch") is not None


def limit_cores(count: int | None) -> int:
    """Use only so many processor cores, here and in the peers; returns how many there are."""
    if count:
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:count])
    return len(os.sched_getaffinity(0))


def write_record(path: Path, rows: list[dict[str, Any]]) -> None:
    """Write results with the environment that they were measured in."""
    from importlib.metadata import version

    from train.run_directory import environment

    facts = environment()
    if has_torch():
        facts["versions"]["torch"] = version("torch")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"environment": facts, "rows": rows}, indent=2) + "\n")
