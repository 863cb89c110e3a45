"""Optimizers and learning-rate schedules from config, over optax."""

import math
from collections.abc import Callable
from typing import Annotated, Any, Literal, TypeVar

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float
from pydantic import Field, field_validator

from genjax.config import Config
from genjax.errors import UserError
from genjax.parallel.mesh import BATCH_AXES
from genjax.task import Tree


class ScheduleConfig(Config):
    """Learning rate over the run: a linear warm-up from zero, then a decay."""

    kind: Literal["constant", "cosine", "linear"] = "cosine"
    """Shape of the decay after the warm-up; "constant" does not decay."""
    warmup_steps: int = Field(default=0, ge=0)
    """Steps over which the rate rises linearly from zero to its peak."""
    decay_steps: int | None = Field(default=None, ge=1)
    """Step at which the decay ends, counted from the run's start; the run's length by default."""
    final_fraction: float = Field(default=0.1, ge=0.0, le=1.0)
    """Rate at the end of the decay, as a fraction of the peak."""

    @field_validator("decay_steps")
    @classmethod
    def _decays_after_warmup(cls, decay_steps: int | None, info: Any) -> int | None:
        warmup_steps = info.data.get("warmup_steps", 0)
        if decay_steps is not None and decay_steps <= warmup_steps:
            raise ValueError(
                f"{decay_steps} is not after the warm-up; give more than warmup_steps = "
                f"{warmup_steps}"
            )
        return decay_steps


class _Optimizer(Config):
    learning_rate: float = Field(default=1e-3, gt=0.0, allow_inf_nan=False)
    """Peak learning rate."""
    schedule: ScheduleConfig = ScheduleConfig()
    """Learning rate over the run."""
    clip_norm: float = Field(default=1.0, ge=0.0, allow_inf_nan=False)
    """Scale gradients down to this global L2 norm; 0 for no clipping."""
    weight_decay: float = Field(default=0.0, ge=0.0, allow_inf_nan=False)
    """Decoupled weight decay of kernels and embeddings, relative to the learning rate."""
    accumulate: int = Field(default=1, ge=1)
    """Split each batch into this many parts and add up their gradients, to save memory."""
    ema_decay: float = Field(default=0.0, ge=0.0, lt=1.0)
    """Decay of the average of parameters to evaluate and sample with; 0 for no average."""


class AdamWConfig(_Optimizer):
    """AdamW (Loshchilov & Hutter 2019)."""

    kind: Literal["adamw"] = "adamw"
    """Adam with decoupled weight decay."""
    beta1: float = Field(default=0.9, ge=0.0, lt=1.0)
    """Decay of the gradient's average."""
    beta2: float = Field(default=0.95, ge=0.0, lt=1.0)
    """Decay of the squared gradient's average."""
    epsilon: float = Field(default=1e-8, gt=0.0, allow_inf_nan=False)
    """Added to the root of the second moment."""


class SGDConfig(_Optimizer):
    """Stochastic gradient descent with momentum."""

    kind: Literal["sgd"] = "sgd"
    """Plain gradient descent, with momentum if asked for."""
    momentum: float = Field(default=0.0, ge=0.0, lt=1.0)
    """Decay of the accumulated update; 0 for none."""
    nesterov: bool = False
    """Look ahead along the momentum (Nesterov); needs momentum."""

    @field_validator("nesterov")
    @classmethod
    def _has_momentum(cls, nesterov: bool, info: Any) -> bool:
        if nesterov and not info.data.get("momentum", 0.0):
            raise ValueError("true looks ahead along the momentum; give a momentum above 0")
        return nesterov


class AdafactorConfig(_Optimizer):
    """Adafactor (Shazeer & Stern 2018): the learning rate is relative to a parameter's size."""

    kind: Literal["adafactor"] = "adafactor"
    """Second moments factored into rows and columns, to save memory."""
    decay_rate: float = Field(default=0.8, gt=0.0, lt=1.0)
    """Exponent of the second moment's decay over steps."""


class LionConfig(_Optimizer):
    """Lion (Chen et al. 2023)."""

    kind: Literal["lion"] = "lion"
    """Sign of an interpolated momentum; wants a rate 3 to 10 times lower than AdamW's."""
    beta1: float = Field(default=0.9, ge=0.0, lt=1.0)
    """Interpolation between momentum and gradient in the update."""
    beta2: float = Field(default=0.99, ge=0.0, lt=1.0)
    """Decay of the momentum."""


