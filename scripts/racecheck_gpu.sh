#!/usr/bin/env bash
# Looks for races in shared memory: the tests of CUDA kernels under racecheck of compute-sanitizer.
#   scripts/racecheck_gpu.sh [--tests BINARY] [--filter FILTER] [--shards N] [--seconds N] [--logs FOLDER]
# Builds build/racecheck, where every lane arrives at barriers (docs/reliability.md), or takes a BINARY of tests. FILTER
# is googletest's. N shards (as many as cores) run at once and are stopped after so many seconds (1800). Only our own
# kernels are looked at. Fails on a hazard, a failed test, or a shard that did not end. Example:
#   scripts/racecheck_gpu.sh --tests build/racecheck/tests/egmla_tests --filter 'AttentionHopper*' --seconds 500
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
cd "$root"

tests="" shards=$(nproc) seconds=1800 logs=build/racecheck/logs
filter='KernelsCuda*:DecodeKernelsCuda*:DecodeChainCuda*:*AttentionCuda.*:*CudaOps*:AttentionHopper*'
while [[ $# -gt 0 ]]; do
  case $1 in
    --tests | --filter | --shards | --seconds | --logs)
      [[ $# -gt 1 ]] || die "$1 needs a value"
      declare "${1#--}=$2"
      shift
      ;;
    -h | --help)
      sed -n '2,7s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"
      exit 0
      ;;
    *) die "unknown argument '$1'; see scripts/racecheck_gpu.sh --help" ;;
  esac
  shift
done
[[ $shards =~ ^[1-9][0-9]*$ && $seconds =~ ^[1-9][0-9]*$ ]] || die "--shards and --seconds take numbers above 0"
has_gpu || die "racecheck_gpu.sh: no GPU found"
sanitizer=$(command -v compute-sanitizer || echo /usr/local/cuda/bin/compute-sanitizer)
[[ -x $sanitizer ]] || die "compute-sanitizer was not found; CUDA's toolkit has it (package cuda-sanitizer-13-0)"

if [[ -z $tests ]]; then
  say "Building the tests (build/racecheck/)"
  cmake --preset default -B build/racecheck -DEGMLA_CUDA=ON -DEGMLA_EVERY_LANE_ARRIVES=ON \
    -DCMAKE_CUDA_FLAGS=-lineinfo >/dev/null
  cmake --build build/racecheck -j "${EGMLA_JOBS:-$(nproc)}" --target egmla_tests
  tests=build/racecheck/tests/egmla_tests
fi
[[ -x $tests ]] || die "--tests: '$tests' is not a program"
[[ $tests == */* ]] || tests=./$tests

say "Tests, in $shards processes"
mkdir -p "$logs"
# Names of our kernels hold their namespace.
options=(--tool racecheck --kernel-name kns=egmla --print-limit 1000 --error-exitcode 9
  --max-connections "$((shards + 10))")
pids=()
for ((i = 0; i < shards; ++i)); do
  GTEST_TOTAL_SHARDS=$shards GTEST_SHARD_INDEX=$i OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 \
    timeout -k 10 "$seconds" "$sanitizer" "${options[@]}" "$tests" --gtest_filter="$filter" >"$logs/$i.log" 2>&1 &
  pids+=($!)
done
files=() failed=()
for i in "${!pids[@]}"; do
  status=0
  wait "${pids[i]}" || status=$?
  files+=("$logs/$i.log")
  case $status in
    0) ;;
    9) failed+=("shard $i: hazards, or an error of the tool") ;;
    124 | 137) failed+=("shard $i: stopped after $seconds s") ;;
    *) failed+=("shard $i: exit status $status") ;;
  esac
done

count() { cat "${files[@]}" | grep -acE "$1" || true; }
passed=$(count '^\[       OK \]')
hazards=$(sed -nE 's/^=.* SUMMARY: .*\(([0-9]+) errors?, ([0-9]+) warnings?\).*/\1 \2/p' "${files[@]}" |
  awk '{ sum += $1 + $2 } END { print sum + 0 }')
say "$shards shards: $passed tests passed, $(count '^\[  FAILED  \].* ms\)$') failed; hazards (errors of the tool among them): $hazards"
accesses=$(sed -nE 's/^=.* access at (void )?(.*)\+0x.*/\2/p' "${files[@]}" | sed -E 's/\([^()]*\)$//; s/\(int\)//g')
if [[ -n $accesses ]]; then
  note "Kernels that are named, and how often:"
  sort <<<"$accesses" | uniq -c | sort -rn
fi
# The tool may tell that it lost track of a launch.
lost=$(count 'Internal Sanitizer Error')
[[ $lost -eq 0 ]] || failed+=("internal errors of compute-sanitizer: $lost")
[[ $passed -gt 0 ]] || failed+=("no test passed")
if [[ ${#failed[@]} -gt 0 ]]; then
  printf '        %s\n' "${failed[@]}"
  die "see $logs/*.log"
fi
