"""Run directories as training leaves them, made up for tests."""

import json
import math
from pathlib import Path

import numpy as np

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
