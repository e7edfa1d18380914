#!/usr/bin/env bash
# Makes or updates the environment in .venv from the lock file of this machine's stack.
#
#   requirements/environment.sh
#
# Chooses the stack by glibc (GRAFTLINE_STACK=tfx-1.16 or tfx-1.21 overrides), finds a Python that
# really starts, installs what the lock names, and the project itself. Does nothing when .venv is up
# to date; a half-made one is finished; two at once wait for each other. Exit code 2: something is
# missing, said in a sentence.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

fail() {
  echo "$*" >&2
  exit 2
}

choose_stack() {
  local glibc
  if [[ -n ${GRAFTLINE_STACK:-} ]]; then
    [[ -f requirements/$GRAFTLINE_STACK.lock ]] ||
      fail "GRAFTLINE_STACK is '$GRAFTLINE_STACK': it must be tfx-1.16 or tfx-1.21."
    echo "$GRAFTLINE_STACK"
    return
  fi
  glibc=$(getconf GNU_LIBC_VERSION 2>/dev/null | cut -d' ' -f2) || true
  [[ -n $glibc ]] || fail "Graftline needs Linux with glibc: TFX has no packages for other systems."
  if [[ $(printf '%s\n' 2.39 "$glibc" | sort -V | head -n1) == 2.39 ]]; then
    echo tfx-1.21
  else
    echo tfx-1.16
  fi
}

# Whether $1 is a Python of version $2 that starts and can make environments. A pyenv shim exists
# also where its version is not chosen, and then fails: only running it tells.
works() {
  "$1" -c "
import ensurepip, ssl, sys, venv
sys.exit(sys.version_info[:2] != tuple(map(int, '$2'.split('.'))))" >/dev/null 2>&1
}

candidates() {
  local version=$1 pyenv_root
  command -v "python$version" || true
  command -v python3 || true
  pyenv_root=${PYENV_ROOT:-$(pyenv root 2>/dev/null || echo "$HOME/.pyenv")}
  printf '%s\n' "$pyenv_root/versions/$version".*/bin/python
  uv python find --no-python-downloads "$version" 2>/dev/null || true
}

find_python() {
  local version candidate
  for version in "$@"; do
    while read -r candidate; do
      if works "$candidate" "$version"; then
        echo "$candidate"
        return
      fi
    done < <(candidates "$version")
  done
  fail "No Python ${*} that starts and has venv was found on the PATH, in pyenv or in uv: install" \
    "one, e.g. 'pyenv install $1', 'uv python install $1', or your system's python$1 and" \
    "python$1-venv packages."
}

stack=$(choose_stack)
case $stack in
  tfx-1.16) versions=(3.10) ;;
  *) versions=(3.13 3.12) ;;
esac
lock=requirements/$stack.lock
stamp=$(cat "$lock" setup.py pyproject.toml requirements/environment.sh | sha256sum | cut -d' ' -f1)
up_to_date() { [[ $(cat .venv/graftline-stamp 2>/dev/null) == "$stamp" ]]; }

up_to_date && exit 0
exec 9>.venv.lock
flock 9
up_to_date && exit 0

usable=false
for version in "${versions[@]}"; do
  if [[ -x .venv/bin/python ]] && works .venv/bin/python "$version"; then usable=true; fi
done
if ! $usable; then
  python=$(find_python "${versions[@]}")
  if [[ $stack == tfx-1.21 ]]; then
    # pyfarmhash has no wheels.
    command -v g++ >/dev/null || fail "A C++ compiler is missing: install g++ (pyfarmhash is built from source)."
    [[ -f $("$python" -c 'import sysconfig; print(sysconfig.get_path("include"))')/Python.h ]] ||
      fail "The headers of $python are missing: install its -dev package (pyfarmhash is built from source)."
  fi
  echo "Making .venv with $python for $stack."
  rm -rf .venv
  "$python" -m venv .venv
fi
rm -f .venv/graftline-stamp
echo "Installing $lock; this takes a minute or two."
.venv/bin/python -m pip install --quiet --disable-pip-version-check "$(grep '^uv==' "$lock")"
.venv/bin/uv pip sync --quiet --python .venv/bin/python "$lock"
.venv/bin/uv pip install --quiet --python .venv/bin/python --no-deps --no-build-isolation --editable .
echo "$stamp" >.venv/graftline-stamp