class MuonConfig(_Optimizer):
    """Muon (Jordan 2024) for kernels inside the network, AdamW for all other parameters."""

    kind: Literal["muon"] = "muon"
    """Orthogonalised momentum by Newton-Schulz iteration; AdamW's betas are 0.9 and 0.95."""
    momentum: float = Field(default=0.95, ge=0.0, lt=1.0)
    """Decay of the momentum."""
    adam_learning_rate_ratio: float = Field(default=0.1, gt=0.0, allow_inf_nan=False)
    """Learning rate of AdamW for the other parameters, relative to `learning_rate`."""


OptimizerConfig = Annotated[
    AdamWConfig | SGDConfig | AdafactorConfig | LionConfig | MuonConfig,
    Field(discriminator="kind"),
]


Schedule = Callable[[Any], Float[Array, ""]]


def make_schedule(config: OptimizerConfig, steps: int) -> Schedule:
    """The learning rate at a step (counted from 0) of a run of `steps` steps.

    The warm-up reaches its first nonzero rate at step 0, peak / (warmup_steps + 1), and the peak
    right after its last step. The decay then goes from the peak to `final_fraction` of it at
    `decay_steps`, and the rate stays there.
    """
    schedule = config.schedule
    warmup = schedule.warmup_steps
    length = max((schedule.decay_steps or steps) - warmup, 1)

    def rate(step: Any) -> Float[Array, ""]:
        step = jnp.asarray(step, jnp.float32)
        share = jnp.clip((step - warmup) / length, 0.0, 1.0)
        if schedule.kind == "constant":
            decayed = jnp.ones_like(step)
        else:
            shape = (
                1.0 - share if schedule.kind == "linear" else 0.5 * (1 + jnp.cos(jnp.pi * share))
            )
            decayed = schedule.final_fraction + (1.0 - schedule.final_fraction) * shape
        rising = (step + 1.0) / (warmup + 1.0)
        return config.learning_rate * jnp.where(step < warmup, rising, decayed)

    return rate


def _leaf_name(path: tuple[Any, ...]) -> str:
    return str(getattr(path[-1], "key", path[-1]))


def decays(params: Tree) -> Tree:
    """Which parameters decay: kernels and embeddings, by name.

    Not by number of dimensions, since the biases of stacked layers are two-dimensional.
    """
    return jax.tree_util.tree_map_with_path(
        lambda path, _: _leaf_name(path).endswith(("kernel", "embedding")), params
    )


def _muon_labels(params: Tree) -> Tree:
    """Which parameters Muon takes: the kernels inside the network.

    A kernel is a matrix [.., in, out]; leading axes are stacked layers.
    """

    def label(path: tuple[Any, ...], leaf: Any) -> str:
        inside = all(str(getattr(key, "key", key)) != "output" for key in path)
        matrix = _leaf_name(path).endswith("kernel") and leaf.ndim >= 2
        return "muon" if inside and matrix else "adamw"

    return jax.tree_util.tree_map_with_path(label, params)


def _muon_dimensions(kernels: Tree) -> Tree:
    return jax.tree.map(
        lambda kernel: optax.contrib.MuonDimensionNumbers(kernel.ndim - 2, kernel.ndim - 1),
        kernels,
    )


def _muon(config: MuonConfig, rate: Schedule) -> optax.GradientTransformation:
    """Orthogonalised momentum, scaled so that wide and tall kernels change outputs alike."""

    def scaled(update: Any, _: Any) -> Array:
        return update * max(1.0, update.shape[-1] / update.shape[-2]) ** 0.5

    return optax.chain(
        optax.contrib.scale_by_muon(
            beta=config.momentum, weight_dimension_numbers=_muon_dimensions
        ),
        optax.stateless_with_tree_map(scaled),
        optax.add_decayed_weights(config.weight_decay),
        optax.scale_by_learning_rate(rate),
    )


