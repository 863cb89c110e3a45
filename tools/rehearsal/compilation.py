"""A run's own step for a mesh: lowered, compiled, and what it takes of a chip's memory."""

import contextlib
import dataclasses
import math
import re
import tempfile
from collections.abc import Hashable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax.errors import JaxRuntimeError
from jax.experimental.compilation_cache import compilation_cache
from jax.sharding import Mesh

from tools.rehearsal.chips import Chip
from tools.rehearsal.roofline import Fabric
from tools.rehearsal.topology import native_messages_dropped
from train.program import Program


@dataclasses.dataclass(frozen=True)
class Memory:
    """Bytes of a chip's memory.

    Attributes:
        used: at the step's peak, or of what is known to be needed where it did not compile.
        available: of the chip; where the compiler refused, what it has to give.
        state: the train state's part.
        batch: the batch's part.
        temporary: activations and other results in between, at the peak.
        program: the compiled code.
    """

    used: float
    available: float
    state: float
    batch: float
    temporary: float
    program: float

    @property
    def fits(self) -> bool:
        """Whether a chip has enough."""
        return self.used <= self.available


def lower_step(program: Program, variant: Hashable, batch: Mapping[str, Any]) -> Any:
    """Lower a run's own step for its mesh, from shapes alone.

    Args:
        program: the run's.
        variant: which form of the step.
        batch: from `Program.abstract_batch`.
    """
    assert isinstance(program.mesh, Mesh)
    with jax.set_mesh(program.mesh):
        return program.step(variant).lower(program.abstract_state(), batch)


@contextlib.contextmanager
def _without_cache() -> Iterator[None]:
    """Leave JAX's cache of programs out: it cannot read back one for devices that are not here."""
    enabled = jax.config.jax_enable_compilation_cache  # pyright: ignore[reportAttributeAccessIssue]
    jax.config.update("jax_enable_compilation_cache", False)
    # What it was before is remembered until it is reset.
    compilation_cache.reset_cache()
    try:
        yield
    finally:
        jax.config.update("jax_enable_compilation_cache", enabled)
        compilation_cache.reset_cache()


def compile_with_text(lowered: Any) -> tuple[Any, str]:
    """Compile a lowered program and read the text of what the compiler made of it.

    `Compiled.as_text` fails on some programs with hand-written kernels, so the compiler is asked to
    write the text itself. The text is empty where neither works.
    """
    with tempfile.TemporaryDirectory() as folder, native_messages_dropped(), _without_cache():
        options = {"xla_dump_to": folder, "xla_dump_hlo_as_text": True}
        compiled = lowered.compile(compiler_options=options)
        written = sorted(Path(folder).glob("*after_optimizations.txt"))
        if written:
            # Small programs may be compiled on the way; the step's own is the largest.
            largest = max(written, key=lambda file: file.stat().st_size)
            return compiled, largest.read_text(encoding="utf-8", errors="replace")
        try:
            return compiled, compiled.as_text() or ""
        except JaxRuntimeError:
            return compiled, ""


def state_bytes(program: Program) -> int:
    """Bytes of the train state on each device."""
    return sum(
        math.prod(sharding.shard_shape(leaf.shape)) * _item_size(leaf)
        for leaf, sharding in zip(
            jax.tree.leaves(program.shapes), jax.tree.leaves(program.shardings), strict=True
        )
    )


def batch_bytes(batch: Mapping[str, Any]) -> int:
    """Bytes of an abstract batch on each device."""
    return sum(
        math.prod(one.sharding.shard_shape(one.shape)) * one.dtype.itemsize
        for one in batch.values()
    )


def _item_size(leaf: Any) -> int:
    if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        inside = jax.eval_shape(jax.random.key_data, leaf)
        return math.prod(inside.shape[leaf.ndim :]) * inside.dtype.itemsize
    return leaf.dtype.itemsize


def compiled_memory(compiled: Any, state: int, batch: int, fabric: Fabric) -> Memory:
    """What the compiler says that a step takes, per chip."""
    stats = compiled.memory_analysis()
    arguments = stats.argument_size_in_bytes
    fresh = stats.output_size_in_bytes - stats.alias_size_in_bytes
    peak = arguments + fresh + stats.temp_size_in_bytes
    code = stats.generated_code_size_in_bytes
    cores = fabric.cores
    return Memory(
        used=cores * (peak + code),
        available=fabric.chip.hbm,
        state=state,
        batch=batch,
        temporary=cores * (fresh + stats.temp_size_in_bytes),
        program=cores * code,
    )


_SIZE = r"([\d.]+)([KMGT]?)"
_REFUSALS = (
    rf"Used {_SIZE} of {_SIZE} hbm",
    rf"HLO temporaries \({_SIZE}\) exceeds available HBM \({_SIZE}\)",
    rf"\({_SIZE}\) exceeds available HBM \({_SIZE}\)",
)


def refused_memory(
    message: str, state: int, batch: int, *, chip: Chip, cores: int
) -> Memory | None:
    """What the compiler says when a step does not fit, per chip; None if it says something else.

    Where it names the temporaries alone, state and batch come on top.
    """
    if "RESOURCE_EXHAUSTED" not in message:
        return None
    for number, pattern in enumerate(_REFUSALS):
        found = re.search(pattern, message)
        if found is not None:
            used = cores * _size(found.group(1), found.group(2))
            available = cores * _size(found.group(3), found.group(4))
            temporary = used
            if number == 1:
                used += state + batch
            else:
                temporary = max(0.0, used - state - batch)
            return Memory(used, available, state, batch, temporary, 0.0)
    return Memory(math.inf, chip.hbm, state, batch, math.inf, 0.0)


def _size(number: str, prefix: str) -> float:
    return float(number) * 1024 ** "KMGT".find(prefix) * 1024 if prefix else float(number)
