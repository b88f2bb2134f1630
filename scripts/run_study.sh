#!/usr/bin/env bash
# The study's sweeps in the order of their importance, within a time limit, on as many GPUs as there are.
#   scripts/run_study.sh [--time-limit S] [--jobs N] [--kit FOLDER] [--restore FILE] [--out FOLDER] [STAGE | SWEEP.yaml ...]
# Stages: attention, ablations, equal, scaling, paper; all of them in this order when none is named.
# S seconds from the start: no run is started that would not end by then; 0: no limit. N runs at a time: one for each GPU.
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
if [[ $jobs -eq 0 ]]; then has_gpu && jobs=$(nvidia-smi -L | grep -c '^GPU') || jobs=1; fi
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
    *.yaml) sweeps+=("$stage") ;;
    *) die "run_study.sh: unknown stage '$stage'; expected attention, ablations, equal, scaling, paper or a .yaml file" ;;
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

# What the sweeps' configurations read, found in their plans' own words.
vocabularies() {
  local v
  for v in 4096 16384 50304; do
    if grep -qs "data/study/v$v/" "${files[@]}" configs/sweeps/base_30m.yaml; then echo "$v"; fi
  done
}

say "Data"
mkdir -p data/study "$out"
pids=()
for v in $(vocabularies); do
  [[ -f data/study/v$v/meta.json ]] && continue
  text
  prepare "$v" >"data/study/v$v.log" 2>&1 &
  pids+=($!)
done
for pid in "${pids[@]}"; do wait "$pid" || die "preparing the data failed: $(tail -qn 1 data/study/*.log)"; done
for v in $(vocabularies); do note "$(tr -d '\n ' <"data/study/v$v/meta.json" | cut -c1-160)"; done

if [[ -n $restore ]]; then
  python3 -c 'import sys, tarfile; tarfile.open(sys.argv[1]).extractall(sys.argv[2])' "$restore" runs
fi

say "Sweeps: ${sweeps[*]}"
limited=()
[[ $limit == 0 ]] || limited=(--time-limit "$((limit > SECONDS ? limit - SECONDS : 1))")
status=0
"$egmla" sweep "${files[@]}" --jobs "$jobs" "${limited[@]}" || status=$?

# Where does the gate help: at tokens often seen, or everywhere? Each gated run of the first seed against its MLA.
place=0
for gated in egmla_kv64 egmla_kv256 egmla_kv64_offset egmla_kv64_fast_tables; do
  base=runs/sweeps/attention/mla_kv256-seed_1 run=runs/sweeps/attention/$gated-seed_1
  [[ -d $base/checkpoints && -d $run/checkpoints && ! -f $run/comparison.json ]] || continue
  CUDA_VISIBLE_DEVICES=$((place % jobs)) "$egmla" compare "$run" "$base" --out "$run/comparison.json" \
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
with tarfile.open(sys.argv[1], "w:xz") as archive:
    for path in sorted([*runs.glob("sweeps/*/*"), *runs.glob("sweeps/*/*/*")]):
        if path.name in names and path.is_file():
            archive.add(path, path.relative_to(runs).as_posix())
PY
ls -l "$out/study.tar.xz"
say "Done; runs/sweeps/NAME/table.md are the tables. Run the same command to go on with what is left."
exit "$status"
