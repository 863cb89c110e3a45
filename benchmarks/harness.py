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
from collections.abc import Callable, Mapping
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np

Call = Callable[[], Any]
"""A piece of work that waits for its own result."""

Factory = Callable[[], tuple[Call, dict[str, Any]]]
"""Makes the work in its own process, and tells what is known about it; must be picklable."""


@dataclasses.dataclass(frozen=True)
class Timing:
    """Seconds of a call.

    Attributes:
        first: the first call, which compiles.
        median: of all timed calls.
        low: their 10% point.
        high: their 90% point.
        ratio: the median, over blocks, of a block's median to that of the first peer's block.
        facts: what the factory told.
    """

    first: float
    median: float
    low: float
    high: float
    ratio: float
    facts: dict[str, Any]


def compare(peers: Mapping[str, Factory], blocks: int, block_size: int) -> dict[str, Timing]:
    """Time peers in alternating blocks; each block begins with a call that is not timed."""
    context = multiprocessing.get_context("spawn")
    connections: dict[str, Connection] = {}
    workers = []
    firsts: dict[str, tuple[float, dict[str, Any]]] = {}
    for name, factory in peers.items():
        connections[name], other = context.Pipe()
        workers.append(context.Process(target=_serve, args=(factory, other), daemon=True))
        workers[-1].start()
        firsts[name] = connections[name].recv()
    seconds: dict[str, list[list[float]]] = {name: [] for name in peers}
    for block in range(blocks + 1):
        for name, connection in connections.items():
            connection.send(block_size)
            values = connection.recv()
            if block:
                seconds[name].append(values)
    for connection, worker in zip(connections.values(), workers, strict=True):
        connection.send(0)
        worker.join()
    medians = {name: [statistics.median(b) for b in values] for name, values in seconds.items()}
    reference = medians[next(iter(peers))]
    timings = {}
    for name, values in seconds.items():
        all_values = [value for block in values for value in block]
        ratio = statistics.median(a / b for a, b in zip(medians[name], reference, strict=True))
        low, high = np.quantile(all_values, [0.1, 0.9])
        first, facts = firsts[name]
        timings[name] = Timing(
            first, statistics.median(all_values), float(low), float(high), ratio, facts
        )
    return timings


def _serve(factory: Factory, connection: Connection) -> None:
    """Time blocks of calls, of the sizes that are asked for, until asked for none."""
    call, facts = factory()
    began = time.perf_counter()
    call()
    connection.send((time.perf_counter() - began, facts))
    while block_size := connection.recv():
        times = []
        for _ in range(block_size + 1):
            began = time.perf_counter()
            call()
            times.append(time.perf_counter() - began)
        connection.send(times[1:])


def program_memory(compiled: Any) -> int:
    """Bytes that a compiled program holds: arguments, results and temporaries."""
    analysis = compiled.memory_analysis()
    return (
        analysis.argument_size_in_bytes
        + analysis.output_size_in_bytes
        - analysis.alias_size_in_bytes
        + analysis.temp_size_in_bytes
    )


def matmul_ceiling() -> float:
    """Floating-point operations a second of the best square float32 product of several sizes."""
    import jax
    import jax.numpy as jnp

    best = 0.0
    product = jax.jit(lambda a, b: a @ b)
    for size in (1024, 2048, 3072):
        matrix = jnp.ones((size, size), jnp.float32)
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
