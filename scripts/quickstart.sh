#!/usr/bin/env bash
# From nothing to a trained EG-MLA: installs what is missing, builds, fetches real text, trains a small model, shows
# what it writes, and makes a report. Uses the GPU where there is one with a CUDA toolkit. Safe to repeat: what is done
# is kept, and training goes on where it stopped.
#   ./scripts/quickstart.sh                  the King James Bible
#   EGMLA_TEXT=FILE ./scripts/quickstart.sh  a text of your own
text=${EGMLA_TEXT:+$(realpath -- "$EGMLA_TEXT")}
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
cd "$root"
[[ $# -eq 0 ]] || die "quickstart.sh takes no argument; a text of your own is named by EGMLA_TEXT=FILE"
[[ -z ${EGMLA_TEXT:-} || -f $text && -r $text ]] || die "EGMLA_TEXT: '$EGMLA_TEXT' is not a readable file"

readonly run=runs/quickstart
egmla=$root/build/egmla
prompt="And God said"

say "Packages"
scripts/install_dependencies.sh

config=quickstart
preset=cpu
if has_gpu && has_cuda_toolkit; then
  config=gpu_quickstart
  preset=default
  say "Building egmla for the GPU (build/)"
elif has_gpu; then
  say "Building egmla for the CPU (build/)"
  note "There is a GPU but no CUDA toolkit (nvcc). NVIDIA's package repository for this system"
  note "has one (cuda-toolkit, version 12 or later). Install it and run this again to train on the GPU; going on with the CPU."
else
  say "Building egmla for the CPU (build/)"
fi
readonly data=data/$config

# A build folder that is there serves as it is; for the GPU it must hold CUDA.
if [[ $preset == default || ! -f build/build.ninja ]]; then
  mkdir -p build
  configure "$preset" >build/configure.log 2>&1 || { cat build/configure.log >&2; die "the configuration failed"; }
fi
cmake --build build --target egmla -j "$(nproc)"

say "Text"
if [[ -n $text ]]; then
  note "$text: $(wc -c <"$text") bytes."
  prompt=$(head -c 200 "$text" | tr -s '[:space:]' ' ' | cut -d ' ' -f 1-3)
else
  scripts/fetch_text.sh kjv
  text=$root/data/text/kjv.txt
fi

# What the prepared data and the run come from. With another text, or after a change of the configuration, both start
# anew; the old run is kept under another name.
source_id=$(cat "$text" "configs/$config.yaml" | sha256sum | cut -d ' ' -f 1)
if [[ -d $run && $(cat "$run/source_id" 2>/dev/null) != "$source_id" ]]; then
  kept=$run-$(date +%Y%m%d-%H%M%S)
  mv "$run" "$kept"
  note "$run came from another text or configuration; it is now $kept."
fi

say "Tokenizer and token shards ($data)"
if [[ $(cat "$data/source_id" 2>/dev/null) == "$source_id" ]]; then
  note "$data is there."
else
  rm -rf "$data"
  mkdir -p data
  vocabulary=$(sed -n 's/^ *vocab_size: *\([0-9]*\).*/\1/p' "configs/$config.yaml")
  "$egmla" tokenizer train "$text" --vocab-size "$vocabulary" --out "data/$config.tokenizer.json"
  "$egmla" data prepare "$text" --tokenizer "data/$config.tokenizer.json" --out "$data" --val-fraction 0.1
  echo "$source_id" >"$data/source_id"
fi

say "Training (configs/$config.yaml -> $run)"
mkdir -p "$run"
echo "$source_id" >"$run/source_id"
# For the report's reference line; training adds what it knows to the same file.
entropy=$("$egmla" data stats "$data"/val_*.bin --json | tr -d '\n' | sed -n 's/.*"entropy_nats" *: *\([-+.0-9eE]*\).*/\1/p')
printf '{"val_unigram_entropy_nats": %s}\n' "${entropy:?}" >"$run/stats.json"
"$egmla" train "configs/$config.yaml" "run.dir=$run"

say "A sample"
"$egmla" generate "$run" --prompt "$prompt" --max-new-tokens 150 --temperature 0.8 --top-k 50 --seed 1

say "Report"
"$egmla" report "$run" --out "$run/report.html"

say "Done. What next:"
cat <<NEXT
  the report         $run/report.html (open it in a browser)
  more text          build/egmla generate $run --prompt "$prompt" --temperature 0.8
  a validation       build/egmla eval $run
  train longer       build/egmla train configs/$config.yaml run.dir=$run train.max_steps=NUMBER
  the model's size   build/egmla inspect configs/$config.yaml
  a text of yours    EGMLA_TEXT=FILE ./scripts/quickstart.sh
  all tests          ./scripts/test.sh
NEXT
