#!/usr/bin/env bash
# Installs what is missing, builds everything into build/, and runs every test: the C++ suite by ctest (with the CUDA
# code where there is a toolkit, its tests where there is a GPU), then the checks in Python against other programs.
# EGMLA_REQUIRE_CHECKS=1 makes it an error when Python's packages for these checks cannot be had.
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
cd "$root"
[[ $# -eq 0 ]] || die "test.sh takes no argument"

readonly venv=build/.venv-checks
checks="skipped"
failed=()

say "Packages"
scripts/install_dependencies.sh --test

say "Building everything (build/)"
configure default
cmake --build build -j "$(nproc)"

say "Tests"
if has_cuda_toolkit && ! has_gpu; then
  note "The CUDA code was compiled. There is no GPU here: its tests are reported as skipped."
fi
run_ctest build 2>&1 | tee build/ctest.log || failed+=("ctest")
summary=$(grep -E 'tests passed, [0-9]+ tests? failed' build/ctest.log || echo "ctest gave no summary")

# A check that fails does not keep the others from running.
check() {
  local name=$1
  shift
  "$@" || failed+=("$name")
}

# The environment is made once; a change of the requirements makes it anew.
make_venv() {
  cmp -s tests/reference/requirements.txt "$venv/requirements.txt" && return 0
  rm -rf "$venv"
  python3 -m venv "$venv" &&
    "$venv/bin/pip" install --quiet --disable-pip-version-check -r tests/reference/requirements.txt &&
    cp tests/reference/requirements.txt "$venv/"
}

say "Checks in Python"
if make_venv >build/venv.log 2>&1; then
  readonly work=build/checks
  check reference "$venv/bin/python" tests/reference/compare.py build/egmla --work "$work"
  check tensorboard "$venv/bin/python" tests/interop/check_tensorboard.py "$work/egmla/trained"
  check tokenizer "$venv/bin/python" tests/interop/check_tokenizer.py build/egmla
  check export "$venv/bin/python" tests/interop/check_export.py build/egmla
  if has_cuda_toolkit && has_gpu; then
    check devices "$venv/bin/python" tests/interop/check_devices.py build/egmla
  fi
  checks="done"
elif [[ ${EGMLA_REQUIRE_CHECKS:-0} == 1 ]]; then
  tail -n 3 build/venv.log >&2
  failed+=("python-packages")
else
  note "Skipped: Python's packages could not be installed ($(tail -n 1 build/venv.log))."
fi

say "Summary"
note "$summary; checks in Python $checks; GPU tests $(has_gpu && echo run || echo skipped)."
if [[ ${#failed[@]} -gt 0 ]]; then
  die "failed: ${failed[*]} (details above and in build/Testing/Temporary/LastTest.log)"
fi
note "Next: ./scripts/quickstart.sh trains a small model; docs/conventions.md says how the code is laid out."
