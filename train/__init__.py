"""The shell around the tasks: the loop, checkpoints, logs and signals. Here time passes."""

import time

BEGAN = time.perf_counter()
"""When this program began, before its slow imports."""
