"""A whole step of a GAN, in genjax and in PyTorch, from one description."""

import collections
import dataclasses
import functools
import math
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.harness import Part, Work, program_memory

Tree = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Game:
    """Two networks, what they play for, and the batch.

    Attributes:
        size: height and width of the images, which have three channels.
        batch_size: images of a step.
        model: section of the config.
        objective: section of the config.
        adam: of both optimizers.
        average: half-life, in images, of the generator's average; 0 for none.
    """

    size: int
    batch_size: int
    model: Tree
    objective: Tree
    adam: Tree
    average: float = 0.0

    @property
    def intervals(self) -> tuple[int, int]:
        """Steps between steps with penalties, and with path lengths; 0 for never."""
        penalties = self.objective.get("r1_gamma", 0.0) > 0
        path_length = self.objective.get("path_length_weight", 0.0) > 0
        return (
            self.objective.get("penalty_interval", 1) if penalties else 0,
            self.objective.get("path_length_interval", 4) if path_length else 0,
        )

    def images(self) -> np.ndarray:
        """A batch of images, uint8 [B, H, W, 3]."""
        shape = (self.batch_size, self.size, self.size, 3)
        return np.random.default_rng(0).integers(256, size=shape, dtype=np.uint8)


def dcgan(batch_size: int = 64, dtype: str = "float32") -> Game:
    """DCGAN at 64 px, normalised in both networks."""
    return Game(
        64,
        batch_size,
        {"kind": "dcgan", "base_channels": 64, "dtype": dtype},
        {"loss": "non_saturating"},
        {"learning_rate": 2e-4, "beta1": 0.5, "beta2": 0.999},
    )


def stylegan2(
    size: int,
    batch_size: int,
    channel_base: int,
    channel_max: int,
    dtype: str = "float32",
) -> Game:
    """StyleGAN2 with its lazy regularisers."""
    return Game(
        size,
        batch_size,
        {
            "kind": "stylegan2",
            "channel_base": channel_base,
            "channel_max": channel_max,
            "style_mixing_probability": 0.9,
            "dtype": dtype,
        },
        {
            "loss": "non_saturating",
            "r1_gamma": 0.3,
            "penalty_interval": 16,
            "path_length_weight": 2.0,
            "path_length_interval": 4,
            "path_length_share": 2,
        },
        {"learning_rate": 2e-3, "beta1": 0.0, "beta2": 0.99},
        average=10_000.0,
    )


def r3gan(batch_size: int, dtype: str) -> Game:
    """R3GAN in its CIFAR-10 size, without classes."""
    return Game(
        32,
        batch_size,
        {"kind": "r3gan", "stage_widths": [768] * 4, "dtype": dtype},
        {"loss": "relativistic", "r1_gamma": 0.05, "r2_gamma": 0.05},
        {"learning_rate": 2e-4, "beta1": 0.0, "beta2": 0.99},
        average=10_000.0,
    )


# ---- genjax -----------------------------------------------------------------------------------


def make_task(game: Game) -> Any:
    """The adversarial task of a game, over a folder with two images of its size."""
    from PIL import Image

    from genjax.config import check
    from genjax.image.adversarial_config import AdversarialConfig

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "images"
        folder.mkdir()
        for number in range(2):
            picture = Image.new("RGB", (game.size, game.size), (255 * number,) * 3)
            picture.save(folder / f"{number}.png")
        source = {
            "kind": "files",
            "path": str(folder),
            "size": game.size,
            "labels": "none",
            "validation_path": str(folder),
            "cache": f"{name}/cache",
        }
        tree = {
            "kind": "adversarial",
            "data": {"source": source, "batch_size": game.batch_size},
            "model": game.model,
            "objective": game.objective,
            "generator_optimizer": game.adam,
            "discriminator_optimizer": game.adam,
            "average": {"half_life_images": game.average},
        }
        return check(tree, AdversarialConfig).make_task()


