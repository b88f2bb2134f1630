#!/usr/bin/env bash
# The study's sweeps in the order of their importance, within a time limit, on as many GPUs as there are.
#   scripts/run_study.sh [--time-limit S] [--jobs N] [--kit FOLDER] [--restore FILE] [--out FOLDER] [STAGE | SWEEP.yaml ...]
# Stages: attention, ablations, equal, scaling, paper; all of them in this order when none is named. Besides: tiny, ten
# runs on the King James Bible, minutes on two CPU cores; climbmix, the paper's sizes on data/climbmix.
# S seconds from the start: no run is started that would not end by then; 0: no limit. N runs at a time: one for each GPU;
# with more they share GPUs, and their times mean little.
# KIT holds study.jsonl.xz and tokenizers; without it the text is fetched from Debian's packages and they are trained.
# OUT receives study.tar.xz: configuration, metrics and tables of every run, no weights. FILE is such an archive: what it
# calls finished is not trained again. The same command goes on where it stopped.
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
cd "$root"

limit=0
jobs=0
kit=.kit
out=runs/study
restore=
stages=()
while [[ $# -gt 0 ]]; do
  case $1 in
    --time-limit) limit=${2:?--time-limit needs seconds} ;;
    --jobs) jobs=${2:?--jobs needs a number} ;;
    --kit) kit=${2:?--kit needs a folder} ;;
    --restore) restore=${2:?--restore needs a file} ;;
    --out) out=${2:?--out needs a folder} ;;
    -*) die "run_study.sh: unknown option '$1'; the head of the script names them" ;;
    *) stages+=("$1"); shift; continue ;;
  esac
  shift 2
done
[[ ${#stages[@]} -gt 0 ]] || stages=(attention ablations equal scaling paper)
gpus=0
has_gpu && gpus=$(nvidia-smi -L | grep -c '^GPU')
[[ $jobs -gt 0 ]] || jobs=$((gpus > 0 ? gpus : 1))
egmla=${EGMLA:-$root/build/egmla}
[[ -x $egmla ]] || die "$egmla is missing; build it (cmake --preset default && cmake --build build --target egmla) or set EGMLA"

sweeps=()
for stage in "${stages[@]}"; do
  case $stage in
    attention) sweeps+=(attention) ;;
    ablations) sweeps+=(kv_lora_rank tables embed_dim share_layers gate_form vocabulary learning_rate) ;;
    equal) sweeps+=(attention_total_parameters attention_flops) ;;
    scaling) sweeps+=(scaling) ;;
    paper) sweeps+=(paper_120m) ;;
    tiny) sweeps+=(tiny) ;;
    climbmix) sweeps+=(climbmix_120m climbmix_645m climbmix_1200m) ;;
    *.yaml) sweeps+=("$stage") ;;
    *) die "run_study.sh: unknown stage '$stage'; expected attention, ablations, equal, scaling, paper, tiny, climbmix or a .yaml file" ;;
  esac
done
files=()
for sweep in "${sweeps[@]}"; do [[ $sweep == *.yaml ]] && files+=("$sweep") || files+=("configs/sweeps/$sweep.yaml"); done

# The documents of the study, one JSON object a line.
text() {
  [[ -s data/study/study.jsonl ]] && return
  if [[ -f $kit/study.jsonl.xz ]]; then
    python3 -c 'import lzma, shutil, sys; shutil.copyfileobj(lzma.open(sys.argv[1]), open(sys.argv[2], "wb"), 1 << 20)' \
      "$kit/study.jsonl.xz" data/study/study.jsonl.tmp
  else
    scripts/fetch_text.sh study
    cp data/text/study.jsonl data/study/study.jsonl.tmp
  fi
  mv data/study/study.jsonl.tmp data/study/study.jsonl
}

# prepare VOCABULARY: shards of it, once; a hundredth of the documents, all over the text, is held out.
prepare() {
  local tokenizer=$kit/v$1.tokenizer.json folder=data/study/v$1
  if [[ ! -f $tokenizer ]]; then
    tokenizer=data/study/v$1.tokenizer.json
    [[ -f $tokenizer ]] || "$egmla" tokenizer train data/study/study.jsonl --vocab-size "$1" --out "$tokenizer"
  fi
  "$egmla" data prepare data/study/study.jsonl --tokenizer "$tokenizer" --out "$folder" --force \
    --val-fraction 0.01 --val-split hash --deduplicate
}

