"""A trained generator as something to draw from: latents by number, truncation, styles.

Letters: B batch, H height, W width, C channels, Z latent size, L layers, D style size.
"""

import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import numpy as np
from jaxtyping import Array, Float, Int, Key, UInt8

from genjax.errors import UserError
from genjax.nn.layout import gathered
from genjax.parallel.partition import split_like_batch
from genjax.task import Tree

Labels = Int[Array, "B"] | None


def latents_by_number(
    key: Key[Array, ""], numbers: Int[Array, "B"], latent_size: int
) -> Float[Array, "B Z"]:
    """Standard normal latents, each a function of the key and its own number alone."""

    def one(number: Array) -> Array:
        return jax.random.normal(jax.random.fold_in(key, number), (latent_size,))

    return jax.vmap(one)(numbers)


def to_uint8(images: Float[np.ndarray, "B H W C"]) -> UInt8[np.ndarray, "B H W C"]:
    """Images in about [-1, 1] as stored ones; what lies outside is clipped."""
    return np.clip(np.round((images + 1.0) * 127.5), 0, 255).astype(np.uint8)


class GeneratorView:
    """Images of a generator with its trained (averaged) parameters, always without randomness.

    Noise inside the generator is its constant noise, so an image depends on its latents alone.
    """

    def __init__(self, generator: nn.Module, batch_size: int) -> None:
        """Prepare to draw `batch_size` images at a time."""
        self.generator = generator
        self.batch_size = batch_size
        self._draw = jax.jit(_fetchable(self.images), static_argnames=("truncate", "cutoff"))
        self._styles = jax.jit(_fetchable(self.styles), static_argnames="cutoff")
        self._synthesis = jax.jit(_fetchable(self.synthesis))

    @property
    def has_styles(self) -> bool:
        """Whether images come from styles that can be mixed and truncated."""
        return hasattr(type(self.generator), "truncated_styles")

    # ---- pure functions -----------------------------------------------------------------------

    def images(
        self,
        variables: Tree,
        latents: Float[Array, "B Z"],
        labels: Labels,
        truncation: Float[Array, ""] | float = 1.0,
        *,
        truncate: bool = False,
        cutoff: int | None = None,
    ) -> Float[Array, "B H W C"]:
        """Images of latents; truncated only if `truncate`."""
        if truncate:
            styles = self.styles(variables, latents, labels, truncation, cutoff=cutoff)
            return self.synthesis(variables, styles)
        variables, latents = gathered(variables), split_like_batch(latents)
        result: Any = self.generator.apply(variables, latents, labels)
        return result

    def styles(
        self,
        variables: Tree,
        latents: Float[Array, "B Z"],
        labels: Labels,
        truncation: Float[Array, ""] | float = 1.0,
        *,
        cutoff: int | None = None,
    ) -> Float[Array, "B L D"]:
        """Styles of latents, truncated."""
        variables, latents = gathered(variables), split_like_batch(latents)
        result: Any = self.generator.apply(
            variables, latents, labels, truncation, cutoff, method="truncated_styles"
        )
        return result

    def synthesis(self, variables: Tree, styles: Float[Array, "B L D"]) -> Float[Array, "B H W C"]:
        """Images of styles."""
        variables, styles = gathered(variables), split_like_batch(styles)
        result: Any = self.generator.apply(variables, styles, method="synthesis")
        return result

    # ---- from the host, any number of them ----------------------------------------------------

    def draw(
        self,
        variables: Tree,
        latents: Float[Array, "N Z"] | Float[np.ndarray, "N Z"],
        labels: Int[np.ndarray, "N"] | None,
        truncation: float = 1.0,
        cutoff: int | None = None,
    ) -> Float[np.ndarray, "N H W C"]:
        """Images of any number of latents, float32.

        Raises:
            UserError: truncation is asked of a generator without styles.
        """
        truncate = truncation != 1.0
        if truncate:
            self.check_styles("truncation")
        # On the host every one of several processes has all of them.
        latents = np.asarray(latents)
        parts = []
        for rows in _chunks(len(latents), self.batch_size):
            drawn = self._draw(
                variables,
                latents[rows],
                None if labels is None else labels[rows],
                truncation,
                truncate=truncate,
                cutoff=cutoff if truncate else None,
            )
            parts.append(np.asarray(drawn))
        return np.concatenate(parts)[: len(latents)]

    def draw_styles(
        self,
        variables: Tree,
        latents: Float[Array, "N Z"] | Float[np.ndarray, "N Z"],
        labels: Int[np.ndarray, "N"] | None,
        truncation: float = 1.0,
        cutoff: int | None = None,
    ) -> Float[np.ndarray, "N L D"]:
        """Styles of any number of latents."""
        latents, parts = np.asarray(latents), []
        for rows in _chunks(len(latents), self.batch_size):
            some = None if labels is None else labels[rows]
            styles = self._styles(variables, latents[rows], some, truncation, cutoff=cutoff)
            parts.append(np.asarray(styles))
        return np.concatenate(parts)[: len(latents)]

    def draw_synthesis(
        self, variables: Tree, styles: Float[np.ndarray, "N L D"]
    ) -> Float[np.ndarray, "N H W C"]:
        """Images of any number of styles."""
        chunks = _chunks(len(styles), self.batch_size)
        parts = [np.asarray(self._synthesis(variables, styles[rows])) for rows in chunks]
        return np.concatenate(parts)[: len(styles)]

    def check_styles(self, what: str) -> None:
        """Check that the generator has styles.

        Raises:
            UserError: it has not.
        """
        if not self.has_styles:
            raise UserError(
                f"{what}: {type(self.generator).__name__} has no styles; a run with "
                'model.kind = "stylegan2" has'
            )


def _fetchable(function: Callable[..., Array]) -> Callable[..., Array]:
    """A function whose result each of several processes can fetch whole."""

    @functools.wraps(function)
    def whole(*arguments: Any, **settings: Any) -> Array:
        return gathered(function(*arguments, **settings))

    return whole


def _chunks(count: int, size: int) -> list[np.ndarray]:
    """Rows in pieces of one size; the last one begins again from the front."""
    return [np.arange(start, start + size) % count for start in range(0, count, size)]
