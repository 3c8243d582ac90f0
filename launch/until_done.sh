#!/usr/bin/env bash
# Trains until done: bash launch/until_done.sh [COMMAND] [--flags]
#
# Starts launch/local.sh again after what a run does not bring on itself: a
# SIGTERM (143), a kill -9 or want of memory (137), an abort of XLA's (134), a
# hang-up (129). It ends when the run does (0), when there is something to mend
# (2), at Ctrl-C (130), when it was sent a SIGTERM or a hang-up itself, as where
# the machine goes down, and after three deaths in a row within a minute each.
#
#   CHIMERA_QUICK  seconds that a death is quick within; default 60
set -uo pipefail

quick=${CHIMERA_QUICK:-60}
deaths=0
stopped=
# Bash waits for the run, which had its own, before it looks at them.
trap 'stopped=143' TERM
trap 'stopped=129' HUP
while :; do
  SECONDS=0
  bash "$(dirname "${BASH_SOURCE[0]}")/local.sh" "$@"
  code=$?
  [[ ! $stopped ]] || exit "$stopped"
  case $code in
    129 | 134 | 137 | 143) ;;
    *) exit "$code" ;;
  esac
  deaths=$((SECONDS < quick ? deaths + 1 : 0))
  if ((deaths == 3)); then
    echo "Error: three runs in a row ended within $quick s, the last with exit code $code: see what they said, then start it again." >&2
    exit "$code"
  fi
  echo "The run ended with exit code $code: it is started again." >&2
done
