#!/usr/bin/env python3
"""Documents of Debian's packages as JSON lines, one {"text": ...} a line, for `egmla data prepare`.

    scripts/study_text.py FOLDER [--source-bytes N] > study.jsonl

FOLDER holds what scripts/fetch_text.sh unpacked: gcide.dict.dz, wordnet/data.*, kjv.txt, Documentation/, source/. What is
missing there is left out. A document is a chapter of the Bible, a page of about 4 kB of a dictionary's consecutive
entries, a file of the kernel's documentation in English, or a C file of its sources. Of the sources a sample is taken,
N bytes, chosen by a hash of the files' paths. The order is the one of the packages, the same every time.
"""
import argparse
import gzip
import hashlib
import json
import pathlib
import re
import sys

PAGE_BYTES = 4000
SOURCE_SUFFIXES = {".c", ".h", ".S"}
SOURCE_SIZES = range(1_000, 100_000)  # smaller files say little, larger ones are mostly tables of registers
GENERATED = re.compile(r"/(asic_reg|include/dt-bindings|amd/include|nouveau/include/nvif|perf/pmu-events)/")


def decoded(path):
    """A file's text; None where it is not UTF-8."""
    data = gzip.open(path).read() if path.suffix in (".gz", ".dz") else path.read_bytes()
    try:
        return data.decode()
    except UnicodeDecodeError:
        return None


def pages(entries):
    """Consecutive entries joined until a page is full."""
    page, size = [], 0
    for entry in entries:
        page.append(entry)
        size += len(entry)
        if size >= PAGE_BYTES:
            yield "".join(page)
            page, size = [], 0
    if page:
        yield "".join(page)


def bible(folder):
    """Chapters, from lines as "Ge1:1 In the beginning ..."; the verses' numbers are left out."""
    path = folder / "kjv.txt"
    chapter, verses = None, []
    for line in decoded(path).splitlines() if path.exists() else []:
        place, verse = line.split(" ", 1)
        if place.split(":")[0] != chapter and verses:
            yield "".join(verses)
            verses = []
        chapter = place.split(":")[0]
        verses.append(verse + "\n")
    if verses:
        yield "".join(verses)


def gcide(folder):
    """Entries start at a line's beginning after an empty line; the file's notices end before the first headword."""
    path = folder / "gcide.dict.dz"
    if path.exists():
        text = gzip.open(path).read().decode("utf-8", "replace")
        entries = re.split(r"\n(?=\n[^\s])", text[text.index("\nA \\") + 1 :])
        yield from pages(entry.lstrip("\n") + "\n\n" for entry in entries)


def wordnet(folder):
    """A line "word, word: definition; examples" for each set of synonyms."""

    def lines(path):
        for line in path.read_text().splitlines():
            if not line[0].isdigit():
                continue
            fields, gloss = line.split(" | ", 1)
            fields = fields.split()
            words = [fields[4 + 2 * i] for i in range(int(fields[3], 16))]
            names = ", ".join(re.sub(r"\((a|p|ip)\)$", "", word).replace("_", " ") for word in words)
            yield f"{names}: {gloss.strip()}\n"

    for part in ("noun", "verb", "adj", "adv"):
        path = folder / "wordnet" / f"data.{part}"
        if path.exists():
            yield from pages(lines(path))


def documentation(folder):
    root = folder / "Documentation"
    for path in sorted(root.rglob("*")):
        name = path.name.removesuffix(".gz")
        if path.is_file() and name.endswith((".rst", ".txt")) and "translations" not in path.parts:
            text = decoded(path)
            if text:
                yield text


def source(folder, wanted):
    root = folder / "source"
    candidates = []
    for path in root.rglob("*"):
        name = path.relative_to(root).as_posix()
        if path.suffix not in SOURCE_SUFFIXES or not path.is_file() or GENERATED.search("/" + name):
            continue
        if path.stat().st_size in SOURCE_SIZES:
            candidates.append((hashlib.sha256(name.encode()).digest(), name, path))
    chosen, size = [], 0
    for _, name, path in sorted(candidates):
        if size >= wanted:
            break
        size += path.stat().st_size
        chosen.append((name, path))
    for _, path in sorted(chosen):
        text = decoded(path)
        if text:
            yield text


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=pathlib.Path)
    parser.add_argument("--source-bytes", type=float, default=140e6, help="of the kernel's sources (default: 140e6)")
    options = parser.parse_args()
    parts = {"kjv": bible, "gcide": gcide, "wordnet": wordnet, "linux-doc": documentation,
             "linux-source": lambda folder: source(folder, options.source_bytes)}
    for name, documents in parts.items():
        count = size = 0
        for text in documents(options.folder):
            sys.stdout.write(json.dumps({"text": text}, ensure_ascii=False) + "\n")
            count += 1
            size += len(text.encode())
        print(f"{name:12}  {count:6} documents  {size:10} bytes", file=sys.stderr)


if __name__ == "__main__":
    sys.stdout.reconfigure(encoding="utf-8")
    main()
