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

has_gpu() { command -v nvidia-smi >/dev/null && nvidia-smi -L 2>/dev/null | grep -q '^GPU'; }

has_cuda_toolkit() { command -v nvcc >/dev/null || [[ -x /usr/local/cuda/bin/nvcc ]]; }
