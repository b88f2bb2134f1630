#!/usr/bin/env bash
# The code that runs in several threads (data preparation, the tokenizer's cache, the loader, checkpoints) under
# ThreadSanitizer. OpenMP's own threads are left at one: libgomp is not built for the sanitizer.
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
cd "$root"
[[ $# -eq 0 ]] || die "tsan.sh takes no argument"

say "Building the tests (build-tsan/)"
cmake --preset tsan >/dev/null
cmake --build build-tsan -j "${EGMLA_JOBS:-$(nproc)}" --target egmla_tests

say "Tests"
OMP_NUM_THREADS=1 OMP_THREAD_LIMIT=1 OPENBLAS_NUM_THREADS=1 TSAN_OPTIONS=halt_on_error=1 build-tsan/tests/egmla_tests \
  --gtest_filter='PrepareTest*:ShardsTest*:Tokenizer*:BpeTrainer*:CheckpointTest*:Watchdog*:Training.ResumedRun*' --gtest_brief=1
