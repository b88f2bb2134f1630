#!/usr/bin/env bash
# Trains one model in bf16 and in fp8 on the same real text and prints their losses as means over 100 steps; fails when
# two means differ by more than 0.01 nats. A second run in bf16, with cuDNN's attention instead of ours, says how far
# rounding alone sets two runs apart. Wants a Hopper GPU and a built egmla.
#   scripts/check_fp8.sh [STEPS] [key=value ...]      1000 steps; overrides go to all runs
#   EGMLA_TEXT=FILE scripts/check_fp8.sh              a text of your own instead of the King James Bible
#   EGMLA_DATA=FOLDER scripts/check_fp8.sh            shards that `egmla data prepare` wrote
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
cd "$root"
egmla=${EGMLA:-$root/build/egmla}
[[ -x $egmla ]] || die "$egmla was not found; build the target egmla first"
steps=1000
if [[ ${1:-} =~ ^[0-9]+$ ]]; then
  steps=$1
  shift
fi

text=${EGMLA_TEXT:-} data=${EGMLA_DATA:-data/check_fp8}
if [[ -z $text && ! -f $data/tokenizer.json ]]; then
  [[ -z ${EGMLA_DATA:-} ]] || die "EGMLA_DATA: no tokenizer.json in '$data'; name a folder that egmla data prepare wrote"
  scripts/fetch_text.sh kjv
  text=data/text/kjv.txt
fi
[[ -z $text || (-f $text && -r $text) ]] || die "EGMLA_TEXT: '$text' is not a readable file"
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
vocabulary=$(sed -n 's/.*"vocab_size" *: *\([0-9]*\).*/\1/p' "$data/meta.json" | head -n 1)
for name in bf16 bf16_cudnn fp8; do
  say "$steps steps: $name"
  rm -rf "runs/check_fp8_$name"
  backend=native
  [[ $name != bf16_cudnn ]] || backend=cudnn
  "$egmla" train configs/gpu_quickstart.yaml "run.name=check_fp8_$name" "run.precision=${name%_cudnn}" \
    "run.attention_backend=$backend" "model.vocab_size=$vocabulary" "${model[@]}" \
    "data.train=$data/train_*.bin" "data.val=$data/val_*.bin" "data.tokenizer=$data/tokenizer.json" \
    "train.max_steps=$steps" train.optimizer.lr=6e-4 train.schedule.warmup_steps=100 train.checkpoint.every=0 \
    train.eval.every="$steps" train.sample.every=0 train.log.every=100 "$@"
done
say "bf16 beside bf16 with cuDNN's attention: rounding alone"
python3 scripts/compare_losses.py runs/check_fp8_bf16 runs/check_fp8_bf16_cudnn
say "bf16 beside fp8"
python3 scripts/compare_losses.py runs/check_fp8_bf16 runs/check_fp8_fp8 --bound 0.01
