#!/usr/bin/env bash
# Serves what the runs wrote: bash launch/tensorboard.sh [LOGDIR] [--flags]
#
# LOGDIR is runs where none is given; a relative path is taken from the root of
# the repository; the flags are TensorBoard's. On a machine that you came to by
# ssh it says how the page is seen from your own. For the runs of a Cloud TPU
# VM, at the same address here, with the flags of launch/tpu_vm.sh:
#
#   bash launch/tensorboard.sh --tpu-vm --zone=ZONE [--name=NAME] [--port=PORT]
set -euo pipefail

if [[ ${1:-} == --tpu-vm ]]; then
  shift
  exec bash "$(dirname "${BASH_SOURCE[0]}")/tpu_vm.sh" tensorboard "$@"
fi
logdir=runs
if [[ ${1:-} && ($1 != -* || $1 == --logdir=*) ]]; then
  logdir=${1#--logdir=}
  shift
fi
unset CDPATH # or cd may go elsewhere, and says where
cd "$(dirname "${BASH_SOURCE[0]}")/.."
if [[ ! -d $logdir ]]; then
  echo "Error: no such folder: $logdir: name a workdir or a folder of them; launch/local.sh makes runs." >&2
  exit 2
fi
# shellcheck source-path=SCRIPTDIR source=environment.sh
source launch/environment.sh
if ! "$venv/bin/python" -c 'import importlib.util; 1 / bool(importlib.util.find_spec("tensorboard"))' 2> /dev/null; then
  echo "Error: no TensorBoard in $venv: $venv/bin/python -m pip install tensorboard; report.html in each workdir needs none." >&2
  exit 2
fi
# The client's address and port, and ours.
read -r _ _ address ssh_port <<< "${SSH_CONNECTION:-}"
if [[ $address ]]; then
  port=6006 before=
  for flag; do
    [[ $flag != --port=* ]] || port=${flag#*=}
    [[ $before != --port ]] || port=$flag
    before=$flag
  done
  tunnel="ssh -L $port:localhost:$port $(id -un)@$address"
  [[ $ssh_port == 22 ]] || tunnel=${tunnel/ssh/ssh -p $ssh_port}
  echo "From your own machine: $tunnel, then http://localhost:$port." >&2
fi
exec "$venv/bin/python" -m tensorboard.main "--logdir=$logdir" "$@"
