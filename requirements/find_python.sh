#!/usr/bin/env bash
# Prints the path of a Python that really starts and can make environments.
#
#   requirements/find_python.sh VERSION...     e.g. 3.13 3.12, the first one found is taken
#
# Looks on the PATH, among pyenv's versions and among uv's own. Exit code 2: there is none, said in
# a sentence.
set -euo pipefail

# A pyenv shim exists also where its version is not chosen, and then fails; Debian's python3 comes
# without ensurepip: only running it tells.
works() {
  "$1" -c "
import ensurepip, ssl, sys, venv
sys.exit('%d.%d' % sys.version_info[:2] != '$2')" </dev/null >/dev/null 2>&1
}

candidates() {
  local pyenv=${PYENV_ROOT:-${HOME:-}/.pyenv}
  local uv=${UV_PYTHON_INSTALL_DIR:-${XDG_DATA_HOME:-${HOME:-}/.local/share}/uv/python}
  type -aP "python$1" python3 || true
  printf '%s\n' "$pyenv/versions/$1".*/bin/python "$uv/cpython-$1".*/bin/python3
}

for version in "$@"; do
  while read -r candidate; do
    if works "$candidate" "$version"; then
      echo "$candidate"
      exit
    fi
  done < <(candidates "$version")
done
versions=$(printf ' or %s' "$@")
echo "No Python ${versions# or } that starts and has venv was found on the PATH, in pyenv or in uv:" \
  "install one, for example with 'uv python install $1', 'pyenv install $1' or your system's" \
  "packages python$1, python$1-venv and python$1-dev." >&2
exit 2
