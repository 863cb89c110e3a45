"""`python -m train` in a process of its own, with the toy among its families.

Run as `python -m tests.train.processes`, it is that program.
"""

import contextlib
import dataclasses
import os
import re
import resource
import signal
import socket
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


def address():
    """Where the processes of a run can meet on this machine."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        return f"127.0.0.1:{server.getsockname()[1]}"


@contextlib.contextmanager
def several(count, *arguments, devices=4, **settings):
    """The processes of one run, each with so many devices; what is left at the end is killed."""
    shared = ["--coordinator", address(), "--num-processes", count]
    settings = {"JAX_NUM_CPU_DEVICES": str(devices)} | settings
    with contextlib.ExitStack() as stack:
        yield [
            stack.enter_context(
                finished(start(*arguments, *shared, "--process-id", index, **settings))
            )
            for index in range(count)
        ]


def outcomes(processes, seconds=120):
    """Exit codes and outputs of processes once all have ended; talk of the transport left out."""
    said = [process.communicate(timeout=seconds)[0] for process in processes]
    return [process.returncode for process in processes], [_without_transport(t) for t in said]


def _without_transport(text):
    """Gloo writes its lines in pieces, and from two threads: those of two lines may mix."""
    pieces = ("[Gloo] Rank ", " is connected to ", " peer ranks. ")
    pieces += ("Expected number of connected peer ranks is : ",)
    for piece in pieces:
        text = text.replace(piece, "\0")
    return re.sub(r"(?m)^[\d\0]*\0[\d\0]*\n|^\d*\n", "", text)


def run(*arguments, seconds=120, **settings):
    """Run the program to its end; returns exit code and output."""
    with finished(start(*arguments, **settings)) as process:
        output, _ = process.communicate(timeout=seconds)
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
        def init(self, key):
            state = super().init(key)
            if "TOY_LARGE" not in os.environ:
                return state
            # Random numbers that no step touches, enough to have files of their own.
            return dataclasses.replace(state, ema={"table": jax.random.normal(key, (128, 128))})

        def variant(self, step):
            time.sleep(float(os.environ.get("TOY_SLEEP", "0")))
            if step == int(os.environ.get("TOY_HANGS_AT", "-1")):
                threading.Event().wait()
            here = f"{jax.process_index()}:{step}"
            if here in os.environ.get("TOY_CANNOT_WRITE", ""):
                # As long as it stands there, such as "1:4 1:5".
                resource.setrlimit(resource.RLIMIT_FSIZE, (64, resource.RLIM_INFINITY))
            elif "TOY_CANNOT_WRITE" in os.environ:
                resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY,) * 2)
            if here == os.environ.get("TOY_FAILS"):
                raise RuntimeError("the toy fails")
            return super().variant(step)

    class Config(ToyConfig):
        def make_task(self, assets=None):
            return SlowToy(self)

    # Too large a file is an error then, as on a full disk.
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    program.FAMILIES = {**program.FAMILIES, "toy": Config}
    return program.main()


if __name__ == "__main__":
    sys.exit(main())
