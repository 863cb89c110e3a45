#!/bin/bash
# A run under Open MPI 4: JAX finds the processes by the variables that mpirun sets. Elsewhere, or
# where mpirun sets others (Open MPI 5), start each process with its place:
#   python -m train CONFIG --coordinator HOST:PORT --num-processes N --process-id I
#
#   PROCESSES=2 docs/launch/mpi.sh configs/text/demo.toml --workdir runs/demo
#
# As under SLURM, JAX wants one process for each GPU, and each process to see all GPUs of its node.
set -euo pipefail

exec mpirun -n "${PROCESSES:?how many processes}" --bind-to none -x PATH \
    ${JAX_PLATFORMS+-x JAX_PLATFORMS} ${JAX_COMPILATION_CACHE_DIR+-x JAX_COMPILATION_CACHE_DIR} \
    python -m train "$@"
