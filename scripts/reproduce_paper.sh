#!/usr/bin/env bash
# The study from data to report: data check, sweeps, evaluation, reports.
#   scripts/reproduce_paper.sh [--scale small | 30m] [--jobs N]
# small (default): ten very small runs on the King James Bible, minutes on two CPU cores.
# 30m: every sweep of configs/sweeps on EGMLA_TEXT=FILE, or on gcide, linux-doc, wordnet and kjv together; wants a GPU.
# Safe to repeat: finished runs stay, begun ones go on. JOBS runs at a time; on GPUs each has its own.
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
text=${EGMLA_TEXT:+$(realpath -- "$EGMLA_TEXT")}
cd "$root"

scale=small
jobs=1
while [[ $# -gt 0 ]]; do
  case $1 in
    --scale) scale=${2:?--scale needs small or 30m} ;;
    --jobs) jobs=${2:?--jobs needs a number} ;;
    *) die "reproduce_paper.sh: unknown argument '$1'; expected --scale small|30m or --jobs N" ;;
  esac
  shift 2
done
[[ $scale == small || $scale == 30m ]] || die "--scale $scale: expected small or 30m"
egmla=${EGMLA:-$root/build/egmla}
if [[ ! -x $egmla ]]; then
  scripts/install_dependencies.sh
  has_cuda_toolkit && preset=default || preset=cpu
  mkdir -p build
  configure "$preset" >build/configure.log 2>&1 || { cat build/configure.log >&2; die "the configuration failed"; }
  cmake --build build --target egmla -j "$(nproc)"
fi

# prepare FOLDER VOCABULARY: a tokenizer of the text and its shards, once.
prepare() {
  [[ -f $1/done ]] && return
  rm -rf "$1"
  mkdir -p "$(dirname "$1")"
  "$egmla" tokenizer train "$text" --vocab-size "$2" --out "$1.tokenizer.json"
  "$egmla" data prepare "$text" --tokenizer "$1.tokenizer.json" --out "$1" --val-fraction 0.05
  touch "$1/done"
}

# run_sweep NAME: the sweep, the evaluation of its runs where vocabularies differ, and its report.
run_sweep() {
  local dir=runs/sweeps/$1 run
  say "Sweep $1"
  "$egmla" sweep "configs/sweeps/$1.yaml" --jobs "$jobs" || failed+=("$1")
  if [[ $1 == vocabulary ]]; then
    for run in "$dir"/*/; do "$egmla" eval "$run" >"${run}eval.txt" || failed+=("${run%/}"); done
  fi
  "$egmla" report "$dir"/* --out "$dir/report.html" || failed+=("$dir/report.html")
}

say "Text"
if [[ -z $text ]]; then
  if [[ $scale == small ]]; then
    scripts/fetch_text.sh kjv
    text=$root/data/text/kjv.txt
  else
    for name in gcide linux-doc wordnet kjv; do scripts/fetch_text.sh "$name"; done
    text=$root/data/text/all.txt
    cat data/text/{gcide,linux-doc,wordnet,kjv}.txt >"$text"
  fi
fi

say "Token shards"
sweeps=(tiny)
if [[ $scale == small ]]; then
  prepare data/sweeps/tiny 1024
else
  for vocabulary in 4096 16384 50257; do prepare "data/sweeps/v$vocabulary" "$vocabulary"; done
  sweeps=(attention attention_total_parameters attention_flops kv_lora_rank embed_dim gate_form share_layers tables
    vocabulary)
fi

say "What it will cost"
for name in "${sweeps[@]}"; do "$egmla" sweep "configs/sweeps/$name.yaml" --jobs "$jobs" --dry-run | tail -n 2; done

failed=()
for name in "${sweeps[@]}"; do run_sweep "$name"; done

say "Done. Tables and reports: runs/sweeps/NAME/table.md and report.html"
[[ ${#failed[@]} -eq 0 ]] || die "failed: ${failed[*]}; run the same command to try again"
