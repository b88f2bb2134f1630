#!/usr/bin/env bash
# Times training steps on 1, 2, 4, 8 GPUs of this host with the same batch for each GPU, and prints a table of tokens/s,
# efficiency, exposed communication and memory beside the prediction of scaling_model.py.
#   scripts/scaling.sh [--gpus "1 2 4 8"] [--shapes "124m_egmla 1b_mha ..."] [--stages "0 1"] [--accumulation "1 4"]
#                      [--steps N] [--warmup N] [--egmla BINARY] [--out FILE.jsonl] [--write] [--cpu] [--dry-run]
# Without options: as many GPUs as there are, 124m and 1b, EG-MLA and MHA, ZeRO 0 and 1. --write puts the table into
# docs/scaling.md; --dry-run prints the commands; --cpu takes a tiny model and MPI processes on the CPU.
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
cd "$root"

gpus="" shapes="124m_egmla 124m_mha 1b_egmla 1b_mha" stages="0 1" accumulation=1 steps=20 warmup=5
egmla=build/egmla out="" write=0 cpu=0 dry=0
while [[ $# -gt 0 ]]; do
  case $1 in
    --gpus | --shapes | --stages | --accumulation | --steps | --warmup | --egmla | --out)
      [[ $# -gt 1 ]] || die "$1 needs a value"
      declare "${1#--}=$2"
      shift
      ;;
    --write) write=1 ;;
    --cpu) cpu=1 ;;
    --dry-run) dry=1 ;;
    -h | --help)
      sed -n '2,7s/^# \{0,1\}//p' "$0"
      exit 0
      ;;
    *) die "unknown argument '$1'; see scripts/scaling.sh --help" ;;
  esac
  shift
done
[[ -x $egmla ]] || die "$egmla was not found; build it first (cmake --preset default && cmake --build build)"

overrides=()
machine="$(uname -m) CPU, $(nproc) cores"
if [[ $cpu == 1 ]]; then
  gpus=${gpus:-1 2}
  overrides=(run.device=cpu model.num_hidden_layers=2 model.hidden_size=64 model.intermediate_size=128
    model.num_attention_heads=2 model.vocab_size=512 model.max_position_embeddings=64 data.sequence_length=64
    train.micro_batch_size=2)
else
  machine=$(nvidia-smi --query-gpu=name --format=csv,noheader 2>/dev/null | sort | uniq -c | sed 's/^ *//; s/ / x /' || true)
  count=$(nvidia-smi -L 2>/dev/null | grep -c '^GPU' || true)
  if [[ -z $gpus ]]; then
    for n in 1 2 4 8; do ((n <= count)) && gpus+="$n "; done
  fi
  [[ -n $gpus ]] || die "no GPU found; --cpu runs a tiny model on the CPU"
fi

# Every rank may use its share of the cores; the processes are not bound, since each works for one GPU.
command_of() {
  local n=$1 shape=$2 stage=$3 micro_steps=$4 config=configs/bench/$2.yaml batch
  [[ -f $config ]] || die "$config was not found; shapes are the files of configs/bench/"
  if [[ $cpu == 1 ]]; then
    batch=128
  else
    batch=$(sed -n 's/^ *batch_tokens: *\([0-9]*\).*/\1/p' "$config")
  fi
  command=(env OMP_NUM_THREADS=$(($(nproc) / n > 0 ? $(nproc) / n : 1)))
  ((n > 1)) && command+=(mpirun --allow-run-as-root --oversubscribe --bind-to none -n "$n")
  command+=("$egmla" bench train "$config" "${overrides[@]}" "train.batch_tokens=$((batch * micro_steps))"
    "parallel.zero_stage=$stage" --steps "$steps" --warmup "$warmup" --no-floor --json)
}

if [[ $dry == 0 ]]; then
  out=${out:-docs/results/$(date +%F)_scaling_$(tr -cs 'A-Za-z0-9\n' '_' <<<"$machine" | tr '[:upper:]' '[:lower:]').jsonl}
  mkdir -p "$(dirname "$out")"
  printf '{"machine": "%s", "commit": "%s", "date": "%s"}\n' "$machine" "$("$egmla" --version)" "$(date +%F)" >"$out"
fi
for shape in $shapes; do
  for micro_steps in $accumulation; do
    for n in $gpus; do
      for stage in $stages; do
        [[ $n == 1 && $stage != "${stages%% *}" ]] && continue # a process alone shares nothing out
        command_of "$n" "$shape" "$stage" "$micro_steps"
        if [[ $dry == 1 ]]; then
          echo "${command[*]}"
        else
          "${command[@]}" >>"$out" || note "failed: ${command[*]}"
        fi
      done
    done
  done
done
[[ $dry == 0 ]] || exit 0

options=()
[[ $write == 1 ]] && options=(--write docs/scaling.md)
python3 scripts/scaling_model.py --runs "$out" --egmla "$egmla" "${options[@]}"
note "Raw figures: $out"
