#!/bin/bash
# A run on Cloud TPU VMs without Kubernetes: make the slice, install, start on all its machines.
#
#   docs/launch/tpu_vm.sh create
#   docs/launch/tpu_vm.sh install       # the newest commit of this repository, on each machine
#   docs/launch/tpu_vm.sh start configs/text/transformer_1_3b.toml --workdir /shared/runs/transformer-1-3b
#   docs/launch/tpu_vm.sh watch
#   docs/launch/tpu_vm.sh stop          # saves; `start` with the same arguments goes on
#   docs/launch/tpu_vm.sh delete
#
# The machines find one another by the TPU's metadata. The run directory lies on a file system that
# all of them have mounted (Filestore, or a bucket by gcsfuse).
set -euo pipefail

TPU_NAME="${TPU_NAME:-genjax}"
ZONE="${ZONE:-us-west4-a}"
ACCELERATOR_TYPE="${ACCELERATOR_TYPE:-v5litepod-16}"
VERSION="${VERSION:-v2-alpha-tpuv5-lite}"

everywhere() {
    gcloud compute tpus tpu-vm ssh "$TPU_NAME" --zone="$ZONE" --worker=all --command="$1"
}

action="${1:?create, install, start, watch, stop or delete}"
shift
case "$action" in
create)
    gcloud compute tpus tpu-vm create "$TPU_NAME" --zone="$ZONE" \
        --accelerator-type="$ACCELERATOR_TYPE" --version="$VERSION"
    ;;
install)
    archive="$(mktemp --suffix=.tar)"
    git archive --prefix=genjax/ --output="$archive" HEAD
    gcloud compute tpus tpu-vm scp "$archive" "$TPU_NAME:genjax.tar" --zone="$ZONE" --worker=all
    rm "$archive"
    everywhere "tar xf genjax.tar && cd genjax && make install EXTRAS=text,tpu"
    ;;
start)
    arguments="$(printf ' %q' "$@")"
    # `exec` so that the number in train.pid is that of the program, whom SIGTERM is for.
    everywhere "cd genjax || exit; nohup bash -c 'echo \$\$ > train.pid; exec .venv/bin/python -m train$arguments' \
        > train.log 2>&1 < /dev/null &"
    ;;
watch)
    gcloud compute tpus tpu-vm ssh "$TPU_NAME" --zone="$ZONE" --worker=0 \
        --command="tail --lines=20 --follow genjax/train.log"
    ;;
stop)
    everywhere 'kill -TERM "$(cat genjax/train.pid)"'
    ;;
delete)
    gcloud compute tpus tpu-vm delete "$TPU_NAME" --zone="$ZONE"
    ;;
*)
    echo "$action: create, install, start, watch, stop or delete" >&2
    exit 2
    ;;
esac
