#!/usr/bin/env bash
# Serves what the runs wrote: bash launch/tensorboard.sh [LOGDIR] [--flags]
#
# LOGDIR is runs where none is given; a relative path is taken from the root of
# the repository; the flags are TensorBoard's. For the runs of a Cloud TPU VM,
# at the same address here, with the flags of launch/tpu_vm.sh:
#
#   bash launch/tensorboard.sh --tpu-vm --zone=ZONE [--name=NAME] [--port=PORT]
set -euo pipefail

if [[ ${1:-} == --tpu-vm ]]; then
  shift
  exec bash "$(dirname "${BASH_SOURCE[0]}")/tpu_vm.sh" tensorboard "$@"
fi
logdir=runs
if [[ ${1:-} && $1 != -* ]]; then
  logdir=$1
  shift
fi
cd "$(dirname "${BASH_SOURCE[0]}")/.."
if [[ ! -d $logdir ]]; then
  echo "Error: no such folder: $logdir: name a workdir or a folder of them; launch/local.sh makes runs." >&2
  exit 2
fi
# shellcheck source-path=SCRIPTDIR source=environment.sh
source launch/environment.sh
exec "$venv/bin/python" -m tensorboard.main "--logdir=$logdir" "$@"
