#!/bin/bash
# The same as jobset.yaml by XPK, which writes the JobSet itself.
#
#   CLUSTER=my-cluster IMAGE=REGISTRY/genjax STORAGE=runs docs/launch/xpk.sh configs/text/transformer_1_3b.toml
#
# STORAGE is a storage that `xpk storage` attached to the cluster, mounted at /runs.
set -euo pipefail

: "${CLUSTER:?the name of the cluster}" "${IMAGE:?an image with genjax installed}"
: "${STORAGE:?the name of a storage of the cluster that is mounted at /runs}"
NAME="${NAME:-genjax}"
arguments="$(printf ' %q' "$@")"

# Beyond the restarts that XPK makes of itself: 5 hung, 6 lost a process, 75 stopped and saved.
xpk workload create \
    --cluster="$CLUSTER" \
    --workload="$NAME" \
    --tpu-type="${TPU_TYPE:-v5litepod-16}" \
    --num-slices="${SLICES:-1}" \
    --docker-image="$IMAGE" \
    --storage="$STORAGE" \
    --max-restarts=20 \
    --restart-on-exit-codes=5,6,75 \
    --termination-grace-period-seconds=300 \
    --command="exec python -m train$arguments --workdir /runs/$NAME"
