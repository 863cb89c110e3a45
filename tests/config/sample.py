"""A config with all that one may hold, and how tests write and refuse files."""

from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
from pydantic import Field

from genjax.config import (
    Config,
    load,
)
from genjax.errors import UserError


class Cosine(Config):
    """Half a cosine down to zero."""

    kind: Literal["cosine"] = "cosine"
    warmup_steps: int = Field(default=0, ge=0, lt=2**32)
    """Steps of linear warm-up."""


class Constant(Config):
    kind: Literal["constant"] = "constant"


class Optimizer(Config):
    learning_rate: float = Field(default=3e-4, gt=0)
    """Peak learning rate."""
    betas: tuple[float, float] = (0.9, 0.99)
    """Decay rates of both moments."""
    clip_norm: Annotated[float, Field(gt=0)] | None = 1.0
    """Largest gradient norm."""
    schedule: Annotated[Cosine | Constant, Field(discriminator="kind")] = Cosine(warmup_steps=10)
    """Learning rate over time."""


class Transformer(Config):
    """Attention over all past tokens."""

    kind: Literal["transformer"] = "transformer"
    num_layers: int = Field(default=4, ge=1)
    """Number of blocks."""
    dropout: float = Field(default=0.0, ge=0, lt=1)
    """Dropout rate."""


class Recurrent(Config):
    """A stack of recurrent layers."""

    kind: Literal["lstm", "gru"]
    hidden_size: int = 64
    """Width of the state."""


class Decay(Config):
    kind: Literal["linear", "cosine"] = "linear"
    warmup_steps: int = 0


class Part(Config):
    path: str
    weight: float = Field(default=1.0, gt=0)


class Run(Config):
    kind: Literal["run"] = "run"
    seed: int = 0
    """Seed of all randomness."""
    name: str | None = None
    lowercase: bool = False
    precision: Literal["float32", "bfloat16"] = "float32"
    limit: int | Literal["all"] = "all"
    layers: list[int | None] = Field(default=[])
    model: Annotated[Transformer | Recurrent, Field(discriminator="kind")] = Transformer(
        num_layers=8
    )
    """Which network to train."""
    teacher: Annotated[Transformer | Recurrent, Field(discriminator="kind")] | None = None
    """Which network to learn from."""
    optimizer: Optimizer = Optimizer()
    """How parameters move."""
    parts: tuple[Part, ...] = ()
    """Files to read."""
    extras: dict[str, Part] = Field(default={})


class Other(Config):
    kind: Literal["other"] = "other"
    text: str


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


def refusal(call: Any, *arguments: Any, **keywords: Any) -> str:
    with pytest.raises(UserError) as caught:
        call(*arguments, **keywords)
    return str(caught.value)


def faults(text: str, *overrides: str, debug: bool = False) -> list[str]:
    file = write(Path("exp.toml"), text)
    first, *rest = refusal(load, file, overrides, schema=Run, debug=debug).split("\n")
    assert first == "exp.toml does not fit:"
    return [line.removeprefix("  ") for line in rest]
