# Sourced by the other launch scripts: goes to the repository's root and makes
# the virtual environment of requirements.txt, where it is not there already.
#
#   CHIMERA_VENV    where it is; default .venv
#   CHIMERA_PYTHON  what it is made with; default python3
# shellcheck shell=bash

cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit
venv=${CHIMERA_VENV:-.venv}
# Rewritten last, so that an installation that broke off is taken up again.
stamp=$venv/requirements.installed

if ! cmp -s requirements.txt "$stamp" || ! "$venv/bin/python" -c ''; then
  python=${CHIMERA_PYTHON:-python3}
  if ! "$python" -c 'import sys, venv, ensurepip; 1 / (sys.version_info >= (3, 11))' 2> /dev/null; then
    echo "Error: Chimera needs Python 3.11 or later with venv, got $("$python" --version 2> /dev/null || echo none) as $python: name another by CHIMERA_PYTHON." >&2
    exit 2
  fi
  echo "Installing requirements.txt into $venv" >&2
  "$venv/bin/python" -m pip --version > /dev/null 2>&1 || "$python" -m venv "$venv"
  "$venv/bin/python" -m pip install --quiet --requirement requirements.txt
  cp requirements.txt "$stamp"
fi

# What was compiled once is not compiled again; goes when the environment goes.
export JAX_COMPILATION_CACHE_DIR=${JAX_COMPILATION_CACHE_DIR:-$(cd "$venv" && pwd)/compiled}
