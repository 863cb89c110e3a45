"""Several processes of one run: how they find each other, and which rows of a batch are whose."""

import dataclasses
import functools
import importlib.util
import os
import re
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from genjax.errors import UserError
from genjax.parallel.partition import batch_sharding
from genjax.task import Shard

HEARTBEAT_SECONDS = 600
"""When JAX itself takes a process for dead. The training watches its processes more closely, and
says which one is lost; this is for what it cannot see."""

_SHUTDOWN_SECONDS = 60
_PATIENCE_SECONDS = 60
"""How much longer than asked JAX waits for the others: the end of the wait is ours."""

_ADDRESS = re.compile(r"^(\[[0-9a-fA-F:]+\]|[^\s:/]+):(\d{1,5})$")


@dataclasses.dataclass(frozen=True)
class Place:
    """Which process of how many this one is, and where they meet."""

    coordinator: str
    count: int
    index: int


def place_from_flags(coordinator: str | None, count: int | None, index: int | None) -> Place | None:
    """What the three flags of the command line say; None without any of them.

    Raises:
        UserError: some are missing, or one has a value that cannot be.
    """
    given = {"--coordinator": coordinator, "--num-processes": count, "--process-id": index}
    missing = [name for name, value in given.items() if value is None]
    if len(missing) == len(given):
        return None
    if coordinator is None or count is None or index is None:
        raise UserError(
            f"{', '.join(missing)}: missing; give --coordinator HOST:PORT, --num-processes and "
            "--process-id together, or none of them under SLURM, Open MPI or on Cloud TPU"
        )
    match = _ADDRESS.match(coordinator)
    if match is None or not 0 < int(match.group(2)) < 2**16:
        raise UserError(
            f"--coordinator {coordinator}: give the host and a free port of process 0, such as "
            "node-0:8476"
        )
    if count < 1:
        raise UserError(f"--num-processes {count}: give at least 1")
    if not 0 <= index < count:
        raise UserError(f"--process-id {index}: give 0 to {count - 1}, each to one process")
    return Place(coordinator, count, index)


def launched_by(environment: Mapping[str, str] = os.environ) -> str | None:
    """What started this process as one of several in a way that JAX finds out about, if anything.

    A job of a single task is none, nor is a program that a script starts without `srun`.
    """
    slurm = ("SLURM_JOB_ID", "SLURM_STEP_NODELIST", "SLURM_PROCID", "SLURM_LOCALID")
    if all(name in environment for name in slurm) and int(environment.get("SLURM_NTASKS", 1)) > 1:
        return "SLURM"
    if (
        "OMPI_MCA_orte_hnp_uri" in environment
        and int(environment.get("OMPI_COMM_WORLD_SIZE", 1)) > 1
    ):
        return "Open MPI"
    # Of GKE, for all hosts of a slice, and of several slices.
    hosts = environment.get("TPU_WORKER_HOSTNAMES", "").split(",")
    if len(hosts) > 1 or int(environment.get("MEGASCALE_NUM_SLICES", 1)) > 1:
        return "Cloud TPU"
    if environment.get("JAX_PLATFORMS", "tpu").startswith("tpu") and _has_tpu():
        return "Cloud TPU"
    return None


def _has_tpu() -> bool:
    # Other devices are passed through vfio, too: a TPU machine has what drives its own.
    if importlib.util.find_spec("libtpu") is None:
        return False
    return any(Path("/dev").glob("accel[0-9]*")) or any(Path("/dev/vfio").glob("[0-9]*"))


def connect(place: Place | None, timeout: int, give_up: Callable[[str], None]) -> None:
    """Find the other processes, if there are any. Call before anything touches a device.

    Args:
        place: from `place_from_flags`; None finds out from the environment.
        timeout: seconds to wait for the others.
        give_up: ends this process, told why. It is called from another thread when the time is
            over: JAX cannot be interrupted, and would itself end the process with a native stack.

    Raises:
        UserError: they cannot meet, such as at a port that is taken.
    """
    found: dict[str, Any] = {}
    if place is not None:
        if place.count == 1:
            return
        found = {
            "coordinator_address": place.coordinator,
            "num_processes": place.count,
            "process_id": place.index,
            "cluster_detection_method": "deactivate",
        }
    elif launched_by() is None:
        return
    where = place.coordinator if place is not None else "the place that the environment names"
    advice = "start all of them, with the same coordinator, each with its own process id"
    late = (
        f"the processes did not find each other at {where} within {timeout} s: {advice}; "
        "platform.start_timeout waits longer"
    )
    timer = threading.Timer(timeout, give_up, [late])
    timer.daemon = True
    timer.start()
    # CPUs of several processes exchange data by gloo; other devices do not care.
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    try:
        jax.distributed.initialize(
            **found,
            initialization_timeout=timeout + _PATIENCE_SECONDS,
            heartbeat_timeout_seconds=HEARTBEAT_SECONDS,
            shutdown_timeout_seconds=_SHUTDOWN_SECONDS,
        )
    except (RuntimeError, ValueError) as error:
        why = str(error).splitlines()[0]
        raise UserError(f"the processes cannot meet at {where}: {why}\n{advice}") from error
    finally:
        timer.cancel()