def genjax_step(game: Game) -> tuple[Work, dict[str, Any]]:
    """Each variant of the task's step, as the loop compiles it."""
    import jax

    from genjax.parallel import platform

    platform.start(platform.PlatformConfig(compilation_cache=""))
    task = make_task(game)
    state = jax.jit(task.init)(jax.random.key(0))
    batch = jax.device_put({"images": game.images()})
    cycle = math.lcm(*(interval or 1 for interval in game.intervals))
    counts = collections.Counter(task.variant(number) for number in range(cycle))
    memory, seconds, parts = 0, 0.0, {}
    for variant, count in counts.most_common():
        began = time.perf_counter()
        step = functools.partial(task.train_step, variant=variant)
        compiled = jax.jit(step, donate_argnums=0).lower(state, batch).compile()
        seconds += time.perf_counter() - began
        memory = max(memory, program_memory(compiled))

        def call(compiled: Any = compiled) -> None:
            nonlocal state
            state, metrics = jax.block_until_ready(compiled(state, batch))
            float(metrics["generator_loss"])

        parts[part_name(*variant)] = Part(call, count / cycle)

    def peak() -> int:
        statistics = jax.local_devices()[0].memory_stats() or {}
        return statistics.get("peak_bytes_in_use", memory)

    facts = {"flops": task.flops_per_step(), "memory": peak, "compile_seconds": seconds}
    return parts, facts


def part_name(penalties: bool, path_length: bool) -> str:
    """What a kind of step is called."""
    extras = {"penalties": penalties, "path length": path_length}
    return " + ".join(name for name, present in extras.items() if present) or "plain"


# ---- PyTorch ----------------------------------------------------------------------------------


def torch_step(
    game: Game, device: str, channels_last: bool = True, compile: bool = False
) -> tuple[Work, dict[str, Any]]:
    """The same game in PyTorch, eager or compiled, in either layout of memory."""
    import os

    import torch

    if device == "cpu":
        torch.set_num_threads(len(os.sched_getaffinity(0)))
    else:
        # As JAX does by default, and PyTorch in its convolutions.
        torch.set_float32_matmul_precision("high")
        torch.backends.cudnn.benchmark = True
    torch.manual_seed(0)
    images = torch.from_numpy(game.images()).to(device)
    settings: Tree = {
        "channels_last": channels_last,
        "compile": compile,
        "device": device,
        "dtype": getattr(torch, game.model["dtype"]),
    }
    memory = None if device == "cpu" else torch.cuda.max_memory_allocated
    return _torch_work(game, torch_networks(game), images, settings), {"memory": memory}


def torch_networks(game: Game) -> tuple[Any, Any]:
    """Generator and discriminator of a game, new."""
    from benchmarks.peers import dcgan_torch, stylegan2_torch

    model = game.model
    if model["kind"] == "dcgan":
        return dcgan_torch.make_networks(game.size, base_channels=model["base_channels"])
    return stylegan2_torch.make_networks(game.size, model["channel_base"], model["channel_max"])


def _torch_work(game: Game, networks: tuple[Any, Any], images: Any, settings: Tree) -> Work:
    from benchmarks.peers import dcgan_torch, stylegan2_torch

    if game.model["kind"] == "dcgan":
        return functools.partial(dcgan_torch.make_step(networks, **settings), images)
    penalty_interval, path_length_interval = game.intervals
    step = stylegan2_torch.make_step(
        networks,
        r1_gamma=game.objective["r1_gamma"],
        penalty_interval=penalty_interval,
        path_length_interval=path_length_interval,
        path_length_share=game.objective["path_length_share"],
        mixing=game.model["style_mixing_probability"],
        **settings,
    )
    cycle = math.lcm(penalty_interval, path_length_interval)
    counts = collections.Counter(
        (number % penalty_interval == 0, number % path_length_interval == 0)
        for number in range(cycle)
    )
    return {
        part_name(*variant): Part(functools.partial(step, images, *variant), count / cycle)
        for variant, count in counts.most_common()
    }