# The King James Bible in a vocabulary of 1024.
prepare_tiny() {
  scripts/fetch_text.sh kjv
  mkdir -p data/sweeps
  "$egmla" tokenizer train data/text/kjv.txt --vocab-size 1024 --out data/sweeps/tiny.tokenizer.json
  "$egmla" data prepare data/text/kjv.txt --tokenizer data/sweeps/tiny.tokenizer.json --out data/sweeps/tiny --force \
    --val-fraction 0.05
}

# reads FOLDER: whether a sweep reads data there: its plan says so, or its base where the plan sets no other data for all
# runs.
reads() {
  local file text
  for file in "${files[@]}"; do
    text=$(cat "$file")
    [[ $text == *$'\n  data.train:'* ]] || text+=$(cat "$(dirname "$file")/$(sed -n 's/^base: *\([^ ]*\).*/\1/p' "$file")")
    [[ $text != *$1/* ]] || return 0
  done
  return 1
}

say "Data"
mkdir -p data/study "$out"
pids=()
for v in 4096 16384 50304; do
  if ! reads "data/study/v$v" || [[ -f data/study/v$v/meta.json ]]; then continue; fi
  text
  prepare "$v" >"data/study/v$v.log" 2>&1 &
  pids+=($!)
done
for pid in "${pids[@]}"; do wait "$pid" || die "preparing the data failed: $(tail -qn 1 data/study/*.log)"; done
if reads data/sweeps/tiny && [[ ! -f data/sweeps/tiny/meta.json ]]; then prepare_tiny; fi
for folder in data/study/v4096 data/study/v16384 data/study/v50304 data/sweeps/tiny data/climbmix; do
  reads "$folder" || continue
  for part in train val; do
    compgen -G "$folder/${part}_*.bin" >/dev/null ||
      die "$folder: no ${part}_*.bin there; docs/reproduction.md says how to make them"
  done
  [[ ! -f $folder/meta.json ]] || note "$folder: $(tr -d '\n ' <"$folder/meta.json" | cut -c1-160)"
done

if [[ -n $restore ]]; then
  python3 -c 'import sys, tarfile; tarfile.open(sys.argv[1]).extractall(sys.argv[2])' "$restore" runs
fi

say "Sweeps: ${sweeps[*]}"
limited=()
[[ $limit == 0 ]] || limited=(--time-limit "$((limit > SECONDS ? limit - SECONDS : 1))")
[[ $gpus -eq 0 || $jobs -le $gpus ]] || limited+=(--share-gpus)
status=0
"$egmla" sweep "${files[@]}" --jobs "$jobs" "${limited[@]}" || status=$?

# Where does the gate help: at tokens often seen, or everywhere? Each gated run of the first seed against its MLA.
place=0
for gated in egmla_kv64 egmla_kv256 egmla_kv64_offset egmla_kv64_fast_tables; do
  base=runs/sweeps/attention/mla_kv256-seed_1 run=runs/sweeps/attention/$gated-seed_1
  [[ -d $base/checkpoints && -d $run/checkpoints && ! -f $run/comparison.json ]] || continue
  CUDA_VISIBLE_DEVICES=$((place % (gpus > 0 ? gpus : 1))) "$egmla" compare "$run" "$base" --out "$run/comparison.json" \
    >"$run/comparison.txt" 2>&1 || note "no comparison of $run: $(tail -n 1 "$run/comparison.txt")" &
  place=$((place + 1))
done
wait

say "Packing"
python3 - "$out/study.tar.xz" <<'PY'
import pathlib, sys, tarfile
names = {"metrics.jsonl", "config.yaml", "stats.json", "samples.txt", "comparison.json", "sweep.json", "table.csv",
         "table.md", "table.json"}
runs = pathlib.Path("runs")
with tarfile.open(sys.argv[1], "w:xz", preset=9) as archive:  # whose window holds runs that sweeps share once
    for path in sorted([*runs.glob("sweeps/*/*"), *runs.glob("sweeps/*/*/*")]):
        if path.name in names and path.is_file():
            archive.add(path, path.relative_to(runs).as_posix())
PY
ls -l "$out/study.tar.xz"
say "Done; runs/sweeps/NAME/table.md are the tables. Run the same command to go on with what is left."
exit "$status"
