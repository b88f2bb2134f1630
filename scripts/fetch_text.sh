#!/usr/bin/env bash
# Fetches real text from Debian's and Ubuntu's packages into data/text/NAME.txt.
#   scripts/fetch_text.sh [kjv | gcide | linux-doc | wordnet | study]      kjv when none is named
# kjv: the King James Bible, one verse a line (31,102), without the verse numbers, which would be free points for a
# language model. gcide: an English dictionary. linux-doc: the kernel's documentation. wordnet: a definition a line.
# study: documents of all of these and of the kernel's sources, as JSON lines in data/text/study.jsonl (study_text.py).
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

name=${1:-kjv}
out=$root/data/text/$name.txt
[[ $name != study ]] || out=$root/data/text/study.jsonl
mkdir -p "$root/data/text"

kjv_verses=31102
kjv_bytes=4137850

kjv_is_whole() { [[ $(wc -l <"$1") -eq $kjv_verses && $(wc -c <"$1") -eq $kjv_bytes ]]; }

fetch_kjv() {
  if ! command -v bible >/dev/null; then
    note "Installing: bible-kjv bible-kjv-text"
    install_packages bible-kjv bible-kjv-text || die "kjv: apt could not install bible-kjv and bible-kjv-text (as root?)"
  fi
  # Lines come as "Ge1:1 In the beginning ...".
  bible -f gen1:1-rev22:21 | sed -E 's/^[0-9]?[A-Za-z]+[0-9]+:[0-9]+ //' >"$1"
  kjv_is_whole "$1" ||
    die "kjv: $(wc -l <"$1") verses, $(wc -c <"$1") bytes; expected $kjv_verses and $kjv_bytes; is bible-kjv-text whole?"
}

# The entries follow a head of notices, which ends before the first headword.
fetch_gcide() {
  unpack_packages "$work" dict-gcide
  gzip -dc <"$work/files/usr/share/dictd/gcide.dict.dz" | sed -n '/^A \\/,$p' >"$1"
}

# unpack_current NAME: a package that names the one of the current kernel, which has the files.
unpack_current() {
  local package
  unpack_packages "$work" "$1"
  package=$(apt-cache depends "$1" | awk -v name="$1-" '/Depends:/ && index($2, name) == 1 && !found++ {print $2}')
  [[ -z $package ]] || unpack_packages "$work" "$package"
}

# Every page in the order of its path.
fetch_linux-doc() {
  unpack_current linux-doc
  (cd "$work/files" && find . -type f \( -name '*.rst' -o -name '*.rst.gz' \) -print0 | LC_ALL=C sort -z |
    xargs -0 -r gzip -dcf) >"$1"
}

# "word, word: definition; examples", from "offset file type count word id word id ... | definition".
fetch_wordnet() {
  unpack_packages "$work" wordnet-base
  local data=$work/files/usr/share/wordnet
  LC_ALL=C awk '/^[0-9]/ {
      words = strtonum16($4); line = ""
      for (i = 0; i < words; i++) line = line (i ? ", " : "") $(5 + 2 * i)
      gsub(/_/, " ", line); gsub(/\((a|p|ip)\)/, "", line)
      gloss = substr($0, index($0, " | ") + 3); sub(/ +$/, "", gloss)
      print line ": " gloss
    }
    function strtonum16(text) { return 16 * digit(substr(text, 1, 1)) + digit(substr(text, 2, 1)) }
    function digit(c) { return index("0123456789abcdef", c) - 1 }' \
    "$data"/data.noun "$data"/data.verb "$data"/data.adj "$data"/data.adv >"$1"
}

fetch_study() {
  local folder=$work/study files=$work/files sources
  command -v python3 >/dev/null || die "study: python3 was not found (apt-get install python3)"
  "$root/scripts/fetch_text.sh" kjv
  unpack_packages "$work" dict-gcide wordnet-base
  unpack_current linux-doc
  unpack_current linux-source
  mkdir -p "$folder/source"
  sources=("$files"/usr/src/linux-source-*.tar.*)
  tar -C "$folder/source" --strip-components=1 -xf "${sources[0]}"
  ln -s "$files/usr/share/wordnet" "$folder/wordnet"
  ln -s "$files/usr/share/dictd/gcide.dict.dz" "$folder/"
  # With the numbers, from which the chapters are told.
  bible -f gen1:1-rev22:21 >"$folder/kjv.txt"
  ln -s "$(find "$files/usr/share/doc" -type d -name Documentation | sort | head -n 1)" "$folder/Documentation"
  python3 "$root/scripts/study_text.py" "$folder" >"$1"
}

declare -F "fetch_$name" >/dev/null || die "no text is called '$name'; there are kjv, gcide, linux-doc, wordnet, study"
if [[ -s $out ]] && { [[ $name != kjv ]] || kjv_is_whole "$out"; }; then
  note "$out is there: $(wc -l <"$out") lines, $(wc -c <"$out") bytes."
  exit 0
fi

[[ $name == kjv ]] && command -v bible >/dev/null || command -v apt-get >/dev/null ||
  die "this system has no apt to fetch '$name' with; take a text of your own: EGMLA_TEXT=FILE scripts/quickstart.sh"
work=$(mktemp -d)
trap 'rm -rf "$work" "$out.tmp"' EXIT
"fetch_$name" "$out.tmp"
[[ -s $out.tmp ]] || die "$name: the packages hold no text"
mv "$out.tmp" "$out"
note "Wrote $out: $(wc -l <"$out") lines, $(wc -c <"$out") bytes."
