"""Run directories as training leaves them, made up for tests."""

import json
import math
from pathlib import Path

import numpy as np

from genjax.media import ImageSample, image_grid

PROTOCOL = "whole validation split, 65,536 targets, windows of 256 without overlap"
BASELINES = {"uniform": 9.01, "unigram": 6.62, "bigram": 4.71, "trigram": 4.05}
BYTES_PER_TOKEN = 3.6

CONFIG = """\
kind = "transformer"
seed = {seed}
steps = {steps}

[data.source]
kind = "pydoc"

[data.tokenizer]
kind = "bpe"
vocab_size = 8192

[data.batching]
batch_size = 32
length = 256

[model]
hidden_size = {hidden_size}
num_layers = 6
num_heads = 8
dropout = 0.1

[optimizer]
kind = "adamw"
betas = [0.9, 0.95]
weight_decay = 0.1

[optimizer.schedule]
kind = "cosine"
peak = {learning_rate}
warmup_steps = 100

[evaluation]
every = 250
"""

TEXT = (
    "The import statement\n********************\n\n"
    "The basic import statement (no from clause) is executed in two steps:\n\n"
    "1. find a module, loading and initializing it if necessary\n\n"
    "2. define a name or names in the local namespace for the scope where\n"
    "   the import statement occurs.\n"
)


def figures(nats: float) -> dict[str, float]:
    """The figures of a language model with this cross-entropy."""
    return {
        "nats_per_token": nats,
        "perplexity": math.exp(nats),
        "bits_per_byte": nats / math.log(2) / BYTES_PER_TOKEN,
        "bits_per_character": nats / math.log(2) / BYTES_PER_TOKEN * 1.01,
    }


def write_lines(path: Path, records: list[dict]) -> None:
    """Write one JSON object a line."""
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")


