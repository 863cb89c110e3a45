"""A run that hangs ends itself, says where it stood, and leaves its checkpoints."""

import subprocess
import sys
import time

import pytest

from tests.train.processes import ROOT, TOY, run
from train.watchdog import HUNG, PATIENCE, Watchdog

SECONDS = 0.3


def ends(body):
    """Run lines of Python, with a watchdog of `SECONDS` at hand; returns exit code and output."""
    program = f"""
import threading, time
from train.watchdog import Watchdog

def wait_forever():
    threading.Event().wait()

watchdog = Watchdog({SECONDS / 60}, lambda text: print("last words:", text, flush=True))
{body}
"""
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    return done.returncode, done.stdout + done.stderr


@pytest.mark.fast
def test_no_step_ends_it_with_the_stacks_of_all_threads():
    code, said = ends(
        "threading.Thread(target=wait_forever).start()\n"
        "with watchdog:\n    watchdog.alive(120)\n    wait_forever()"
    )
    assert code == HUNG, said
    assert "last words: no progress for 0 s: step 120, a step" in said
    assert said.count("in wait_forever") == 2, "the main thread's and the other's"
    assert said.splitlines()[-1].startswith("no progress for 0 s: step 120, a step; ended.")


@pytest.mark.fast
def test_what_is_not_a_step_may_take_longer():
    code, said = ends(
        "with watchdog:\n"
        f"    watchdog.doing(7, 'evaluation')\n    time.sleep({0.6 * PATIENCE * SECONDS})\n"
        "    print('still here', flush=True)\n    wait_forever()"
    )
    assert code == HUNG, said
    assert "still here" in said and "step 7, evaluation" in said


@pytest.mark.fast
def test_a_run_that_lives_is_left_alone():
    with Watchdog(0.2 / 60) as watchdog:
        for step in range(20):
            watchdog.alive(step)
            time.sleep(0.03)
    with Watchdog(0.05 / 60) as watchdog:
        watchdog.alive(1)
    time.sleep(0.2)  # Nothing is watched after its block.
    with Watchdog(None) as watchdog:
        watchdog.alive(1)
        time.sleep(0.1)


def test_a_run_that_hangs_in_a_step(tmp_path):
    (tmp_path / "toy.toml").write_text(TOY)
    command = (tmp_path / "toy.toml", "faults.hang_minutes=0.05", "--workdir", tmp_path / "run")
    code, said = run(*command, TOY_HANGS_AT="7")
    assert code == HUNG, said
    assert "step 7, a step; the stacks of all threads" in said and "in variant" in said
    assert "Traceback" not in said
    kept = [path.name for path in (tmp_path / "run" / "checkpoints").iterdir()]
    assert sorted(kept) == ["4", "6"]
