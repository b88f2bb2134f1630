#!/usr/bin/env bash
# Times whole training steps of egmla and of the same models in PyTorch, in turn on one machine, and prints the ratios.
#   scripts/bench.sh [--rounds N] [--steps N] [--python PYTHON] [--egmla BINARY] [--out FILE.jsonl] [--write] [SHAPE ...]
# A SHAPE is a configuration, with overrides behind it: 'configs/bench/1b_egmla.yaml train.batch_tokens=131072'. Without
# any: the shapes of configs/bench/. --write puts the table into docs/performance.md. PyTorch: see bench_torch.py.
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
cd "$root"

rounds=1 steps=20 python=python3 egmla=build/egmla out="" write=0
shapes=()
while [[ $# -gt 0 ]]; do
  case $1 in
    --rounds | --steps | --python | --egmla | --out)
      [[ $# -gt 1 ]] || die "$1 needs a value"
      declare "${1#--}=$2"
      shift
      ;;
    --write) write=1 ;;
    -h | --help)
      sed -n '2,5s/^# \{0,1\}//p' "$0"
      exit 0
      ;;
    -*) die "unknown option '$1'; see scripts/bench.sh --help" ;;
    *) shapes+=("$1") ;;
  esac
  shift
done
if [[ ${#shapes[@]} -eq 0 ]]; then
  shapes=(configs/bench/{124m,1b}_{egmla,mla,mha}.yaml configs/bench/gpt2_124m.yaml)
fi
[[ -x $egmla ]] || die "$egmla was not found; build it first (cmake --preset default && cmake --build build)"
"$python" -c 'import torch, yaml' 2>/dev/null || die "$python has no torch or no PyYAML; name another with --python"
card=$(nvidia-smi --query-gpu=name --format=csv,noheader 2>/dev/null | head -n 1 || true)
out=${out:-docs/results/$(date +%F)_$(tr -cs 'A-Za-z0-9\n' '_' <<<"${card:-cpu}" | tr '[:upper:]' '[:lower:]')_train.jsonl}
mkdir -p "$(dirname "$out")"

{
  printf '{"machine": "%s", "driver": "%s", "commit": "%s", "date": "%s"}\n' "${card:-$(uname -m) CPU, $(nproc) cores}" \
    "$(nvidia-smi --query-gpu=driver_version --format=csv,noheader 2>/dev/null | head -n 1 || true)" \
    "$("$egmla" --version | head -n 1)" "$(date +%F)"
} >"$out"
for ((round = 1; round <= rounds; ++round)); do
  for shape in "${shapes[@]}"; do
    read -ra words <<<"$shape"
    say "round $round: $shape"
    "$egmla" bench train "${words[@]}" --steps "$steps" --json | tee -a "$out" || note "egmla failed on $shape"
    "$python" scripts/bench_torch.py "${words[@]}" --steps "$steps" | tee -a "$out" || note "PyTorch failed on $shape"
  done
done

say "Table"
options=()
[[ $write == 1 ]] && options=(--write docs/performance.md)
"$python" scripts/bench_table.py "$out" "${options[@]}"
note "Raw figures: $out"
