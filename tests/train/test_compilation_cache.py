"""Compiled programs are kept between runs."""

from pathlib import Path

import pytest

from tests.train.processes import run
from tests.train.running import lines

DEMO = Path(__file__).parents[2] / "configs" / "text" / "demo.toml"


@pytest.mark.slow
def test_a_second_run_takes_its_step_from_the_cache(tmp_path):
    cache = tmp_path / "cache"
    seconds = []
    for name in ("first", "second"):
        code, said = run(
            *(DEMO, "--debug", "steps=2", "evaluation.every=2", "--workdir", tmp_path / name),
            toy=False,
            JAX_COMPILATION_CACHE_DIR=str(cache),
            # As users have it: the quick compilation of the tests is not worth keeping.
            XLA_FLAGS="",
        )
        assert code == 0, said
        kept = sorted(path.name for path in cache.glob("jit_train_step-*-cache"))
        seconds.append((lines(tmp_path / name, "speed")[0]["compile_seconds"], kept))
    (first, kept), (second, again) = seconds
    assert second < 0.7 * first and again == kept and len(kept) == 1
