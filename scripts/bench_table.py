#!/usr/bin/env python3
"""The table of a file that scripts/bench.sh wrote: medians over its rounds, egmla beside PyTorch.

    scripts/bench_table.py FILE.jsonl [--write docs/performance.md]
"""
import argparse
import json
import pathlib
from statistics import median

BEGIN, END = "<!-- bench.sh: begin -->", "<!-- bench.sh: end -->"


def table(path):
    rows = [json.loads(line) for line in path.read_text().splitlines() if line.strip()]
    head, runs = rows[0], {}
    for row in rows[1:]:
        name = row["name"].removeprefix("bench_")
        if row["accumulation"] > 1:
            name += f" x {row['accumulation']}"
        runs.setdefault((name, row["batch"], row["seq"]), {}).setdefault("peer" if "peer" in row else "own", []).append(row)
    peer = next((r["peer"] for r in rows[1:] if "peer" in r), "PyTorch")
    lines = [
        f"{head['machine']}, driver {head['driver'] or '-'}, {head['commit']}, {head['date']}; "
        f"peer: {peer}. Written by `scripts/bench.sh` from `{path}`.", "",
        "| shape | B, T | tokens/s | MFU | step / floor | peak GiB | peer tokens/s | peer GiB | speed ratio | memory ratio |",
        "|---|---|---:|---:|---:|---:|---:|---:|---:|---:|"]
    for (name, batch, seq), sides in runs.items():
        def of(side, field):
            values = [r[field] for r in sides.get(side, []) if r.get(field) is not None]
            return median(values) if values else None

        def cell(value, form):
            return form.format(value) if value is not None else ""

        speed, other = of("own", "tokens_per_s_per_gpu"), of("peer", "tokens_per_s_per_gpu")
        memory, its = of("own", "peak_gib"), of("peer", "peak_gib")
        lines.append("| " + " | ".join([
            name, f"{batch}, {seq}", cell(speed, "{:,.0f}"), cell(of("own", "mfu"), "{:.1%}"),
            cell(of("own", "floor_ratio"), "{:.2f}"), cell(memory, "{:.2f}"), cell(other, "{:,.0f}"), cell(its, "{:.2f}"),
            cell(speed / other if speed and other else None, "{:.2f}"),
            cell(memory / its if memory and its else None, "{:.2f}")]) + " |")
    return "\n".join(lines)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=pathlib.Path)
    parser.add_argument("--write", type=pathlib.Path, help="replace the table between the markers in this page")
    args = parser.parse_args()
    text = table(args.file)
    print(text)
    if args.write:
        page = args.write.read_text()
        if BEGIN not in page or END not in page:
            raise SystemExit(f"bench_table.py: {args.write} lacks the markers {BEGIN} and {END}")
        before, rest = page.split(BEGIN)
        args.write.write_text(f"{before}{BEGIN}\n{text}\n{END}{rest.split(END)[1]}")


if __name__ == "__main__":
    main()
