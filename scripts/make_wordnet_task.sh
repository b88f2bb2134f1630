#!/usr/bin/env bash
# Writes data/tasks/wordnet.jsonl, a multiple-choice task from WordNet's definitions (apt package wordnet-base):
#   scripts/make_wordnet_task.sh [QUESTIONS [SEED]]      1000 questions, seed 1
# Which of four definitions is that of a word? The other three come from the same lexicographer file: nouns of animals
# among nouns of animals, verbs of motion among verbs of motion. Equal seeds give equal files.
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

questions=${1:-1000} seed=${2:-1}
[[ $questions =~ ^[1-9][0-9]*$ && $seed =~ ^[0-9]+$ ]] || die "usage: scripts/make_wordnet_task.sh [QUESTIONS [SEED]]"
readonly out=$root/data/tasks/wordnet.jsonl

command -v apt-get >/dev/null || die "this system has no apt to fetch wordnet-base with"
work=$(mktemp -d)
trap 'rm -rf "$work" "$out.tmp"' EXIT
unpack_packages "$work" wordnet-base
data=$work/files/usr/share/wordnet
mkdir -p "$(dirname "$out")"

# A line of data.noun: offset file type count word id ... | definition; "example"
LC_ALL=C awk -v questions="$questions" -v seed="$seed" '
  function draw(n) {  # the minimal standard generator; its products fit a double
    state = state * 16807 % 2147483647
    return int(state / 2147483647 * n)
  }
  function quoted(text) {
    gsub(/\\/, "\\\\", text)
    gsub(/"/, "\\\"", text)
    return "\"" text "\""
  }
  BEGIN {
    state = seed % 2147483646 + 1
    kinds["n"] = "noun"; kinds["v"] = "verb"; kinds["a"] = kinds["s"] = "adjective"; kinds["r"] = "adverb"
  }
  /^[0-9]/ && $5 ~ /^[a-z]+$/ {
    gloss = substr($0, index($0, " | ") + 3)
    sub(/; ".*/, "", gloss)
    sub(/ +$/, "", gloss)
    if (gloss == "") next
    ++count
    file[count] = $2; word[count] = $5; kind[count] = kinds[$3]; definition[count] = gloss
    member[$2, size[$2]++] = count
  }
  END {
    for (q = 0; q < questions; ++q) {
      do { own = 1 + draw(count) } while (size[file[own]] < 50)
      answer = draw(4)
      delete taken
      taken[definition[own]] = 1
      line = ""
      for (i = 0; i < 4; ++i) {
        chosen = own
        if (i != answer)
          do { chosen = member[file[own], draw(size[file[own]])] } while (definition[chosen] in taken)
        taken[definition[chosen]] = 1
        line = line (i ? ", " : "") quoted(definition[chosen])
      }
      printf "{\"context\": %s, \"choices\": [%s], \"answer\": %d}\n",
        quoted("The " kind[own] " \"" word[own] "\" means:"), line, answer
    }
  }' "$data"/data.noun "$data"/data.verb "$data"/data.adj "$data"/data.adv >"$out.tmp"
[[ $(wc -l <"$out.tmp") -eq $questions ]] || die "wordnet-base holds no definitions where they were expected"
mv "$out.tmp" "$out"
note "Wrote $out: $questions questions. Next: build/egmla eval RUN --tasks $out"
