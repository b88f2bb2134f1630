#!/usr/bin/env bash
# valgrind.sh [FILTER]: the suite, or the tests that FILTER names as googletest does, under valgrind's memcheck; fails at the
# first error or lost block. Processes that tests start run as they are. The whole suite takes about an hour on two cores.
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
cd "$root"
filter=${1:-*}
command -v valgrind >/dev/null || install_packages valgrind || die "valgrind is missing; install it with: apt-get install valgrind"

say "Building the tests (build-valgrind/)"
# Valgrind knows no AVX-512.
cmake --preset cpu -B build-valgrind -DCMAKE_BUILD_TYPE=RelWithDebInfo -DEGMLA_NATIVE=OFF >/dev/null
cmake --build build-valgrind -j "${EGMLA_JOBS:-$(nproc)}" --target egmla_tests

options=(--error-exitcode=9 --leak-check=full --errors-for-leak-kinds=definite --show-leak-kinds=definite --num-callers=20 -q)
for known in /usr/share/openmpi/openmpi-valgrind.supp /etc/openmpi/openmpi-valgrind.supp; do
  [[ ! -f $known ]] || options+=("--suppressions=$known")
done
shards=${EGMLA_JOBS:-$(nproc)}
say "Tests, in $shards processes"
pids=()
for ((i = 0; i < shards; ++i)); do
  GTEST_TOTAL_SHARDS=$shards GTEST_SHARD_INDEX=$i OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 \
    valgrind "${options[@]}" build-valgrind/tests/egmla_tests --gtest_filter="$filter" >"build-valgrind/$i.log" 2>&1 &
  pids+=($!)
done
failed=0
for i in "${!pids[@]}"; do
  wait "${pids[i]}" || failed=1
  grep -E '^==[0-9]+==|\[  FAILED|\[  PASSED' "build-valgrind/$i.log" | head -n 20 | sed 's/^/        /' || true
done
[[ $failed -eq 0 ]] || die "see build-valgrind/*.log"
