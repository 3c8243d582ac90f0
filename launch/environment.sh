# Sourced by the other launch scripts: goes to the repository's root and makes
# the virtual environment of requirements.txt, where it is not there already.
#
#   CHIMERA_VENV    where it is; default .venv
#   CHIMERA_PYTHON  what it is made with; default python3
# shellcheck shell=bash

unset CDPATH # or cd may go elsewhere, and says where
cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit
venv=${CHIMERA_VENV:-.venv}
# Rewritten last, so that an installation that broke off is taken up again.
stamp=$venv/requirements.installed

if ! cmp -s requirements.txt "$stamp" || ! "$venv/bin/python" -c 'import absl' 2> /dev/null; then
  python=${CHIMERA_PYTHON:-python3}
  # What keeps all of it from being installed here, which pip would say late and
  # at length. Any Python understands this.
  if ! wrong=$("$python" -c '
import os, platform, sys
machine = platform.system() + " " + platform.machine()
try:
  libc = os.confstr("CS_GNU_LIBC_VERSION") or ""
except (AttributeError, OSError, ValueError):
  libc = ""
glibc = [int(n) for n in libc.replace("glibc ", "").split(".") if n.isdigit()]
if machine not in ("Linux x86_64", "Linux aarch64", "Darwin arm64"):
  print("JAX, and so Chimera, is to be had for Linux on x86_64 and aarch64, and macOS on arm64, got %s" % machine)
elif not (3, 11) <= sys.version_info[:2] <= (3, 14):
  print("Chimera needs Python 3.11 to 3.14, got %s" % platform.python_version())
elif machine != "Darwin arm64" and glibc < [2, 27]:
  print("JAX, and so Chimera, needs glibc 2.27 or later, got %s" % (libc or "another libc"))
else:
  import ensurepip, venv
' 2> /dev/null); then
    wrong="Chimera needs Python 3.11 to 3.14 with venv, got $("$python" --version 2> /dev/null || echo none)"
  fi
  if [[ $wrong ]]; then
    echo "Error: $wrong as $python: name another by CHIMERA_PYTHON." >&2
    exit 2
  fi
  echo "Installing requirements.txt into $venv" >&2
  "$venv/bin/python" -m pip --version > /dev/null 2>&1 || "$python" -m venv "$venv"
  "$venv/bin/python" -m pip install --quiet --no-compile --requirement requirements.txt
  # pip would do it file by file, on one core. Some packages hold what no Python
  # of today compiles.
  "$venv/bin/python" -m compileall -qq -j 0 "$venv/lib" || true
  cp requirements.txt "$stamp"
fi

# What was compiled once is not compiled again; goes when the environment goes.
export JAX_COMPILATION_CACHE_DIR=${JAX_COMPILATION_CACHE_DIR-$(cd "$venv" && pwd)/compiled}
