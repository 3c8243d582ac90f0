#!/usr/bin/env bash
# Runs the tests on this machine: bash launch/test.sh [pytest's flags]
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=environment.sh
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
# Three workers of four devices each: a thread a device is plenty.
export OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1
export XLA_FLAGS="${XLA_FLAGS:-} --xla_cpu_multi_thread_eigen=false"
# Short programs, too, are compiled by one worker for all.
export JAX_PERSISTENT_COMPILATION_CACHE_MIN_COMPILE_TIME_SECS=0.1
# A file to a worker: what it compiled serves all of its tests.
exec "$venv/bin/python" -m pytest -n 3 --dist loadfile --no-loadscope-reorder "$@"