def disconnect() -> None:
    """Leave the others; returns when all have done so."""
    if jax.distributed.is_initialized():
        jax.distributed.shutdown()


def coordination() -> Any:
    """JAX's state of this process among several; `.client` is None where there is just one.

    JAX has public functions to start and end its coordination service, and none to use it: this
    is the one place that reaches for what it keeps to itself. Asking `jax.process_count` would
    start the devices, which may already wait for a process that is gone.
    """
    from jax._src import distributed

    return distributed.global_state


def is_first() -> bool:
    """Whether this is the process that writes what all have in common."""
    return jax.process_index() == 0


def speaks() -> bool:
    """Whether this process tells the user what all of them have to say; asks no device."""
    here = coordination()
    return here.client is None or here.process_id == 0


def agree(value: int) -> int:
    """What the first process says: a small number, the same for all from here on."""
    if jax.process_count() == 1:
        return value
    return int(multihost_utils.broadcast_one_to_all(np.int32(value)))


def everywhere(flag: bool) -> bool:
    """Whether a flag is true in every process."""
    if jax.process_count() == 1:
        return flag
    return bool(np.min(multihost_utils.process_allgather(np.int32(flag))))


def first_text(text: str) -> str:
    """The first text that is not empty, in the order of the processes; cut to some 500 bytes."""
    if jax.process_count() == 1:
        return text
    codes = np.zeros(512, np.uint8)
    data = text.encode()[: len(codes)]
    codes[: len(data)] = list(data)
    texts = (bytes(row).rstrip(b"\0") for row in multihost_utils.process_allgather(codes))
    return next((one.decode(errors="ignore") for one in texts if one), "")


def first_numbers(read: Callable[[], Sequence[float]]) -> list[float]:
    """What the first process reads, for all: of a shared disk others may see an older state."""
    numbers = np.asarray(read() if is_first() else [], np.float64)
    count = agree(len(numbers))
    if jax.process_count() == 1 or not count:
        return numbers.tolist()
    # In halves: as they are, JAX would round them to its own default precision.
    halves = numbers.view(np.uint32) if is_first() else np.zeros(2 * count, np.uint32)
    return np.asarray(multihost_utils.broadcast_one_to_all(halves)).view(np.float64).tolist()


def first_does(action: Callable[[], None]) -> None:
    """Have the first process do something, and wait until it is done.

    Raises:
        UserError: in the first process, what the action raised; in the others, without a text,
            that it did.
    """
    refusal: UserError | None = None
    if is_first():
        try:
            action()
        except UserError as error:
            refusal = error
    if agree(int(refusal is not None)):
        raise refusal or UserError("")


def wait_for_all(what: str) -> None:
    """Return when every process is here."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(what)


@functools.cache
def process_shard(mesh: Mesh) -> Shard:
    """Which rows of every global batch this process reads.

    Those that its devices hold. Processes whose devices differ only along the mesh's tensor or
    sequence axes hold, and read, the same rows.

    Raises:
        UserError: the rows of each process' devices are not one of equal parts.
    """
    if jax.process_count() == 1:
        return Shard()
    ways = mesh.shape["data"] * mesh.shape["fsdp"]
    parts = _parts(mesh, ways)
    if len(parts) < jax.process_count():
        raise UserError(
            f"mesh: {mesh.size} devices leave some of the {jax.process_count()} processes without "
            "any; use those of all of them"
        )
    if len({len(part) for part in parts.values()}) > 1:
        raise UserError(
            "mesh: the processes hold unequal parts of a batch; use all devices of each process, "
            "with data x fsdp or tensor x sequence a multiple of those of a process"
        )
    # The same answer in every process: so it is about all of them.
    if any(
        min(part) % len(part) or part != set(range(min(part), min(part) + len(part)))
        for part in parts.values()
    ):
        raise UserError(
            "mesh: the devices of a process hold rows of a batch that do not lie together; "
            "choose sizes of data and fsdp that the number of processes divides"
        )
    own = parts[jax.process_index()]
    first, count = min(own), len(own)
    return Shard(first // count, ways // count)


def _parts(mesh: Mesh, ways: int) -> dict[int, set[int]]:
    """Which of `ways` parts of a batch the devices of each process hold."""
    parts: dict[int, set[int]] = {}
    for device, (rows, *_) in batch_sharding(mesh).devices_indices_map((ways,)).items():
        start = rows.start or 0
        stop = ways if rows.stop is None else rows.stop
        parts.setdefault(device.process_index, set()).update(range(start, stop))
    return parts
