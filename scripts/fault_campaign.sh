#!/usr/bin/env bash
# Spoils every call that writes, flushes, renames, removes or closes a file of a checkpoint, an export and prepared
# data, with every kind of fault (tests/test_faults.cpp). Prints the counts; fails at the first state that is torn.
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
cd "$root"
[[ $# -eq 0 ]] || die "fault_campaign.sh takes no argument"

say "Building the tests (build/)"
[[ -f build/CMakeCache.txt ]] || configure default
cmake --build build -j "${EGMLA_JOBS:-$(nproc)}" --target egmla_tests >build/fault_campaign.log ||
  { tail -n 20 build/fault_campaign.log >&2 && die "the build failed"; }

say "Every call, every kind of fault"
EGMLA_FAULTS=all build/tests/egmla_tests --gtest_filter='Faults.*' --gtest_brief=1 |
  sed 's/^/        /' || die "a fault was not survived"
