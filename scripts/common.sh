# Shared by the scripts beside it: strict mode, the repository's root, messages with the time passed.
# shellcheck shell=bash
set -euo pipefail

# shellcheck disable=SC2034
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)

# A heading: what the script does now, and the seconds since it began.
say() { printf '\n[%3d s] %s\n' "$SECONDS" "$*"; }

note() { printf '        %s\n' "$*"; }

die() {
  printf 'error: %s\n' "$*" >&2
  exit 1
}

# Runs a command with the administrator's rights; false where there is no way to have them.
as_root() {
  if [[ $(id -u) -eq 0 ]]; then
    "$@"
  elif command -v sudo >/dev/null; then
    sudo "$@"
  else
    return 1
  fi
}

# install_packages NAME...: by apt, from refreshed lists where the network allows.
install_packages() {
  as_root true || return 1
  as_root apt-get -qq -o Acquire::Retries=3 update || note "apt-get update failed; trying with the package lists at hand."
  as_root env DEBIAN_FRONTEND=noninteractive apt-get -qq -y -o Acquire::Retries=3 -o Dpkg::Use-Pty=0 \
    install --no-install-recommends "$@" >/dev/null
}

# unpack_packages FOLDER NAME...: packages that are data alone, into FOLDER/files: nothing is installed, no rights are
# needed.
unpack_packages() {
  (
    cd "$1"
    shift
    if ! apt-get -qq -o APT::Sandbox::User="$(id -un)" -o Acquire::Retries=3 download "$@" 2>apt.log; then
      note "Refreshing the package lists."
      as_root apt-get -qq update >>apt.log 2>&1 || true
      apt-get -qq -o APT::Sandbox::User="$(id -un)" -o Acquire::Retries=3 download "$@" 2>>apt.log ||
        die "could not download $*: $(tail -n 1 apt.log)"
    fi
    local package
    for package in *.deb; do dpkg-deb -x "$package" files; done
  )
}

has_gpu() { command -v nvidia-smi >/dev/null && nvidia-smi -L 2>/dev/null | grep -q '^GPU'; }

# nvcc 12 or later, which C++20 needs.
has_cuda_toolkit() {
  local nvcc release
  nvcc=$(command -v nvcc || echo /usr/local/cuda/bin/nvcc)
  release=$("$nvcc" --version 2>/dev/null | sed -n 's/.*release \([0-9]*\)\..*/\1/p')
  [[ ${release:-0} -ge 12 ]]
}

# configure PRESET: CMake remembers that it found no CUDA compiler; a toolkit installed since needs a fresh start.
configure() {
  local fresh=()
  if has_cuda_toolkit && grep -qs '^CMAKE_CUDA_COMPILER:.*NOTFOUND' build/CMakeCache.txt; then fresh=(--fresh); fi
  cmake "${fresh[@]}" --preset "$1"
}

# run_ctest FOLDER: a few tests at once, each with few threads that sleep while they wait, or they starve one another.
run_ctest() {
  local jobs
  jobs=$(nproc)
  OMP_NUM_THREADS=2 OMP_WAIT_POLICY=passive ctest --test-dir "$1" --output-on-failure -j "$((jobs < 8 ? jobs : 8))"
}
