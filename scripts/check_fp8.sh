#!/usr/bin/env bash
# Trains one model in bf16 and in fp8 on the same real text and prints their losses as means over 100 steps; fails when
# two means differ by more than 0.01 nats. Wants a Hopper GPU and a built egmla.
#   scripts/check_fp8.sh [STEPS] [key=value ...]      1000 steps; overrides go to both runs
#   EGMLA_TEXT=FILE scripts/check_fp8.sh              a text of your own instead of the King James Bible
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
cd "$root"
egmla=${EGMLA:-$root/build/egmla}
[[ -x $egmla ]] || die "$egmla was not found; build the target egmla first"
steps=1000
if [[ ${1:-} =~ ^[0-9]+$ ]]; then
  steps=$1
  shift
fi

text=${EGMLA_TEXT:-}
if [[ -z $text ]]; then
  scripts/fetch_text.sh kjv
  text=data/text/kjv.txt
fi
[[ -f $text && -r $text ]] || die "EGMLA_TEXT: '$text' is not a readable file"
data=data/check_fp8
if [[ ! -f $data/tokenizer.json ]]; then
  say "Data from $text"
  mkdir -p "$data"
  "$egmla" tokenizer train "$text" --vocab-size 4096 --out "$data.tokenizer.json"
  "$egmla" data prepare "$text" --tokenizer "$data.tokenizer.json" --out "$data" --val-fraction 0.1
fi

# Wide enough that every large product runs in e4m3: 100 million parameters.
model=(model.hidden_size=1024 model.intermediate_size=2816 model.num_hidden_layers=8 model.num_attention_heads=8
  model.attention.kv_lora_rank=256 model.attention.qk_nope_head_dim=128 model.attention.qk_rope_head_dim=64
  model.attention.v_head_dim=128)
for precision in bf16 fp8; do
  say "$steps steps in $precision"
  rm -rf "runs/check_fp8_$precision"
  "$egmla" train configs/gpu_quickstart.yaml "run.name=check_fp8_$precision" "run.precision=$precision" "${model[@]}" \
    "data.train=$data/train_*.bin" "data.val=$data/val_*.bin" "data.tokenizer=$data/tokenizer.json" \
    "train.max_steps=$steps" train.optimizer.lr=6e-4 train.schedule.warmup_steps=100 train.checkpoint.every=0 \
    train.eval.every="$steps" train.sample.every=0 train.log.every=100 "$@"
done
say "bf16 beside fp8"
python3 scripts/compare_losses.py runs/check_fp8_bf16 runs/check_fp8_fp8 --bound 0.01