def make_optimizer(config: OptimizerConfig, steps: int) -> optax.GradientTransformation:
    """The optax transformation of a config, for a run of `steps` steps."""
    rate = make_schedule(config, steps)
    decay = config.weight_decay
    match config:
        case AdamWConfig():
            method = optax.adamw(
                rate,
                b1=config.beta1,
                b2=config.beta2,
                eps=config.epsilon,
                weight_decay=decay,
                mask=decays,
            )
        case SGDConfig():
            # The decay comes after the momentum, which it is to stay out of.
            method = optax.chain(
                optax.trace(config.momentum, config.nesterov)
                if config.momentum
                else optax.identity(),
                optax.add_decayed_weights(decay, decays) if decay else optax.identity(),
                optax.scale_by_learning_rate(rate),
            )
        case AdafactorConfig():
            # Its own decay would leave the learning rate out, so the rate comes last. Adafactor's
            # updates are already negative, and so is the decay here.
            method = optax.chain(
                optax.adafactor(learning_rate=None, decay_rate=config.decay_rate),
                optax.add_decayed_weights(-decay, decays) if decay else optax.identity(),
                optax.scale_by_schedule(rate),
            )
        case LionConfig():
            method = optax.lion(
                rate, b1=config.beta1, b2=config.beta2, weight_decay=decay, mask=decays
            )
        case MuonConfig():
            ratio = config.adam_learning_rate_ratio
            adamw = optax.adamw(
                lambda step: ratio * rate(step), b2=0.95, weight_decay=decay, mask=decays
            )
            method = optax.partition({"muon": _muon(config, rate), "adamw": adamw}, _muon_labels)
    if config.clip_norm:
        return optax.chain(optax.clip_by_global_norm(config.clip_norm), method)
    return optax.chain(method)


Sums = TypeVar("Sums")
Carry = TypeVar("Carry")


def accumulate(
    gradients: Callable[[Any, Any, Array], tuple[Sums, Carry]],
    parts: int,
    batch: Any,
    carry: Carry,
    key: Array,
) -> tuple[Sums, Carry]:
    """Add up what `gradients` returns over parts of a batch, one after the other.

    Args:
        gradients: from a batch, its carry and a random key to sums over the batch's examples
            (never means, so that parts of different weight add up right) and the next carry.
        parts: how many parts; must divide the batch.
        batch: arrays whose leading axis counts examples.
        carry: arrays whose leading axis counts examples, or an empty tree.
        key: random key; each part folds in its number.

    Returns:
        The sums over the whole batch and its next carry.

    Raises:
        UserError: the parts do not divide the batch, or the devices a part.
    """
    if parts == 1:
        return gradients(batch, carry, key)
    _check_parts(parts, jax.tree.leaves(batch)[0].shape[0])

    def split(array: Array) -> Array:
        # Part p takes rows p, p + parts, ..: a device then keeps the rows that it has.
        return array.reshape(-1, parts, *array.shape[1:]).swapaxes(0, 1)

    def join(array: Array) -> Array:
        return array.swapaxes(0, 1).reshape(-1, *array.shape[2:])

    def part_gradients(part: Any) -> tuple[Any, Any]:
        number, part_batch, part_carry = part
        return gradients(part_batch, part_carry, jax.random.fold_in(key, number))

    def body(sums: Any, part: Any) -> tuple[Any, Any]:
        new, next_carry = part_gradients(part)
        return jax.tree.map(jnp.add, sums, new), next_carry

    inputs = (jnp.arange(parts), jax.tree.map(split, batch), jax.tree.map(split, carry))
    shapes, _ = jax.eval_shape(
        lambda stacked: part_gradients(jax.tree.map(lambda array: array[0], stacked)), inputs
    )
    zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
    sums, next_carry = jax.lax.scan(body, zeros, inputs)
    return sums, jax.tree.map(join, next_carry)


def _check_parts(parts: int, size: int) -> None:
    if size % parts:
        raise UserError(
            f"optimizer.accumulate: {parts} parts do not divide the batch of {size} examples; "
            "change one of the two"
        )
    mesh = jax.sharding.get_abstract_mesh()
    ways = math.prod(mesh.shape[axis] for axis in BATCH_AXES if axis in mesh.shape)
    # Devices that share an example would all do its work.
    if size // parts % ways:
        raise UserError(
            f"optimizer.accumulate: a part of {size // parts} examples ({size} in {parts} parts) "
            f"does not split over the {ways} devices of {' x '.join(BATCH_AXES)}; accumulate fewer "
            f"parts, or make the batch a multiple of {parts * ways}"
        )


def update_average(average: Tree, params: Tree, decay: float) -> Tree:
    """One step of an exponential moving average: decay * average + (1 - decay) * params."""
    return move_average(average, params, 1.0 - decay)


def move_average(average: Tree, params: Tree, weight: float | Float[Array, ""]) -> Tree:
    """One step of an average that takes `weight` of the new parameters and keeps the rest."""
    return jax.tree.map(lambda a, p: a + weight * (p - a), average, params)
