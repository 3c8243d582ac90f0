#!/usr/bin/env bash
# A cluster with Slurm: sbatch --nodes=2 --gpus-per-node=8 launch/slurm.sh [--flags]
#
# Give it from the root of the checkout, on a disk that all nodes see. FLAGS are
# those of launch/local.sh; sbatch's own, which stand before the script, say how
# many nodes, which GPUs and how long. Each node is one host of the run, with all
# devices that Slurm gives it there; the first one reads the photographs and
# writes the workdir. Two minutes before the time is over all are told to save,
# and the job is queued again; it goes on from there until the run is done.
#SBATCH --job-name=chimera
#SBATCH --ntasks-per-node=1
#SBATCH --signal=TERM@120
#SBATCH --requeue
#SBATCH --open-mode=append
set -euo pipefail
# sbatch runs a copy of this file.
cd "${SLURM_SUBMIT_DIR:?Error: give this to sbatch, or use launch/local.sh on one machine}"
# shellcheck source-path=SCRIPTDIR source=environment.sh
source launch/environment.sh

code=0
srun --kill-on-bad-exit=0 --ntasks-per-node=1 \
  "$venv/bin/python" -m chimera.main "$@" || code=$?
case $code in
  # Told to stop, or left by a node: what is saved goes on.
  143) scontrol requeue "$SLURM_JOB_ID" ;;
  # But not for ever where it ends at once.
  134)
    if ((SECONDS > 60 || ${SLURM_RESTART_COUNT:-0} < 3)); then
      scontrol requeue "$SLURM_JOB_ID"
    fi
    ;;
esac
exit "$code"
