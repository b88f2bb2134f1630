#!/usr/bin/env python3
"""Predicts what data parallelism costs, from one GPU's measured step and the bandwidth of the links.

    scripts/scaling_model.py MEASURED.jsonl [--write docs/distributed.md]    efficiency on 8, 64 and 512 GPUs
    scripts/scaling_model.py --runs SCALING.jsonl [--write docs/scaling.md]  what scaling.sh measured, beside the model

MEASURED.jsonl holds lines of `egmla bench train --json` of one GPU. Sizes are egmla's own (`egmla inspect`).
"""
import argparse
import json
import math
import pathlib
import re
import subprocess

NVLINK = 321e9          # bytes/s, bus bandwidth of an all-reduce of 1 GiB on 2 H100; 4 and 8 of them reach up to 361e9
NETWORK = 50e9          # bytes/s a GPU between hosts: one 400 Gbit/s adapter each, by its specification, not measured
HOST = 8                # GPUs of a host
HOP = {True: 1.5e-6, False: 6e-6}  # seconds a message takes inside a host, between hosts: assumed, not measured
BUCKET = 25 * 2**20     # parallel.bucket_mb
BACKWARD = 2 / 3        # of a micro-step; the rest is forward
STATE_BYTES = 30        # AdamW moves a parameter


def config_of(name):
    return f"configs/bench/{name.removeprefix('bench_')}.yaml"


def layers_of(name):
    return int(re.search(r"num_hidden_layers: *(\d+)", pathlib.Path(config_of(name)).read_text())[1])


def inspect(egmla, name):
    config = config_of(name)
    output = subprocess.run([egmla, "inspect", config, "--json"], capture_output=True, text=True, check=True).stdout
    return json.loads(output)["parameters"]


def bus(gpus):
    return NVLINK if gpus <= HOST else min(NVLINK, NETWORK)


def latency(gpus, rounds):
    """Of `rounds` trips around a ring, or twice up and down a tree where both are possible (rounds 2: all-reduce)."""
    outside = 0 if gpus <= HOST else gpus // HOST
    ring = rounds * ((gpus - 1 - outside) * HOP[True] + outside * HOP[False])
    tree = 2 * math.ceil(math.log2(gpus)) * HOP[gpus <= HOST]
    return min(ring, tree) if rounds == 2 else ring


def predict(row, embedding, gpus, stage, bucket=BUCKET):
    """Milliseconds of a step and of it exposed communication."""
    n, params, whole = gpus, row["params"], row["ms"] / 1e3
    if n == 1:
        return row["ms"], 0.0
    optimizer = STATE_BYTES * params / (row.get("copy_gb_per_s") or 3000) / 1e9
    micro = (whole - optimizer) / row["accumulation"]
    buckets = math.ceil(4 * params / bucket)
    last = embedding / params  # completed last by backward, read first by forward
    first_layer = BACKWARD / 2 * micro / layers_of(row["name"])  # its weight gradients, which hide the embedding's

    def around(byte_count, rounds):
        return rounds * (n - 1) / n * byte_count / bus(n) + buckets * latency(n, rounds)

    gradients = around(4 * params, 1 if stage else 2)
    exposed = max(0.0, gradients * (1 - last) - BACKWARD * micro) + max(0.0, gradients * last - first_layer)
    saved = 0.0
    if stage:
        weights, update = around(2 * params, 1), optimizer / n
        exposed += max(0.0, weights * last - update) + max(0.0, weights * (1 - last) - (1 - BACKWARD) * micro)
        saved = optimizer - update
    return 1e3 * (whole + exposed - saved), 1e3 * exposed


def prediction(path, egmla):
    rows = {}
    for line in pathlib.Path(path).read_text().splitlines():
        row = json.loads(line)
        if row.get("ms") and row.get("gpus") == 1 and "peer" not in row:
            rows.setdefault((row["name"], row["accumulation"]), row)
    devices = sorted({row["device"] for row in rows.values()})
    lines = [f"One GPU's steps: `{path}` ({', '.join(devices)}). Links: {NVLINK / 1e9:.0f} GB/s inside a host, "
             f"{NETWORK / 1e9:.0f} GB/s a GPU between hosts. Efficiency is one GPU's step over the step; in brackets the "
             "exposed communication. Accumulation 4 is computed from accumulation 1.", "",
             "| shape | accumulation | ZeRO | ms on 1 | 8 GPUs | 64 GPUs | 512 GPUs |", "|---|---:|---:|---:|---:|---:|---:|"]
    for (name, accumulation), row in rows.items():
        embedding = inspect(egmla, name)["embedding"]
        optimizer_ms = 1e3 * STATE_BYTES * row["params"] / (row.get("copy_gb_per_s") or 3000) / 1e9
        for factor in (1, 4) if accumulation == 1 else (1,):
            more = dict(row, accumulation=accumulation * factor, ms=(row["ms"] - optimizer_ms) * factor + optimizer_ms)
            for stage in (0, 1):
                cells = []
                for gpus in (8, 64, 512):
                    ms, exposed = predict(more, embedding, gpus, stage)
                    cells.append(f"{more['ms'] / ms:.1%} ({exposed:.1f} ms)")
                lines.append(f"| {name.removeprefix('bench_')} | {more['accumulation']} | {stage} | {more['ms']:.1f} | "
                             + " | ".join(cells) + " |")
    lines += [""] + limits(rows, egmla)
    return "\n".join(lines)


