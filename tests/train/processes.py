"""`python -m train` in a process of its own, with the toy among its families.

Run as `python -m tests.train.processes`, it is that program.
"""

import contextlib
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

ROOT = Path(__file__).parents[2]

TOY = """\
kind = "toy"
steps = 12
mesh.data = 1
checkpoint = { every = 2, keep_last = 2 }
log.every = 1
"""


def start(*arguments, toy=True, shell_prefix=(), **environment):
    """Start the program; its output is one text."""
    module = "tests.train.processes" if toy else "train"
    return subprocess.Popen(
        [*shell_prefix, sys.executable, "-m", module, *map(str, arguments)],
        cwd=ROOT,
        env=os.environ | {"JAX_NUM_CPU_DEVICES": "1"} | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def run(*arguments, **settings):
    """Run the program to its end; returns exit code and output."""
    with finished(start(*arguments, **settings)) as process:
        output, _ = process.communicate(timeout=120)
    return process.returncode, output


@contextlib.contextmanager
def finished(process):
    """Kill a process that a test left running."""
    try:
        yield process
    finally:
        if process.poll() is None:
            process.kill()
        process.communicate()


def wait_for(condition, process=None, seconds=90):
    """Poll until something is so; fails if the process ends before."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen"
        if process is not None and process.poll() is not None:
            raise AssertionError(f"ended with {process.returncode}: {process.stdout.read()}")
        time.sleep(0.005)


def main():
    import jax

    import train.__main__ as program
    from tests.toy import Toy, ToyConfig

    class SlowToy(Toy):
        def variant(self, step):
            time.sleep(float(os.environ.get("TOY_SLEEP", "0")))
            if step == int(os.environ.get("TOY_HANGS_AT", "-1")):
                threading.Event().wait()
            if f"{jax.process_index()}:{step}" == os.environ.get("TOY_FAILS"):
                raise RuntimeError("the toy fails")
            return super().variant(step)

    class Config(ToyConfig):
        def make_task(self, assets=None):
            return SlowToy(self)

    program.FAMILIES = {**program.FAMILIES, "toy": Config}
    return program.main()


if __name__ == "__main__":
    sys.exit(main())
