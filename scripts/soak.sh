#!/usr/bin/env bash
# soak.sh [STEPS] [PIECES]: a tiny model trains STEPS steps (1000000) in PIECES launches (20), with a checkpoint every
# 500 steps. During each launch, from its step 1000 on, the process's memory may grow by less than 1%, and its open
# files not at all; at the end the metrics hold every step once. Runs in runs/soak.
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
cd "$root"

steps=${1:-1000000} pieces=${2:-20} dir=runs/soak
[[ $steps =~ ^[0-9]+$ && $pieces =~ ^[1-9][0-9]*$ && $((steps / pieces)) -ge 2000 ]] ||
  die "soak.sh: expected at least 2000 steps a launch; usage: scripts/soak.sh [STEPS] [PIECES]"
egmla=${EGMLA_BINARY:-build/egmla}
[[ -x $egmla ]] || die "$egmla is missing; build it with: cmake --preset default && cmake --build build --target egmla"

rm -rf "$dir"
mkdir -p "$dir"
python3 - "$dir/ids_000000.bin" <<'PYTHON'
import random, struct, sys
draw = random.Random(7)
ids = [draw.randrange(61) for _ in range(20000)]
with open(sys.argv[1], "wb") as out:
    out.write(struct.pack("<3i", 20240520, 1, len(ids)) + bytes(1024 - 12) + struct.pack(f"<{len(ids)}H", *ids))
PYTHON
cat >"$dir/soak.yaml" <<YAML
run: {dir: $dir/run, device: cpu}
model:
  hidden_size: 8
  intermediate_size: 8
  num_hidden_layers: 1
  num_attention_heads: 2
  vocab_size: 61
  max_position_embeddings: 8
  attention: {type: egmla, kv_lora_rank: 4, qk_nope_head_dim: 4, qk_rope_head_dim: 2, v_head_dim: 4, gate: {embed_dim: 4}}
data: {train: $dir/ids_000000.bin, sequence_length: 8}
train:
  max_steps: $steps
  batch_tokens: 8
  optimizer: {lr: 1e-4}
  schedule: {warmup_steps: 10}
  checkpoint: {every: 500, keep_last: 3}
  log: {every: 100000}
YAML

# Resident KiB and open files of a process; nothing once it is gone.
resident() { sed -n 's/^VmRSS:[^0-9]*\([0-9]*\).*/\1/p' "/proc/$1/status" 2>/dev/null || true; }
open_files() { find "/proc/$1/fd" -mindepth 1 2>/dev/null | wc -l || true; }
last_step() { tail -n 1 "$dir/run/metrics.jsonl" 2>/dev/null | sed -n 's/^{"step":\([0-9]*\),.*/\1/p' || true; }

say "$steps steps in $pieces launches"
worst=0
for ((piece = 1; piece <= pieces; ++piece)); do
  begin=$((steps * (piece - 1) / pieces)) end=$((steps * piece / pieces))
  OMP_NUM_THREADS=1 "$egmla" train "$dir/soak.yaml" train.stop_at_step="$end" 2>"$dir/launch.log" &
  pid=$! first=0 first_files=0 last=0
  while kill -0 "$pid" 2>/dev/null; do
    step=$(last_step)
    memory=$(resident "$pid") files=$(open_files "$pid")
    if [[ -n $memory && ${step:-0} -ge $((begin + 1000)) ]]; then
      if [[ $first -eq 0 ]]; then first=$memory first_files=$files; fi
      last=$memory
      # A checkpoint being written has its file open for a moment.
      [[ $files -le $((first_files + 3)) ]] || die "step $step: $files open files, $first_files at first"
    fi
    sleep 0.2
  done
  wait "$pid" || die "launch $piece failed: $(tail -n 1 "$dir/launch.log")"
  growth=$((first > 0 ? (last - first) * 10000 / first : 0))
  worst=$((growth > worst ? growth : worst))
  note "launch $piece: step $end; $first KiB at first, $last KiB at last"
  [[ $growth -lt 100 ]] || die "launch $piece: memory grew by $((growth / 100)).$((growth % 100))%"
done

rows=$(wc -l <"$dir/run/metrics.jsonl")
distinct=$(sed 's/^{"step":\([0-9]*\),.*/\1/' "$dir/run/metrics.jsonl" | sort -n | uniq | wc -l)
[[ $rows -eq $steps && $distinct -eq $steps ]] || die "metrics.jsonl has $rows rows of $distinct steps; expected $steps"
"$egmla" checkpoint verify "$dir/run" >/dev/null
note "$steps steps, $((steps / 500)) checkpoints, $((pieces - 1)) resumes; memory grew by at most $((worst / 100)).$(printf %02d $((worst % 100)))%."
