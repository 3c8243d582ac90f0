#!/usr/bin/env bash
# Trains until done: bash launch/until_done.sh [COMMAND] [--flags]
#
# Starts launch/local.sh again after what a run does not bring on itself: a
# SIGTERM (143), a kill -9 or want of memory (137), an abort of XLA's (134), a
# hang-up (129); and, once there was such an end, after a wait for other hosts that
# did not come yet (75). It ends when the run does (0), when there is something to fix
# (2), at Ctrl-C (130), at a SIGTERM or a hang-up of its own, which it passes on
# to the run and whose checkpoint it waits for, and after three deaths in a row,
# each within a minute or, on the host that saves, without a new checkpoint in the
# workdir: what always dies before it saves would never be done.
#
#   CHIMERA_QUICK  seconds that a death is quick within; default 60
set -uo pipefail
unset CDPATH # or cd may go elsewhere, and says where
cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit

# The checkpoints in the workdir: whatever a word, or the value of a flag, names.
committed() (
  shopt -s nullglob
  [[ $* == *--workdir* ]] || echo runs/*/checkpoints/*/digests.json
  for word; do
    path=${word#*=}
    [[ $path != \~/* ]] || path=$HOME/${path:2}
    echo "$path"/checkpoints/*/digests.json
  done
)

# Of several hosts only the first one saves; which one that is, 'auto' hides.
saves() {
  case " $*" in
    *-host=[1-9]* | *"-host "[1-9]*) return 1 ;;
    *-coordinator=auto* | *"-coordinator auto"*) [[ $(committed "$@") ]] ;;
  esac
}

quick=${CHIMERA_QUICK:-60}
deaths=0
ended=
stopped=
child=
trap 'stopped=143 heard=1; kill -TERM "$child" 2> /dev/null' TERM
trap 'stopped=129 heard=1; kill -HUP "$child" 2> /dev/null' HUP
# Bash has what it runs in the background ignore SIGINT.
trap 'stopped=130 heard=1; kill -TERM "$child" 2> /dev/null' INT
while [[ ! $stopped ]]; do
  SECONDS=0
  before=$(committed "$@")
  bash launch/local.sh "$@" &
  child=$!
  # It came while there was nobody to pass it on to.
  [[ ! $stopped ]] || kill -TERM "$child" 2> /dev/null
  # A signal ends bash's wait, not the run.
  heard=1
  while [[ $heard ]]; do
    heard=
    wait "$child"
    code=$?
  done
  [[ ! $stopped ]] || exit $((code == 143 ? stopped : code))
  case $code in
    129 | 134 | 137 | 143) ended=1 ;;
    75) [[ $ended ]] || exit "$code" ;;
    *) exit "$code" ;;
  esac
  # Who waited for others died of nothing.
  if ((code == 75)); then
    :
  elif ((SECONDS < quick)) ||
    { saves "$@" && [[ $(committed "$@") == "$before" ]]; }; then
    deaths=$((deaths + 1))
  else
    deaths=0
  fi
  if ((deaths == 3)); then
    echo "Error: three runs in a row ended within $quick s or without a new checkpoint, the last with exit code $code: see what they said, then start it again." >&2
    exit "$code"
  fi
  echo "The run ended with exit code $code: it is started again." >&2
done
exit "$stopped"
