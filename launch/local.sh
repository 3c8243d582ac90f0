#!/usr/bin/env bash
# Trains on this machine: bash launch/local.sh [COMMAND] [--flags]
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
exec "$venv/bin/python" -m chimera.main --config=configs/chimera.py "$@"
