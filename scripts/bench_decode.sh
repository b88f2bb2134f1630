#!/usr/bin/env bash
# Decoding at the 1b shapes on this GPU: batch 1 at 1k, batch 32 at 8k, the largest batch at 8k.
#   scripts/bench_decode.sh [EGMLA]     EGMLA: the binary, build/egmla by default
set -euo pipefail
cd "$(dirname "$0")/.."
egmla="${1:-build/egmla}"

run() { # CONFIG then what bench decode takes
  "$egmla" bench decode "configs/bench/1b_$1.yaml" --steps 8 "${@:2}" 2>/dev/null
}

for attention in mha mla egmla; do
  run "$attention" --batch 1 --context 1024
  run "$attention" --batch 32 --context 8192
done
run mha --batch 1 --context 8192 --largest
run mla --batch 1 --context 8192 --largest
run egmla --batch 1 --context 8192 --largest model.attention.kv_lora_rank=64
