#!/usr/bin/env bash
# Runs a make target in a Debian 13 tree, to prove the stack of current systems on an older one.
#
#   requirements/debian13.sh [TARGET...]
#
# Makes the tree under build/debian13 with debootstrap when it is missing (a minute), copies the
# working tree's files into it and runs `make TARGET...` there; without a target it only makes the
# tree. Mounts live in a namespace of their own and are gone when the script ends, however it ends.
# Exit code 2: such a tree cannot be made here, said in a sentence.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
tree=$PWD/build/debian13

fail() {
  echo "$*" >&2
  exit 2
}
[[ $(id -u) == 0 ]] || fail "A Debian 13 tree can be made and entered by root only."
command -v debootstrap >/dev/null || fail "debootstrap is missing: apt-get install debootstrap."
# Some containers let root make a namespace and yet mount nothing in it.
unshare --mount sh -c 'mount -t proc proc /mnt && mount --bind /dev /mnt' 2>/dev/null ||
  fail "This root may not mount, and a Debian 13 tree needs /proc and /dev."

mkdir -p build
exec 9>build/debian13.lock
flock 9
if [[ ! -f $tree/complete ]]; then
  rm -rf "$tree"
  echo "Making a Debian 13 tree in build/debian13; its log is build/debian13.log."
  debootstrap --variant=minbase \
    --include=python3,python3-venv,python3-dev,g++,make,git,ca-certificates \
    trixie "$tree" >build/debian13.log 2>&1 ||
    fail "debootstrap failed: $(tail -n1 build/debian13.log)"
  touch "$tree/complete"
fi
[[ $# -gt 0 ]] || exit 0

# The machine's way to the package index: name service, certificates, pip's settings.
for file in /etc/hosts /etc/resolv.conf /etc/pip.conf /etc/ssl/certs/ca-certificates.crt; do
  if [[ -f $file ]]; then cp -L "$file" "$tree$file"; fi
done
project=$tree/opt/graftline
mkdir -p "$project" "$tree/opt/shared"
find "$project" -mindepth 1 -maxdepth 1 ! -name '.venv*' -exec rm -rf {} +
# A checkout may belong to another user than root, and an export has no repository.
files=$(mktemp)
trap 'rm -f "$files"' EXIT
git -c safe.directory='*' ls-files -z --cached --others --exclude-standard >"$files" 2>/dev/null ||
  find . \( -name .git -o -path './.venv*' -o -path ./build -o -path ./demo \) -prune -o \
    ! -type d -printf '%P\0' >"$files"
while IFS= read -r -d '' file; do if [[ -e $file ]]; then printf '%s\0' "$file"; fi; done <"$files" |
  tar --null --files-from=- -cf - | tar -xf - -C "$project"

export tree
# shellcheck disable=SC2016
unshare --mount bash -euc '
  mount --bind /dev "$tree/dev"
  mount -t proc proc "$tree/proc"
  mount -t tmpfs tmpfs "$tree/dev/shm" 2>/dev/null || true
  if [[ -d ../shared/data ]]; then
    mkdir -p "$tree/opt/shared/data"
    mount --bind -o ro ../shared/data "$tree/opt/shared/data"
  fi
  exec env -u GRAFTLINE_STACK -u PYENV_ROOT -u VIRTUAL_ENV \
    PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin \
    HOME=/root LANG=C.UTF-8 chroot "$tree" make -C /opt/graftline "$@"
' debian13 "$@"
