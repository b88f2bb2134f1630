#!/usr/bin/env bash
# Installs what the build needs from the distribution's packages (Debian 12, Ubuntu 24.04).
#   scripts/install_dependencies.sh                       compiler, build tools, libraries
#   scripts/install_dependencies.sh [--test] [--format]   also what the checks use: Python; clang-format, shellcheck
# When everything is there it changes nothing and needs no network.
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

# A tool counts as present wherever it comes from; its package is installed only when it is missing.
tools=(g++:g++ git:git cmake:cmake ninja:ninja-build pkg-config:pkg-config mpirun:openmpi-bin)
# Makes a second build fast; nothing else needs it.
optional=(ccache:ccache)
libraries=(libc6-dev libhdf5-dev libyaml-cpp-dev libspdlog-dev libfmt-dev libcli11-dev nlohmann-json3-dev
  libopenblas-openmp-dev libopenmpi-dev zlib1g-dev libzstd-dev libgtest-dev)
for argument in "$@"; do
  case $argument in
    --test)
      tools+=(python3:python3)
      libraries+=(python3-venv ca-certificates)
      ;;
    --format) tools+=(clang-format-14:clang-format-14 shellcheck:shellcheck) ;;
    *) die "unknown argument '$argument'; usage: scripts/install_dependencies.sh [--test] [--format]" ;;
  esac
done

cmake_is_recent() {
  local version
  version=$(cmake --version 2>/dev/null | sed -n '1s/[^0-9]*\([0-9]*\.[0-9]*\).*/\1/p')
  [[ -n $version && $(printf '3.25\n%s\n' "$version" | sort -V | head -n 1) == 3.25 ]]
}

missing_tools() {
  local pair
  for pair in "$@"; do
    if [[ ${pair%%:*} == cmake ]]; then
      cmake_is_recent || echo cmake
    else
      command -v "${pair%%:*}" >/dev/null || echo "${pair#*:}"
    fi
  done
}

installed() { dpkg-query -W -f='${db:Status-Status}\n' "$1" 2>/dev/null | grep -x installed >/dev/null; }

missing_libraries() {
  local package
  for package in "${libraries[@]}"; do
    installed "$package" && continue
    # Any build of OpenBLAS will do.
    [[ $package == libopenblas-* ]] && installed 'libopenblas*-dev' && continue
    echo "$package"
  done
}

list_missing() { missing_tools "${tools[@]}" && missing_libraries; }

# Without apt nothing can be installed; the build may still work with what is there, and CMake names what is not.
if ! command -v apt-get >/dev/null || ! command -v dpkg-query >/dev/null; then
  note "This system has no apt. The build needs these packages of Debian, under whatever name they have here:"
  note "$(printf '%s ' "${tools[@]#*:}" "${libraries[@]}")"
  for tool in g++ cmake ninja; do
    command -v "$tool" >/dev/null || die "$tool was not found; install it and run this again"
  done
  note "g++, cmake and ninja are there; going on."
  exit 0
fi

read -ra missing <<<"$(list_missing | tr '\n' ' ')"
read -ra wished <<<"$(missing_tools "${optional[@]}" | tr '\n' ' ')"
if [[ ${#missing[@]} -eq 0 ]]; then
  if [[ ${#wished[@]} -gt 0 ]] && ! install_packages "${wished[@]}" 2>/dev/null; then
    note "Going on without ${wished[*]}, which could not be installed."
  fi
  note "All packages are there."
  exit 0
fi

missing+=("${wished[@]}")
note "Installing: ${missing[*]}"
by_hand="apt-get install ${missing[*]}"
install_packages "${missing[@]}" ||
  die "could not install them; it needs root or sudo, and on Ubuntu the component 'universe'. By hand: $by_hand"

hash -r
cmake_is_recent || die "$(command -v cmake) is older than 3.25; put a newer CMake first in PATH"
read -ra missing <<<"$(list_missing | tr '\n' ' ')"
[[ ${#missing[@]} -eq 0 ]] || die "still missing after the installation: ${missing[*]}"
note "Installed."
