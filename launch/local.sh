#!/usr/bin/env bash
# Trains on this machine: bash launch/local.sh [COMMAND] [--flags]
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=environment.sh
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
# The config is configs/chimera.py where no --config names another.
exec "$venv/bin/python" -m chimera.main "$@"
