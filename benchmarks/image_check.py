"""Whether both sides of a benchmark compute the same: one set of parameters, one of inputs.

Networks at the benchmarks' own sizes, on the CPU, in float64: in float32 rounding decides the side
of zero for some of the many activations, and with it a ten-thousandth of a gradient. Compared are
images, logits, both losses and their gradients by all parameters and, for StyleGAN2, the R1
penalty, path lengths and the gradients of both. An error is relative to the greatest number.
"""

import functools
from collections.abc import Callable
from typing import Any

import numpy as np

from benchmarks.image_steps import Game, make_task
from benchmarks.resampling import SHAPE, depthwise

TOLERANCE = 1e-9

STRENGTH = "noise_strength"
"""These stay at zero, and their gradients are left out: each side draws noise of its own."""

Figures = dict[str, np.ndarray]


def check_game(game: Game) -> dict[str, float]:
    """The error of each figure of genjax's networks against PyTorch's."""
    import jax

    with jax.enable_x64(True):
        ours, params = _genjax_figures(game)
    theirs = _torch_figures(game, params)
    assert ours.keys() == theirs.keys()
    return {name: relative_error(ours[name], theirs[name]) for name in ours}


def check_resampling() -> dict[str, float]:
    """The error of genjax's upsampling against the depthwise convolution."""
    import jax
    import jax.numpy as jnp

    from benchmarks.resampling import TAPS
    from genjax.nn.resample import upsample2d

    with jax.enable_x64(True):
        images = jnp.asarray(np.random.default_rng(0).normal(size=SHAPE))
        return {"images": relative_error(upsample2d(images, TAPS), depthwise(images))}


def relative_error(actual: Any, expected: Any) -> float:
    """The greatest difference over the greatest number."""
    actual, expected = np.asarray(actual, np.float64), np.asarray(expected, np.float64)
    assert actual.shape == expected.shape, f"{actual.shape} is not {expected.shape}"
    return float(np.abs(actual - expected).max() / np.abs(expected).max())


