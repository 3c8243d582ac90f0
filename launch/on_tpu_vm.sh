#!/usr/bin/env bash
# Runs on a Cloud TPU VM, where launch/tpu_vm.sh unpacks it and calls it:
# bash chimera-new/launch/on_tpu_vm.sh [COMMAND] [--flags]
#
# Takes over what was uploaded, makes the environment with JAX for TPUs, and
# starts launch/until_done.sh in the tmux session `chimera`.
set -euo pipefail
metadata=http://metadata.google.internal/computeMetadata/v1

fail() {
  echo "Error: $*" >&2
  exit 2
}

# Made whole before anything runs, for it moves the file that it stands in.
main() {
  cd
  if ! command -v tmux > /dev/null; then
    sudo apt-get -qq -o DPkg::Lock::Timeout=300 install --yes tmux
  fi
  # A dead pane is one whose training is over.
  if tmux list-panes -s -t =chimera -F '#{pane_dead}' 2> /dev/null | grep -q 0; then
    rm -f chimera-data.tar chimera-resume.tar
    fail 'a training goes on in tmux session chimera: attach to it, end it by Ctrl-C, then run again.'
  fi
  if [[ -e chimera-resume.tar && -e chimera/runs ]]; then
    rm chimera-resume.tar
    fail "the VM has runs of its own, which --resume would overwrite: leave --resume out, or move $HOME/chimera/runs away."
  fi

  # The new code takes the old one's place; .venv, data and runs stay.
  mkdir -p chimera/data
  local path
  for path in chimera-new/* chimera-new/.[!.]*; do
    [[ -e $path ]] || continue
    rm -rf "chimera/${path#*/}"
    mv "$path" chimera/
  done
  rm -rf chimera-new chimera-code.tar.gz
  if [[ -e chimera-data.tar ]]; then
    # It takes the place of what had its name: two data sets never mix.
    rm -rf chimera-data-new
    mkdir chimera-data-new
    tar -xf chimera-data.tar -C chimera-data-new
    for path in chimera-data-new/* chimera-data-new/.[!.]*; do
      [[ -e $path ]] || continue
      rm -rf "chimera/data/${path#*/}"
      mv "$path" chimera/data/
    done
    rm -rf chimera-data-new chimera-data.tar
  fi
  if [[ -e chimera-resume.tar ]]; then
    mkdir chimera/runs
    tar -xf chimera-resume.tar -C chimera/runs
    rm chimera-resume.tar
  fi

  # Ubuntu 22.04, which the TPU VMs have, has Python 3.10.
  if ! python3 -c 'import sys, venv, ensurepip; 1 / (sys.version_info >= (3, 11))' 2> /dev/null; then
    python3 -m pip install --quiet --user uv
    python3 -m uv python install --quiet 3.12
    CHIMERA_PYTHON=$(python3 -m uv python find --managed-python 3.12)
    export CHIMERA_PYTHON
  fi
  # shellcheck source-path=SCRIPTDIR source=environment.sh
  source chimera/launch/environment.sh
  "$venv/bin/python" -m pip install --quiet --requirement requirements.txt 'jax[tpu]'
  # JAX without its TPU trains on the CPU, and says so in one warning.
  local platform
  platform=$("$venv/bin/python" -c 'import jax; print(jax.devices()[0].platform, jax.device_count())' | tail -n 1)
  [[ $platform == tpu\ * ]] || fail "JAX sees no TPU here, got $platform: is it a TPU VM, and is no other program using the TPU?"
  echo "JAX sees: $platform" >&2

  # The hosts of a slice find each other; what is shown and fetched is the first's.
  local others
  others=$(curl --silent --fail --max-time 5 --header 'Metadata-Flavor: Google' \
    "$metadata/instance/attributes/worker-network-endpoints" || true)
  [[ $others != *,* ]] || set -- --coordinator=auto "$@"

  # A file keeps the flags out of tmux's own quoting.
  printf 'cd %q && exec bash launch/until_done.sh' "$PWD" > ~/chimera-train.sh
  (($# == 0)) || printf ' %q' "$@" >> ~/chimera-train.sh
  echo >> ~/chimera-train.sh
  tmux kill-session -t =chimera 2> /dev/null || true
  tmux new-session -d -s chimera -x 160 -y 48 "bash ~/chimera-train.sh" \; \
    set-window-option -t chimera remain-on-exit on > /dev/null
}

main "$@"
