#!/usr/bin/env bash
# Everything about several GPUs of this host that a machine without them cannot check: NCCL's tests, the losses of N GPUs
# against one GPU on the same global batch, and throughput (scaling.sh).
#   scripts/check_distributed.sh [--gpus N] [--losses-only | --throughput-only] [--build FOLDER] [--out FILE.jsonl]
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
cd "$root"

gpus=2 part=all build=build out="" stage=0
while [[ $# -gt 0 ]]; do
  case $1 in
    --gpus | --build | --out)
      [[ $# -gt 1 ]] || die "$1 needs a value"
      declare "${1#--}=$2"
      shift
      ;;
    --losses-only) part=losses ;;
    --throughput-only) part=throughput ;;
    *) die "unknown argument '$1'; usage: see the head of scripts/check_distributed.sh" ;;
  esac
  shift
done
egmla=$build/egmla
[[ -x $egmla ]] || die "$egmla was not found; build it first (cmake --preset default && cmake --build build)"
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
failed=()
launch=(mpirun --allow-run-as-root --oversubscribe --bind-to none -n "$gpus")
export OMP_NUM_THREADS=$(($(nproc) / gpus > 0 ? $(nproc) / gpus : 1))

if [[ $part != throughput ]]; then
  if [[ $part == all ]]; then
    say "Tests of NCCL"
    "$build"/tests/egmla_tests --gtest_filter='Nccl*' --gtest_brief=1 || failed+=("NCCL tests")
  fi
  say "200 steps of the 124m EG-MLA on one GPU and on $gpus"
  # 8M tokens of a noisy affine sequence: something to learn, made in a second.
  python3 - "$work/train_000000.bin" <<'PYTHON'
import array
import random
import struct
import sys

random.seed(1)
count, vocabulary, token = 8_000_000, 50000, 1
tokens = array.array("H", bytes(2 * count))
for i in range(count):
    token = (token * 7 + 11 + (i * 2654435761 >> 16) % 13) % vocabulary if i % 97 else random.randrange(vocabulary)
    tokens[i] = token
with open(sys.argv[1], "wb") as file:
    file.write(struct.pack("<256i", 20240520, 1, count, *[0] * 253))
    tokens.tofile(file)
PYTHON
  run() {
    local name=$1
    shift
    "$@" "$egmla" train configs/bench/124m_egmla.yaml "run.dir=$work/$name" "data.train=$work/train_*.bin" \
      train.max_steps=200 "train.micro_batch_size=$((32 / gpus))" train.schedule.warmup_steps=20 train.log.every=100 \
      "parallel.zero_stage=$stage" parallel.check_every=100 || failed+=("$name")
    rm -rf "$work/$name/checkpoints"
  }
  run one env
  stage=0 run zero_0 "${launch[@]}"
  stage=1 run zero_1 "${launch[@]}"
  python3 - "$work" <<'PYTHON' || failed+=("losses")
import json
import sys

losses = {name: [json.loads(line)["loss"] for line in open(f"{sys.argv[1]}/{name}/metrics.jsonl")] for name in ("one", "zero_0", "zero_1")}
worst = 0
for name in ("zero_0", "zero_1"):
    differences = [abs(a - b) for a, b in zip(losses["one"], losses[name], strict=True)]
    mean = sum(differences) / len(differences)
    worst = max(worst, mean)
    print(f"  {name}: mean |loss - one GPU's| {mean:.5f}, largest {max(differences):.5f}; last {losses[name][-1]:.4f} against {losses['one'][-1]:.4f}")
equal = losses["zero_0"] == losses["zero_1"]
print(f"  ZeRO 0 and 1: {'equal in every bit' if equal else 'largest difference %.2g' % max(abs(a - b) for a, b in zip(losses['zero_0'], losses['zero_1']))}")
sys.exit(worst > 0.01)
PYTHON
fi

if [[ $part != losses ]]; then
  say "Throughput"
  scripts/scaling.sh --gpus "1 $gpus" --shapes "124m_egmla 1b_egmla" --accumulation "1 4" --steps 8 --warmup 3 \
    --egmla "$egmla" ${out:+--out "$out"} || failed+=("scaling.sh")
fi
[[ ${#failed[@]} -eq 0 ]] || die "failed: ${failed[*]}"
say "All passed"