def _inputs(game: Game, latent_size: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Latents, real images and the direction of path lengths, [B, Z] and [B, H, W, C]."""
    rng = np.random.default_rng(1)
    latents = rng.normal(size=(game.batch_size, latent_size))
    real = game.images() / 127.5 - 1
    direction = rng.normal(size=real.shape)
    return latents, real, direction


# ---- genjax -----------------------------------------------------------------------------------


def _genjax_figures(game: Game) -> tuple[Figures, dict[str, Any]]:
    import jax
    import jax.numpy as jnp
    from flax.traverse_util import flatten_dict

    from genjax.image.losses import LOSSES
    from genjax.image.regularizers import logits_and_squared_gradient, zero_centered_penalty

    task = make_task(game)
    state = jax.jit(task.init)(jax.random.key(0))
    params = {name: _randomized(tree) for name, tree in state.params.items()}
    inputs = _inputs(game, task.config.model.latent_size)
    latents, real, direction = map(jnp.asarray, inputs)
    loss = LOSSES[game.objective["loss"]]
    networks = {
        "generator": task.step.generator.clone(dtype=jnp.float64),
        "discriminator": task.step.judges["discriminator"].network.clone(dtype=jnp.float64),
    }

    def apply(name: str, tree: Any, *arguments: Any, **settings: Any) -> Any:
        variables = {"params": tree, "statistics": state.carry["statistics"][name]}
        return networks[name].apply(variables, *arguments, mutable=["statistics"], **settings)[0]

    styled = game.model["kind"] == "stylegan2"
    generate = functools.partial(apply, "generator", train=not styled)
    judge = functools.partial(apply, "discriminator", train=True)

    def generator_loss(tree: Any) -> Any:
        fake = generate(tree, latents)
        logits = judge(params["discriminator"], fake)
        return loss.generator(logits, logits), fake

    def discriminator_loss(tree: Any, fake: Any) -> Any:
        logits = judge(tree, real)
        return loss.discriminator(logits, judge(tree, fake)), logits

    def penalty(tree: Any) -> Any:
        score = lambda images: (judge(tree, images), None)  # noqa: E731
        return zero_centered_penalty(logits_and_squared_gradient(score, real)[1])

    def lengths(tree: Any) -> Any:
        styles = apply("generator", tree, latents, method="styles")

        def product(styles: Any) -> Any:
            images = apply("generator", tree, styles, method="synthesis")
            return jnp.sum(images * direction) / game.size

        squares = jnp.square(jax.grad(product)(styles))
        values = jnp.sqrt(jnp.mean(jnp.sum(squares, -1), -1))
        return jnp.mean(jnp.square(values)), values

    def differentiated(function: Callable[..., Any], *arguments: Any, aux: bool = True) -> Any:
        return jax.jit(jax.value_and_grad(function, has_aux=aux))(*arguments)

    def flat(gradient: Any) -> np.ndarray:
        leaves = sorted(flatten_dict(gradient).items())
        return np.concatenate([np.ravel(leaf) for path, leaf in leaves if path[-1] != STRENGTH])

    (value, fake), gradient = differentiated(generator_loss, params["generator"])
    figures: dict[str, Any] = {
        "images": fake,
        "generator loss": value,
        "generator gradient": flat(gradient),
    }
    (value, logits), gradient = differentiated(discriminator_loss, params["discriminator"], fake)
    figures |= {
        "logits": logits,
        "discriminator loss": value,
        "discriminator gradient": flat(gradient),
    }
    if styled:
        value, gradient = differentiated(penalty, params["discriminator"], aux=False)
        figures |= {"R1 penalty": value, "R1 gradient": flat(gradient)}
        (_, values), gradient = differentiated(lengths, params["generator"])
        figures |= {"path lengths": values, "path length gradient": flat(gradient)}
    return {name: np.asarray(figure) for name, figure in figures.items()}, params


def _randomized(tree: Any) -> Any:
    """Parameters with biases that are not zero."""
    import jax

    rng = np.random.default_rng(0)

    def draw(path: Any, leaf: Any) -> np.ndarray:
        constant = path[-1].key == STRENGTH or leaf.ndim > 1
        noise = 0.0 if constant else 0.1 * rng.normal(size=leaf.shape)
        return np.asarray(leaf, np.float64) + noise

    return jax.tree_util.tree_map_with_path(draw, tree)


# ---- PyTorch ----------------------------------------------------------------------------------


def _torch_figures(game: Game, params: dict[str, Any]) -> Figures:
    import torch
    from torch.nn import functional as F

    from benchmarks.image_steps import torch_networks

    styled = game.model["kind"] == "stylegan2"
    generator, discriminator = (network.double() for network in torch_networks(game))
    generator_parameters = _filled(generator, params["generator"])
    discriminator_parameters = _filled(discriminator, params["discriminator"])
    latent_size = params["generator"]["input"]["kernel"].shape[0] if not styled else 512
    latents, real, direction = (
        torch.from_numpy(array).movedim(-1, 1) for array in _inputs(game, latent_size)
    )

    def flat_gradient(value: Any, parameters: list[Any]) -> np.ndarray:
        slopes = torch.autograd.grad(
            value, parameters, retain_graph=True, allow_unused=True, materialize_grads=True
        )
        return np.concatenate([np.ravel(_turned_back(slope.numpy())) for slope in slopes])

    if styled:
        fake = generator.synthesis_network(generator.styles(latents, mixing=0.0))
    else:
        fake = generator(latents)
    loss = F.softplus(-discriminator(fake)).mean()
    figures: dict[str, Any] = {
        "images": fake.movedim(1, -1),
        "generator loss": loss,
        "generator gradient": flat_gradient(loss, generator_parameters),
    }
    logits = discriminator(real)
    loss = F.softplus(-logits).mean() + F.softplus(discriminator(fake.detach())).mean()
    figures |= {
        "logits": logits,
        "discriminator loss": loss,
        "discriminator gradient": flat_gradient(loss, discriminator_parameters),
    }
    if styled:
        real.requires_grad_(True)
        (slope,) = torch.autograd.grad(discriminator(real).sum(), real, create_graph=True)
        penalty = 0.5 * slope.square().sum((1, 2, 3)).mean()
        slopes = flat_gradient(penalty, discriminator_parameters)
        figures |= {"R1 penalty": penalty, "R1 gradient": slopes}
        styles = generator.styles(latents, mixing=0.0)
        product = (generator.synthesis_network(styles) * direction).sum() / game.size
        (slope,) = torch.autograd.grad(product, styles, create_graph=True)
        lengths = slope.square().sum(2).mean(1).sqrt()
        slopes = flat_gradient(lengths.square().mean(), generator_parameters)
        figures |= {"path lengths": lengths, "path length gradient": slopes}
    return {
        name: figure.detach().numpy() if isinstance(figure, torch.Tensor) else figure
        for name, figure in figures.items()
    }


def _filled(network: Any, params: Any) -> list[Any]:
    """The network's parameters in the order of genjax's, with their values; but no strengths."""
    import torch
    from flax.traverse_util import flatten_dict

    found = {}
    for (*path, name), value in sorted(flatten_dict(params).items()):
        module = network.get_submodule(".".join(path))
        own = dict(module.named_parameters(recurse=False))
        target = own[name] if name in own else own["weight"]
        with torch.no_grad():
            target.copy_(torch.from_numpy(_turned(value)))
        found[(*path, name)] = target
    assert len(found) == len(list(network.parameters()))
    return [parameter for path, parameter in found.items() if path[-1] != STRENGTH]


def _turned(array: np.ndarray) -> np.ndarray:
    """From genjax's order of axes, channels last, to PyTorch's."""
    order = {4: (3, 2, 0, 1), 3: (2, 0, 1)}.get(array.ndim)
    return np.array(array.transpose(order), order="C")


def _turned_back(array: np.ndarray) -> np.ndarray:
    order = {4: (2, 3, 1, 0), 3: (1, 2, 0)}.get(array.ndim)
    return array.transpose(order)
