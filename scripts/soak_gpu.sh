#!/usr/bin/env bash
# soak_gpu.sh [SECONDS] [EVERY]: configs/gpu_quickstart.yaml trains for SECONDS (600) on one GPU and is told to stop (SIGTERM)
# and started again EVERY seconds (60). Beside it, on the same GPU, the same training runs without a stop. Every step must
# be there once, with the loss and the gradient norm of the undisturbed run bit for bit. Runs in runs/soak_gpu.
# EGMLA_TEXT=FILE: a text of your own instead of the King James Bible.
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
cd "$root"

seconds=${1:-600} every=${2:-60} dir=runs/soak_gpu
[[ $seconds =~ ^[0-9]+$ && $every =~ ^[1-9][0-9]*$ && $seconds -ge $((2 * every)) ]] ||
  die "soak_gpu.sh: expected time for two launches; usage: scripts/soak_gpu.sh [SECONDS] [EVERY]"
egmla=${EGMLA_BINARY:-build/egmla}
[[ -x $egmla ]] || die "$egmla is missing; build it with: cmake --preset default && cmake --build build --target egmla"
has_gpu || die "soak_gpu.sh: no GPU found; scripts/soak.sh does this on the CPU"
text=${EGMLA_TEXT:-}
if [[ -z $text ]]; then
  scripts/fetch_text.sh kjv
  text=data/text/kjv.txt
fi

rm -rf "$dir"
mkdir -p "$dir"
"$egmla" tokenizer train "$text" --vocab-size 4096 --out "$dir/tokenizer.json"
"$egmla" data prepare "$text" --tokenizer "$dir/tokenizer.json" --out "$dir/data" --val-fraction 0.1
train() { # NAME [key=value ...]
  local name=$1
  shift
  exec "$egmla" train configs/gpu_quickstart.yaml "run.dir=$dir/$name" "data.train=$dir/data/train_*.bin" \
    "data.val=$dir/data/val_*.bin" "data.tokenizer=$dir/tokenizer.json" train.max_steps=1000000 \
    train.optimizer.lr=3e-4 train.checkpoint.every=500 train.eval.every=500 train.sample.every=0 train.log.every=500 "$@"
}
last_step() { tail -n 1 "$dir/$1/metrics.jsonl" 2>/dev/null | sed -n 's/^{"step":\([0-9]*\),.*/\1/p' || true; }

# Both take the plans of matrix products that this chooses: two that choose on their own may differ in the last bits.
(train plans train.stop_at_step=2 train.eval.every=1) >"$dir/plans.log" 2>&1 || die "$(tail -n 1 "$dir/plans.log")"

say "$seconds s, a stop every $every s"
train undisturbed >"$dir/undisturbed.log" 2>&1 &
undisturbed=$!
trap 'kill "$undisturbed" 2>/dev/null || true' EXIT
start=$SECONDS launches=0
while [[ $((SECONDS - start + every)) -le $seconds ]]; do
  train stopped >"$dir/launch.log" 2>&1 &
  pid=$!
  sleep "$every"
  kill -TERM "$pid" 2>/dev/null || true
  wait "$pid" || die "launch $((launches + 1)) failed: $(tail -n 1 "$dir/launch.log")"
  launches=$((launches + 1))
  note "launch $launches: step $(last_step stopped)"
done
steps=$(last_step stopped)
for ((waited = 0; waited < seconds; ++waited)); do
  [[ $(last_step undisturbed) -lt $steps ]] || break
  kill -0 "$undisturbed" 2>/dev/null || die "the undisturbed run failed: $(tail -n 1 "$dir/undisturbed.log")"
  sleep 1
done
kill -TERM "$undisturbed"
wait "$undisturbed" || die "the undisturbed run failed: $(tail -n 1 "$dir/undisturbed.log")"
trap - EXIT

python3 - "$dir" "$steps" <<'PYTHON'
import json
import sys

folder, steps = sys.argv[1], int(sys.argv[2])


def training_rows(name):
    with open(f"{folder}/{name}/metrics.jsonl") as file:
        rows = [json.loads(line) for line in file]
    return [(row["step"], row["loss"], row["grad_norm"]) for row in rows if "loss" in row]


stopped, undisturbed = training_rows("stopped"), training_rows("undisturbed")[:steps]
if [row[0] for row in stopped] != list(range(1, steps + 1)):
    sys.exit(f"error: {folder}/stopped/metrics.jsonl does not hold the steps 1 to {steps} once each")
for a, b in zip(stopped, undisturbed, strict=True):
    if a != b:
        sys.exit(f"error: step {a[0]}: loss {a[1]!r}, gradient norm {a[2]!r}; without a stop {b[1]!r}, {b[2]!r}")
print(f"  loss {stopped[0][1]:.4f} at step 1, {stopped[-1][1]:.4f} at step {steps}")
PYTHON
note "$steps steps, $((launches - 1)) resumes in $((SECONDS - start)) s: loss and gradient norm of every step as without a stop."
