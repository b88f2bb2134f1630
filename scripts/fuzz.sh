#!/usr/bin/env bash
# fuzz.sh [SECONDS] [NAME...]: every reader of outside bytes under libFuzzer with AddressSanitizer and
# UndefinedBehaviorSanitizer, SECONDS each (60), from tests/fuzz/corpus/NAME. What it learns stays in build-fuzz/corpus;
# an input that ends a reader is kept in build-fuzz/findings, and the script then fails.
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
cd "$root"

seconds=${1:-60}
[[ $seconds =~ ^[0-9]+$ ]] || die "fuzz.sh: '$seconds' is no number of seconds; usage: scripts/fuzz.sh [SECONDS] [NAME...]"
shift $(($# > 0 ? 1 : 0))
names=("$@")
[[ $# -gt 0 ]] || mapfile -t names < <(ls tests/fuzz/corpus)

if ! command -v clang++ >/dev/null; then
  say "Packages"
  install_packages clang libomp-dev || die "clang is missing; install it with: apt-get install clang libomp-dev"
fi

say "Building the fuzzers (build-fuzz/)"
mkdir -p build-fuzz
cmake -S . -B build-fuzz -G Ninja -DCMAKE_C_COMPILER=clang -DCMAKE_CXX_COMPILER=clang++ -DCMAKE_BUILD_TYPE=RelWithDebInfo \
  -DEGMLA_FUZZ=ON -DEGMLA_CUDA=OFF -DEGMLA_TESTS=OFF >build-fuzz/configure.log 2>&1 || { tail -n 5 build-fuzz/configure.log >&2; die "cmake failed"; }
cmake --build build-fuzz -j "${EGMLA_JOBS:-$(nproc)}" --target fuzzers

failed=()
mkdir -p build-fuzz/findings
say "Fuzzing, $seconds s each"
printf '        %-12s %12s %10s  %s\n' reader inputs edges result
for name in "${names[@]}"; do
  learned=build-fuzz/corpus/$name log=build-fuzz/$name.log
  mkdir -p "$learned"
  result=clean
  build-fuzz/tests/fuzz/fuzz_"$name" -max_total_time="$seconds" -timeout=20 -rss_limit_mb=2048 -max_len=16384 \
    -print_final_stats=1 -artifact_prefix="build-fuzz/findings/$name-" "$learned" "tests/fuzz/corpus/$name" >"$log" 2>&1 || {
    result="FAILED, see $log"
    failed+=("$name")
  }
  inputs=$(sed -n 's/^stat::number_of_executed_units: *//p' "$log")
  edges=$(grep -o 'cov: [0-9]*' "$log" | tail -n 1 | cut -d' ' -f2)
  printf '        %-12s %12s %10s  %s\n' "$name" "${inputs:-0}" "${edges:-0}" "$result"
done
[[ ${#failed[@]} -eq 0 ]] || die "findings in build-fuzz/findings: ${failed[*]}"
