#!/usr/bin/env bash
# Decoding at the 1b shapes on this GPU: batch 1 and 32 at 1k and 8k tokens of context, and the largest batch at 8k.
#   scripts/bench_decode.sh [EGMLA]     EGMLA: the binary, build/egmla by default
set -euo pipefail
cd "$(dirname "$0")/.."
egmla="${1:-build/egmla}"

run() { # CONFIG then what bench decode takes
  "$egmla" bench decode "configs/bench/1b_$1.yaml" --steps 8 --batch 1,32 --context 1024,8192 "${@:2}"
}

run mha --largest
run mla
run egmla
run egmla --largest model.attention.kv_lora_rank=64
