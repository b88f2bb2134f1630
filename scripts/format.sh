#!/usr/bin/env bash
# Formats every C++ and CUDA file in place with clang-format 14 (Debian 12's).
#   scripts/format.sh            rewrites
#   scripts/format.sh --check    changes nothing; fails when a file would change, or a script displeases shellcheck
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
cd "$root"

# Versions differ in their taste; Ubuntu names the older one clang-format-14.
formatter=$(command -v clang-format-14 || command -v clang-format) ||
  die "clang-format was not found; scripts/install_dependencies.sh --test installs it"
version=$("$formatter" --version | sed 's/.*version \([0-9]*\).*/\1/')
[[ $version == 14 ]] || die "clang-format is version $version; the files are formatted by 14 (apt-get install clang-format-14)"

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
