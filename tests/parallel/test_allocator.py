import subprocess
import sys

import pytest

# Page faults of the last of several calls of a program with 64 MB of temporaries, more than
# glibc learns to keep by itself.
PROGRAM = """
import resource
import sys
import jax
import jax.numpy as jnp
from genjax.parallel.allocator import keep_freed_memory

if sys.argv[1] == "keep":
    assert keep_freed_memory()
step = jax.jit(lambda x: (x @ x.T).max())
inputs = jnp.ones((4096, 8))
for _ in range(4):
    step(inputs).block_until_ready()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
step(inputs).block_until_ready()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="a setting of glibc")
def test_steps_stop_faulting_pages_in():
    def faults(mode):
        command = [sys.executable, "-c", PROGRAM, mode]
        return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)

    assert faults("default") > 5000
    assert faults("keep") < 200
