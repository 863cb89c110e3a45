"""How JAX is set up before its first use: compilation cache and compiler flags."""

import logging
import os
from pathlib import Path

import jax
from pydantic import Field

from genjax.config import Config
from genjax.parallel.allocator import keep_freed_memory


class PlatformConfig(Config):
    """How JAX is set up."""

    compilation_cache: str | None = "~/.cache/genjax/xla"
    """Folder that keeps compiled programs between runs; an empty text turns it off."""
    reading_threads: int = Field(default=1, ge=0)
    """Threads that read batches ahead; 0 reads each batch when it is needed."""
    start_timeout: int = Field(default=300, ge=1)
    """Of several processes: how many seconds the first wait for the last."""


def start(config: PlatformConfig) -> None:
    """Set up JAX for a run. Call before anything touches a device."""
    # First: JAX's threads take up the memory arenas that they find when they start.
    keep_freed_memory()
    # Orbax tells every step of its work; what matters to a user is told by the loop.
    logging.getLogger("absl").setLevel(logging.ERROR)
    if config.compilation_cache:
        folder = Path(os.environ.get("JAX_COMPILATION_CACHE_DIR", config.compilation_cache))
        jax.config.update("jax_compilation_cache_dir", str(folder.expanduser()))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)
