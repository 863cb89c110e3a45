"""A training step of frame prediction in genjax and in PyTorch, from one description; clips' speed.

Letters: B batch, T time, H height, W width.
"""

import dataclasses
import functools
import itertools
import time
import tomllib
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.harness import Call, program_memory

Tree = dict[str, Any]

CONFIGS = Path(__file__).parent.parent / "configs" / "video"

ADAM: Tree = {"learning_rate": 5e-4, "beta1": 0.9, "beta2": 0.999}
CLIP_NORM = 1.0

MADE = ("described", "drawn", "input pipeline")
"""How clips are made: see `clips_made`."""


@dataclasses.dataclass(frozen=True)
class Case:
    """A network and the clips of a step; of each, the first half of the frames is known.

    Attributes:
        size: height and width of the frames, of one channel.
        batch_size: clips of a step.
        model: section of the config.
        past: frames that are known, and as many are predicted.
        objective: section of the config.
    """

    size: int
    batch_size: int
    model: Tree
    past: int = 10
    objective: Tree = dataclasses.field(default_factory=lambda: {"l1": 0.0, "l2": 1.0})

    @property
    def frames(self) -> int:
        """Frames of a clip."""
        return 2 * self.past

    @property
    def dtype(self) -> str:
        """Type of the convolutions' inputs."""
        return self.model.get("dtype", "float32")

    def clips(self) -> np.ndarray:
        """A batch of clips, uint8 [B, T, H, W, 1]."""
        shape = (self.batch_size, self.frames, self.size, self.size, 1)
        return np.random.default_rng(0).integers(256, size=shape, dtype=np.uint8)


def from_config(name: str) -> Case:
    """The network, the objective and the batch of a config of Moving MNIST."""
    tree = tomllib.loads((CONFIGS / f"{name}.toml").read_text())
    data = tree["data"]
    size = data["source"].get("size", 64)
    return Case(size, data["batch_size"], tree["model"], objective=tree["objective"])


def convlstm_s(batch_size: int, dtype: str = "float32", remat: bool = False) -> Case:
    """OpenSTL's ConvLSTM-S at 64 px, 10 frames to 10."""
    return Case(64, batch_size, {"kind": "convlstm", "dtype": dtype, "remat": remat})


def simvp_s(batch_size: int, dtype: str = "float32") -> Case:
    """OpenSTL's SimVP-S with gated attention at 64 px, 10 frames to 10."""
    sizes = {"spatial_features": 64, "spatial_layers": 4}
    sizes |= {"temporal_features": 512, "temporal_layers": 8}
    return Case(64, batch_size, {"kind": "simvp", "dtype": dtype, **sizes})


# ---- genjax -----------------------------------------------------------------------------------


