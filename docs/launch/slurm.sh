#!/bin/bash
# A run on a SLURM cluster; it goes on by itself after a time limit, a preemption or a lost node.
#
#   sbatch --nodes=4 docs/launch/slurm.sh configs/text/transformer_1_3b.toml --workdir /shared/runs/transformer-1-3b
#
# The run directory lies on a file system that all nodes share. JAX finds the processes by itself.
#SBATCH --job-name=genjax
#SBATCH --nodes=2
# JAX wants one task for each GPU of a node here, and every task to see all GPUs of its node: no
# --gpus-per-task. On nodes without GPUs, set 1 and leave --gpus-per-node out.
#SBATCH --ntasks-per-node=8
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=8
#SBATCH --exclusive
#SBATCH --time=24:00:00
# SIGTERM goes to the tasks this many seconds before the time limit: enough for a step and a save.
#SBATCH --signal=TERM@300
#SBATCH --requeue
# One file, whatever the number of restarts.
#SBATCH --open-mode=append
#SBATCH --output=%x-%j.out

set -u

# Programs compiled once are kept here; on a shared file system, for all nodes and restarts.
export JAX_COMPILATION_CACHE_DIR="${JAX_COMPILATION_CACHE_DIR:-$HOME/.cache/genjax/xla}"

# All tasks end by themselves when one does: SLURM must not end those that still save.
srun --kill-on-bad-exit=0 python -m train "$@"
code=$?

# 75: saved and stopped by a signal. 5, 6: hung, or lost a process. From 128: killed.
if (( code == 75 )) || { (( code == 5 || code == 6 || code >= 128 )) \
        && (( ${SLURM_RESTART_COUNT:-0} < 20 )); }; then
    echo "exit code $code: the job goes on from its newest checkpoint"
    scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
