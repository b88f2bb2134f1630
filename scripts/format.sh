#!/usr/bin/env bash
# Formats every C++ and CUDA file in place with clang-format 14 (Debian 12's).
#   scripts/format.sh            rewrites
#   scripts/format.sh --check    changes nothing; fails when a file would change, or a script displeases shellcheck
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
cd "$root"

# Versions differ in their taste, so that the number is part of the name.
formatter=clang-format-14
command -v "$formatter" >/dev/null || die "$formatter was not found; scripts/install_dependencies.sh --format installs it"

mapfile -d '' -t files < <(find kernels src tests -type f \( -name '*.h' -o -name '*.cpp' -o -name '*.cu' -o -name '*.cuh' \) -print0)
case "${1:-}" in
  "") "$formatter" -i "${files[@]}" ;;
  --check)
    "$formatter" --dry-run -Werror "${files[@]}" || die "run scripts/format.sh"
    shellcheck scripts/*.sh .ci/run
    ;;
  *) die "unknown argument '$1'; usage: scripts/format.sh [--check]" ;;
esac
note "${#files[@]} files are formatted."