def make_task(case: Case) -> Any:
    """The task of frame prediction, on clips that are finished."""
    from genjax.config import check
    from genjax.data.clip_source import stored_clips
    from genjax.video.prediction_config import PredictionConfig

    source = {"kind": "moving_digits", "size": case.size, "digit_size": case.size // 2}
    tree = {
        "kind": "prediction",
        "data": {"source": source, "batch_size": case.batch_size},
        "conditioning": {"past": case.past, "future": case.past},
        "model": case.model,
        "objective": case.objective,
        "optimizer": {**ADAM, "clip_norm": CLIP_NORM, "schedule": {"kind": "constant"}},
    }
    task: Any = check(tree, PredictionConfig).make_task()
    # The peer gets finished clips, too; what drawing them costs is measured apart.
    task.source = dataclasses.replace(task.source, render=stored_clips)
    return task


def genjax_step(case: Case) -> tuple[Call, dict[str, Any]]:
    """The task's step, as the loop compiles it."""
    import jax

    from genjax.parallel import platform

    platform.start(platform.PlatformConfig(compilation_cache=""))
    task = make_task(case)
    state = jax.jit(task.init)(jax.random.key(0))
    batch = jax.device_put({"clips": case.clips()})
    began = time.perf_counter()
    compiled = jax.jit(task.train_step, donate_argnums=0).lower(state, batch).compile()
    seconds = time.perf_counter() - began
    memory = program_memory(compiled)

    def call() -> None:
        nonlocal state
        state, metrics = jax.block_until_ready(compiled(state, batch))
        float(metrics["loss"])

    def peak() -> int:
        statistics = jax.local_devices()[0].memory_stats() or {}
        return statistics.get("peak_bytes_in_use", memory)

    return call, {"flops": task.flops_per_step(), "memory": peak, "compile_seconds": seconds}


def compiled_memory(case: Case) -> dict[str, int]:
    """Bytes of the compiled step, which is not run: all, and the temporary ones among them."""
    import jax

    task = make_task(case)
    clips = case.clips()
    batch = {"clips": jax.ShapeDtypeStruct(clips.shape, clips.dtype)}
    state = jax.eval_shape(task.init, jax.random.key(0))
    compiled = jax.jit(task.train_step, donate_argnums=0).lower(state, batch).compile()
    analysis: Any = compiled.memory_analysis()
    return {
        "memory_bytes": program_memory(compiled),
        "temporary_bytes": analysis.temp_size_in_bytes,
    }


# ---- PyTorch ----------------------------------------------------------------------------------


def torch_step(
    case: Case, device: str, channels_last: bool = True, compile: bool = False
) -> tuple[Call, dict[str, Any]]:
    """The same step in PyTorch, eager or compiled, in either layout of memory."""
    import os

    import torch

    from benchmarks.peers import convlstm_torch

    if device == "cpu":
        torch.set_num_threads(len(os.sched_getaffinity(0)))
    else:
        # As JAX does by default, and PyTorch in its convolutions.
        torch.set_float32_matmul_precision("high")
        torch.backends.cudnn.benchmark = True
    torch.manual_seed(0)
    step = convlstm_torch.make_step(
        torch_network(case),
        past=case.past,
        patch_size=case.model.get("patch_size", 4),
        l1=case.objective.get("l1", 0.0),
        l2=case.objective.get("l2", 1.0),
        adam={"lr": ADAM["learning_rate"], "betas": (ADAM["beta1"], ADAM["beta2"])},
        clip_norm=CLIP_NORM,
        channels_last=channels_last,
        compile=compile,
        device=device,
        dtype=getattr(torch, case.dtype),
    )
    clips = torch.from_numpy(case.clips()).to(device)
    memory = None if device == "cpu" else torch.cuda.max_memory_allocated
    return functools.partial(step, clips), {"memory": memory}


def has_peer(case: Case) -> bool:
    """Whether the network has been written in PyTorch."""
    return case.model["kind"] in ("convlstm", "predrnn")


def torch_network(case: Case) -> Any:
    """The time step of the network, new."""
    from benchmarks.peers import convlstm_torch

    model = case.model
    patch_channels, kernel_size = model.get("patch_size", 4) ** 2, model.get("kernel_size", 5)
    if model["kind"] == "convlstm":
        features = model.get("features", (128, 128, 128, 128))
        return convlstm_torch.ConvLSTM(patch_channels, features, kernel_size)
    features, layers = model.get("features", 128), model.get("num_layers", 4)
    return convlstm_torch.PredRNN(patch_channels, features, layers, kernel_size)


# ---- clips ------------------------------------------------------------------------------------


def clips_made(source: Tree, how: str, batch_size: int, batches: int) -> tuple[Call, Tree]:
    """Some batches of a generated source's clips.

    Args:
        source: section of the config.
        how: "described" on the host, "drawn" one batch after the other, "input pipeline" as the
            training loop reads and places them, then drawn.
        batch_size: clips of a batch.
        batches: batches of a call.
    """
    import jax

    from genjax.config import check
    from genjax.parallel import mesh, platform
    from genjax.task import Shard
    from genjax.video.prediction_config import PredictionConfig
    from train.stream import BatchStream

    config = platform.PlatformConfig(compilation_cache="")
    platform.start(config)
    tree = {"kind": "prediction", "data": {"source": source, "batch_size": batch_size}}
    task: Any = check(tree, PredictionConfig).make_task()
    dataset, render = task.dataset("train", Shard()), jax.jit(task.source.render)
    stream: Any = (dataset[number] for number in itertools.count())
    if how == "input pipeline":
        devices = mesh.make_mesh(mesh.MeshConfig())
        stream = BatchStream(dataset, devices, threads=config.reading_threads)

    def call() -> None:
        for _ in range(batches):
            batch = next(stream)
            if how != "described":
                jax.block_until_ready(render(batch))

    return call, {}