def limits(rows, egmla):
    """Sentences on where a shape stops scaling: the bandwidth that hides its exchange, the accumulations it needs."""
    out = []
    for (name, accumulation), row in rows.items():
        if "1b" not in name or accumulation != 1:
            continue
        embedding = inspect(egmla, name)["embedding"]
        need = {}
        for stage in (0, 1):
            need[stage] = next(f for f in range(1, 200) if 0.95 <= (
                (whole := row["ms"] * f) / predict(dict(row, ms=whole, accumulation=f), embedding, 64, stage)[0]))
        few, many = (row["ms"] / predict(row, embedding, 512, 1, size)[0] for size in (BUCKET, 16 * BUCKET))
        backward = BACKWARD * row["ms"] / 1e3
        out.append(f"- {name.removeprefix('bench_')}: gradients are {4 * row['params'] / 1e9:.2f} GB. An all-reduce hides behind one "
                   f"backward from {2 * 4 * row['params'] / backward / 1e9:.0f} GB/s a GPU on, a reduce-scatter from "
                   f"{4 * row['params'] / backward / 1e9:.0f}. For 95% on 64 GPUs: {need[0]} accumulations with ZeRO 0, "
                   f"{need[1]} with ZeRO 1. On 512 GPUs a ring's messages weigh more than its bytes: ZeRO 1 without accumulation "
                   f"reaches {few:.0%} with buckets of {BUCKET >> 20} MiB and {many:.0%} with {16 * BUCKET >> 20}.")
    return out


def step(row):
    """Milliseconds of a step as training runs it; results of before 2026-11-25 have the waited-for step alone."""
    return row.get("running_ms", row["ms"])


def tokens(row):
    return row["gpus"] * row["batch"] * row["seq"] * row["accumulation"] / step(row) * 1e3


def measured(path, egmla):
    rows = [json.loads(line) for line in pathlib.Path(path).read_text().splitlines()]
    head = next((row for row in rows if "machine" in row), {})
    runs = [row for row in rows if "ms" in row]
    lines = [f"{head.get('machine', '')}, {head.get('commit', '')}, {head.get('date', '')}; written by `scripts/scaling.sh` from "
             f"`{path}`. Tokens/s of all processes; efficiency against one of them; exposed: the step less the same step "
             "without exchange.", "",
             "| shape | B, T | accumulation | ZeRO | GPUs | tokens/s | efficiency | predicted | exposed ms | predicted ms | peak GiB |",
             "|---|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|"]
    for row in runs:
        same = ("name", "batch", "accumulation")
        one = next((r for r in runs if r["gpus"] == 1 and all(r[k] == row[k] for k in same)), None)
        stage, cells = row.get("zero_stage", 0), ["", "", ""]
        if one and row["gpus"] > 1:
            cells[0] = f"{step(one) / step(row):.1%}"
            if row["device"] != "cpu":
                ms, exposed = predict(one, inspect(egmla, row["name"])["embedding"], row["gpus"], stage)
                cells[1:] = [f"{one['ms'] / ms:.1%}", f"{exposed:.2f}"]
        exposed = f"{row['exposed_ms']:.2f}" if "exposed_ms" in row else ""
        lines.append(f"| {row['name'].removeprefix('bench_')} | {row['batch']}, {row['seq']} | {row['accumulation']} | {stage} | "
                     f"{row['gpus']} | {tokens(row):,.0f} | {cells[0]} | {cells[1]} | {exposed} | "
                     f"{cells[2]} | {row['peak_gib']:.2f} |")
    return "\n".join(lines)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("measured", nargs="?")
    parser.add_argument("--runs")
    parser.add_argument("--egmla", default="build/egmla")
    parser.add_argument("--write", type=pathlib.Path, help="a page with the marks <!-- scaling_model.py: begin --> and end")
    options = parser.parse_args()
    if not options.measured and not options.runs:
        parser.error("name a file of one GPU's steps, or --runs FILE")
    text = measured(options.runs, options.egmla) if options.runs else prediction(options.measured, options.egmla)
    print(text)
    if options.write:
        begin, end = "<!-- scaling_model.py: begin -->", "<!-- scaling_model.py: end -->"
        page = options.write.read_text()
        options.write.write_text(page[:page.index(begin)] + f"{begin}\n{text}\n" + page[page.index(end):])


if __name__ == "__main__":
    main()
