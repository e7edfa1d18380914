#!/usr/bin/env bash
# Makes or updates the environment in .venv from the lock file of this machine's stack.
#
#   requirements/environment.sh
#
# Chooses the stack by glibc (GRAFTLINE_STACK=tfx-1.16 or tfx-1.21 overrides), installs what its
# lock file names, and the project itself. Does nothing when .venv is up to date; one that an
# interruption left half-made is made anew; two at once wait for each other. Exit code 2: something
# is missing, said in a sentence.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

fail() {
  echo "$*" >&2
  exit 2
}

choose_stack() {
  local glibc
  [[ $(uname -m) == x86_64 ]] ||
    fail "Graftline needs an x86-64 machine: TFX has no packages for $(uname -m)."
  glibc=$(getconf GNU_LIBC_VERSION 2>/dev/null | cut -d' ' -f2) || true
  [[ -n $glibc ]] || fail "Graftline needs Linux with glibc: TFX has no packages for other systems."
  if [[ $(printf '%s\n' 2.39 "$glibc" | sort -V | head -n1) == 2.39 ]]; then
    echo tfx-1.21
  else
    echo tfx-1.16
  fi
}

stack=${GRAFTLINE_STACK:-$(choose_stack)}
case $stack in
  tfx-1.16) versions=(3.10) ;;
  tfx-1.21) versions=(3.13 3.12) ;;
  *) fail "GRAFTLINE_STACK is '$stack': it must be tfx-1.16 or tfx-1.21." ;;
esac
lock=requirements/$stack.lock

# The stamp is written last and taken away first: a .venv without one is half-made. The folder is in
# it because environments cannot be moved.
kind="$stack in $PWD:"
stamp="$kind $(cat "$lock" setup.py pyproject.toml requirements/environment.sh | sha256sum)"
found() { cat .venv/stamp 2>/dev/null || true; }
up_to_date() { [[ -x .venv/bin/python && $(found) == "$stamp" ]]; }

up_to_date && exit
exec 9>.venv.lock
flock 9
up_to_date && exit

if [[ ! -x .venv/bin/python || $(found) != "$kind"* ]]; then
  python=$(requirements/find_python.sh "${versions[@]}")
  # pyfarmhash, which TFX's libraries use, comes as source only.
  command -v g++ >/dev/null ||
    fail "A C++ compiler is missing, for pyfarmhash is built from source: install g++."
  [[ -f $("$python" -c 'import sysconfig; print(sysconfig.get_path("include"))')/Python.h ]] ||
    fail "The C headers of $python are missing, for pyfarmhash is built from source: install its" \
      "-dev package."
  echo "Making .venv with $python for the stack $stack."
  rm -rf .venv
  "$python" -m venv .venv
fi
rm -f .venv/stamp
echo "Installing $lock; this takes a minute or two."
.venv/bin/python -m pip install --quiet --disable-pip-version-check "$(grep '^uv==' "$lock")"
.venv/bin/uv pip sync --quiet --python .venv/bin/python "$lock"
.venv/bin/uv pip install --quiet --python .venv/bin/python --no-deps --no-build-isolation --editable .
# The first import compiles what it loads, half a minute's work: done here once, also where the
# machine's settings would keep Python from storing it. Where it fails, so does what comes next, and
# says why.
env -u PYTHONDONTWRITEBYTECODE .venv/bin/python -W ignore -c "
import graftline.pipeline.create_pipeline, graftline.components.ingest.drop, pytest
import graftline.components.trainer.run" &>/dev/null || true
echo "$stamp" >.venv/stamp
