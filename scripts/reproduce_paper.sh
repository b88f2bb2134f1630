#!/usr/bin/env bash
# The paper's comparison from data to report: build, data check, sweeps, evaluation, export, reports.
#   scripts/reproduce_paper.sh [--scale tiny | small | paper] [--jobs N] [--time-limit S]
# tiny (default): ten very small runs on the King James Bible, minutes on two CPU cores.
# small: the study of docs/reproduction.md, 30M to 120M models on text of Debian's packages; wants a GPU.
# paper: the paper's sizes on ClimbMix in data/climbmix, 50B tokens a run; wants many GPUs for weeks.
# The sweeps are scripts/run_study.sh's, which see. Safe to repeat: finished runs stay, begun ones go on.
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
cd "$root"

scale=tiny
options=()
while [[ $# -gt 0 ]]; do
  case $1 in
    --scale) scale=${2:?--scale needs tiny, small or paper} ;;
    --jobs | --time-limit) options+=("$1" "${2:?$1 needs a number}") ;;
    *) die "reproduce_paper.sh: unknown argument '$1'; expected --scale tiny|small|paper, --jobs N or --time-limit S" ;;
  esac
  shift 2
done
case $scale in
  tiny) stages=(tiny) export_run=tiny/egmla_kv8-seed_1 ;;
  small) stages=(attention ablations equal scaling paper) export_run=attention/egmla_kv64-seed_1 ;;
  paper) stages=(climbmix) export_run=climbmix_120m/egmla_kv64-2k ;;
  *) die "--scale $scale: expected tiny, small or paper" ;;
esac
export EGMLA=${EGMLA:-$root/build/egmla}
if [[ ! -x $EGMLA ]]; then
  say "Build"
  scripts/install_dependencies.sh
  has_cuda_toolkit && preset=default || preset=cpu
  mkdir -p build
  configure "$preset" >build/configure.log 2>&1 || { cat build/configure.log >&2; die "the configuration failed"; }
  cmake --build build --target egmla -j "$(nproc)"
fi

failed=()
scripts/run_study.sh "${options[@]}" "${stages[@]}" || failed+=("run_study.sh")

say "Evaluation, over all validation tokens"
for run in runs/sweeps/*/*/; do
  [[ -f ${run}stats.json && -d ${run}checkpoints ]] || continue
  [[ -f ${run}eval.json && ${run}eval.json -nt ${run}metrics.jsonl ]] && continue
  if "$EGMLA" eval "$run" --json >"${run}eval.json.tmp"; then
    mv "${run}eval.json.tmp" "${run}eval.json"
  else
    failed+=("${run%/}")
  fi
done

if [[ -d runs/sweeps/$export_run/checkpoints ]]; then
  say "Export"
  "$EGMLA" export "runs/sweeps/$export_run" --format hf --out "runs/exports/${export_run//\//-}" || failed+=(export)
fi

say "Reports"
for folder in runs/sweeps/*/; do
  compgen -G "$folder*/metrics.jsonl" >/dev/null || continue
  "$EGMLA" report "$folder"*/ --out "${folder}report.html" || failed+=("${folder}report.html")
done

[[ ${#failed[@]} -eq 0 ]] || die "failed: ${failed[*]}; run the same command to try again"
say "Done. Tables, evaluations and reports: runs/sweeps/NAME/table.md, RUN/eval.json and report.html"