def fabricate_run(
    path: Path,
    *,
    steps: int = 2000,
    every: int = 10,
    validate_every: int | None = 250,
    seed: int = 0,
    hidden_size: int = 384,
    learning_rate: float = 1e-3,
    floor: float = 3.1,
    ending: str = "finished at step {steps}",
    extra: list[dict] | None = None,
    samples: list[dict] | None = None,
) -> Path:
    """Write the directory of a language-model run of `steps` steps; `extra` goes to its metrics."""
    rng = np.random.default_rng(seed)
    path.mkdir(parents=True, exist_ok=True)
    (path / "config.toml").write_text(
        CONFIG.format(seed=seed, steps=steps, hidden_size=hidden_size, learning_rate=learning_rate),
        encoding="utf-8",
    )
    environment = {
        "started": "2026-03-02T09:14:07+00:00",
        "command": ["python", "-m", "train", "configs/text/demo.toml", f"seed={seed}"],
        "versions": {"python": "3.12.3", "jax": "0.12.0", "flax": "0.12.12"},
        "devices": ["TPU v5e"] * 8,
        "git_commit": "9f2c1e4b7a",
    }
    (path / "environment.json").write_text(json.dumps(environment), encoding="utf-8")
    records: list[dict] = [
        {"kind": "baseline", "step": 0, "name": name, **figures(nats)}
        for name, nats in BASELINES.items()
    ]

    def loss(step: int) -> float:
        return floor + (9.0 - floor) * (1 + step / 40) ** -0.8

    for step in range(every, steps + 1, every):
        warm = min(1.0, step / 100)
        rate = learning_rate * warm * 0.5 * (1.1 + 0.9 * math.cos(math.pi * step / steps))
        records += [
            {
                "kind": "train",
                "step": step,
                "loss": loss(step) + 0.09 * rng.normal(),
                "grad_norm": float(np.exp(0.25 * rng.normal()) * (0.4 + 4 / (1 + step / 60))),
                "learning_rate": rate,
            },
            {
                "kind": "speed",
                "step": step,
                "seconds": 6.0 + step * 0.052,
                "step_time": 0.052 * (1 + 0.03 * abs(rng.normal())),
                "tokens_per_second": 8192 / 0.052 / (1 + 0.03 * abs(rng.normal())),
                "mfu": 0.412 + 0.004 * rng.normal(),
            },
        ]
        if validate_every and step % validate_every == 0:
            overfit = 0.12 * max(0.0, step / steps - 0.8)
            nats = loss(step) + 0.08 + overfit
            records.append(
                {"kind": "validation", "step": step, **figures(nats), "protocol": PROTOCOL}
            )
            records.append({"kind": "event", "step": step, "message": f"saved step {step}"})
    records += extra or []
    if ending:
        records.append({"kind": "event", "step": steps, "message": ending.format(steps=steps)})
    write_lines(path / "metrics.jsonl", records)
    if samples is None:
        samples = [
            {"step": step, "index": index, "text": TEXT[7 * index :] + f"\n(step {step})"}
            for step in range(steps // 4, steps + 1, max(1, steps // 4))
            for index in range(3)
        ]
    write_lines(path / "samples.jsonl", samples)
    write_lines(
        path / "evaluations.jsonl",
        [{"step": steps, "split": "test", **figures(floor + 0.2), "protocol": PROTOCOL}],
    )
    return path


GAN_CONFIG = """\
kind = "adversarial"
seed = {seed}
steps = {steps}

[checkpoint]
best_metric = "fid_digits"
best_is = "lowest"

[model]
kind = "dcgan"
image_size = 32
latent_size = 64

[objective]
kind = "relativistic"
r1_gamma = {gamma}
"""
GAN_PROTOCOL = "2,048 generated images against the 10,000 of the test split, features of digits"
GAN_BASELINES = {
    "real images against real images (floor)": {"fid_digits": 0.21, "kid_digits": -1.2e-5},
    "mean image": {"fid_digits": 311.0, "kid_digits": 0.41},
    "noise": {"fid_digits": 402.0, "kid_digits": 0.55, "conditioning_accuracy": 0.1},
}


def gan_figures(share: float) -> dict[str, float]:
    """The figures of an image model that has come so far, from 0 to 1."""
    return {
        "fid_digits": 380.0 * math.exp(-4.4 * share) + 2.0,
        "kid_digits": 0.5 * math.exp(-5.0 * share),
        "precision": 0.1 + 0.65 * share,
        "recall": 0.02 + 0.5 * share,
        "coverage": 0.05 + 0.7 * share,
        "inception_score_digits": 1.0 + 8.1 * share,
        "conditioning_accuracy": 0.1 + 0.82 * share,
        "images": 2048.0,
    }


def rings(rng: np.random.Generator, count: int, sharpness: float, size: int = 32) -> np.ndarray:
    """Grey images [count, size, size, 1] of rings, which stand for digits."""
    place = (np.arange(size) - size / 2) / (size / 2)
    centre = rng.uniform(-0.2, 0.2, (2, count, 1, 1))
    distance = np.hypot(place[None, :, None] - centre[0], place[None, None, :] - centre[1])
    radius = rng.uniform(0.3, 0.7, (count, 1, 1))
    ink = np.exp(-(((distance - radius) * (1 + 9 * sharpness)) ** 2))
    noise = rng.normal(0, 0.5 * (1 - sharpness), (count, size, size))
    return (255 * np.clip(ink + noise, 0, 1)).astype(np.uint8)[..., None]


def fabricate_gan_run(
    path: Path, *, steps: int = 2000, seed: int = 0, gamma: float = 1.0, ending: str = "finished"
) -> Path:
    """Write the directory of an image run of `steps` steps, with grids of its samples."""
    rng = np.random.default_rng(seed)
    path.mkdir(parents=True, exist_ok=True)
    (path / "config.toml").write_text(GAN_CONFIG.format(seed=seed, steps=steps, gamma=gamma))
    records: list[dict] = [
        {"kind": "baseline", "step": 0, "name": name, **figures}
        for name, figures in GAN_BASELINES.items()
    ]
    real = ImageSample(
        index=1,
        name="real",
        image=image_grid(rings(rng, 64, 1.0)),
        caption={"what": "real images"},
    )
    samples = []
    for step in range(10, steps + 1, 10):
        share = step / steps
        records += [
            {
                "kind": "train",
                "step": step,
                "discriminator_loss": 0.7 - 0.3 * share + 0.05 * rng.normal(),
                "generator_loss": 0.7 + 0.5 * share + 0.1 * rng.normal(),
                "real_sign": 0.1 + 0.5 * share + 0.05 * rng.normal(),
                "fake_sign": -0.1 - 0.5 * share + 0.05 * rng.normal(),
                "r1_penalty": 0.02 * math.exp(0.4 * rng.normal()),
                "discriminator_grad_norm": 1.0 + 0.2 * abs(rng.normal()),
                "generator_grad_norm": 2.0 + 0.4 * abs(rng.normal()),
                "discriminator_learning_rate": 2e-4 * (1 - 0.9 * share),
                "generator_learning_rate": 2e-4 * (1 - 0.9 * share),
                "augmentation_probability": min(0.3, 0.4 * share),
                "images": 64.0 * step,
            },
            {
                "kind": "speed",
                "step": step,
                "seconds": 9.0 + 0.08 * step,
                "step_time": 0.08,
                "images_per_second": 800.0 * (1 + 0.02 * rng.normal()),
            },
        ]
        if step % max(1, steps // 8) == 0:
            worse = 1.0 if share < 1 else 0.96
            records.append(
                {
                    "kind": "validation",
                    "step": step,
                    **gan_figures(share * worse),
                    "protocol": GAN_PROTOCOL,
                }
            )
            grid = ImageSample(
                index=0,
                name="generated",
                image=image_grid(rings(rng, 64, share)),
                caption={"what": "generated images", "truncation": 1.0},
            )
            for sample in (grid, real):
                fields = sample.save(path, f"samples/{step:08d}")
                samples.append({"step": step, "index": sample.index, **fields})
    records.append({"kind": "event", "step": steps, "message": ending})
    write_lines(path / "metrics.jsonl", records)
    write_lines(path / "samples.jsonl", samples)
    final = {"step": steps, "name": "validation", "protocol": GAN_PROTOCOL, **gan_figures(0.97)}
    final["baselines"] = [{"name": name, **values} for name, values in GAN_BASELINES.items()]
    write_lines(path / "evaluations.jsonl", [final])
    return path
