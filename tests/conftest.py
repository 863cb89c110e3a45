"""Shared set-up: eight CPU devices in one process, and compiled programs kept between runs."""

import gc
import os
from pathlib import Path

import jax
import pytest

_CACHE = Path(__file__).parent.parent / ".cache" / "xla"

os.environ.setdefault("JAX_PLATFORMS", "cpu")
if os.environ.get("JAX_COMPILATION_CACHE_DIR") in (None, str(_CACHE)):
    # Each of pytest-xdist's workers has its own, for entries are not written in one piece; what
    # they inherit is that of the process that started them.
    _WORKER = os.environ.get("PYTEST_XDIST_WORKER", "")
    os.environ["JAX_COMPILATION_CACHE_DIR"] = str(_CACHE / _WORKER)
# Tests compile many small programs and run each a few times: optimising them costs more than it
# saves. Set XLA_FLAGS to test what the compiler makes at its best.
os.environ.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=0")
jax.config.update("jax_platforms", os.environ["JAX_PLATFORMS"])
jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_compilation_cache_dir", os.environ["JAX_COMPILATION_CACHE_DIR"])
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)


_WAITING = ("test_crash", "test_faults", "test_processes", "test_watchdog", "test_command_line")
"""Files of tests that mostly wait for other processes."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the tests that wait, so that a worker that waits at the end keeps none idle."""
    items.sort(key=lambda item: item.path.stem not in _WAITING)


@pytest.fixture(scope="session")
def test_data() -> Path:
    """The folder of real data sets; tests that need it skip where it is missing."""
    folder = os.environ.get("GENJAX_TEST_DATA")
    if not folder or not Path(folder).is_dir():
        pytest.skip("GENJAX_TEST_DATA names no folder of data sets")
    return Path(folder)


@pytest.fixture(autouse=True, scope="module")
def _old_objects_are_left_alone():
    """Keep the collector from what earlier modules traced and compiled: a third of the time."""
    yield
    gc.freeze()
