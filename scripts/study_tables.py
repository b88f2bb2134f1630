#!/usr/bin/env python3
"""The tables of docs/reproduction.md, from the archive of a study that scripts/run_study.sh packed.

    scripts/study_tables.py docs/results/2026-11-25_h100_study.tar.xz [--write PAGE | --check PAGE]

Each table stands in the page between <!-- study: NAME --> and <!-- study: end -->. Without an option all are printed.
"""
import argparse
import csv
import json
import pathlib
import re
import sys
import tarfile
from math import sqrt
from statistics import mean, stdev

COUNTS_OF_NOTE = 1000  # tokens in a bin; fewer say nothing


def read(archive):
    """path -> parsed content of each file that the tables need"""
    files = {}
    with tarfile.open(archive) as tar:
        for member in tar:
            data = tar.extractfile(member)
            if data is None:
                continue
            if member.name.endswith(".jsonl"):
                files[member.name] = [json.loads(line) for line in data.read().decode().splitlines() if line]
            elif member.name.endswith((".json", "table.csv")):
                text = data.read().decode()
                files[member.name] = list(csv.DictReader(text.splitlines())) if member.name.endswith("csv") else json.loads(text)
    return files


def table(headings, rows):
    lines = ["| " + " | ".join(headings) + " |", "|---|" + "---:|" * (len(headings) - 1)]
    return "\n".join(lines + ["| " + " | ".join(str(cell) for cell in row) + " |" for row in rows])


def millions(value):
    return f"{float(value) / 1e6:.1f}M"


class Study:
    def __init__(self, files):
        self.files = files
        # setting -> seed -> rows of metrics.jsonl
        self.runs = {}
        for path, content in files.items():
            found = re.fullmatch(r"sweeps/attention/(.+)-seed_(\d+)/metrics\.jsonl", path)
            if found:
                self.runs.setdefault(found[1], {})[int(found[2])] = content
        self.settings = sorted(self.runs, key=lambda name: self.losses(name)[0])

    def stats(self, setting):
        return self.files[f"sweeps/attention/{setting}-seed_1/stats.json"]

    def validations(self, setting):
        """seed -> {tokens: validation loss}"""
        return {seed: {row["tokens"]: row["val_loss"] for row in rows if row.get("val_loss") is not None}
                for seed, rows in self.runs[setting].items()}

    def losses(self, setting):
        """mean, sample standard deviation, values by seed, of the last validation losses"""
        values = [curve[max(curve)] for _, curve in sorted(self.validations(setting).items())]
        return mean(values), stdev(values), values

    def attention(self):
        rows = []
        for name in self.settings:
            average, spread, values = self.losses(name)
            stats = self.stats(name)
            bits = mean(run[-1]["val_bits_per_byte"] for run in self.runs[name].values())
            rows.append([name, int(stats["cache_elements"]), millions(stats["parameters"] - stats["gate_tables"]),
                         millions(stats["gate_tables"]), " / ".join(f"{v:.4f}" for v in values),
                         f"{average:.4f} ± {spread:.4f}", f"{bits:.3f}", f"{stats['flops_per_token'] / 1e6:.0f}M"])
        return table(["setting", "cached elements", "parameters without tables", "gate tables", "validation loss by seed",
                      "mean ± sd", "bits per byte", "FLOPs per token"], rows)

    def differences(self):
        rows = []
        for a, b in [("egmla_kv256", "mla_kv256"), ("egmla_kv64", "mla_kv64"), ("egmla_kv64", "mla_kv256"),
                     ("egmla_kv64", "mha"), ("egmla_kv64", "egmla_kv256"), ("mla_kv64", "mla_kv256"),
                     ("mla_kv256", "mha"), ("egmla_kv64_fast_tables", "egmla_kv64"),
                     ("egmla_kv64_offset", "egmla_kv64"), ("egmla_kv64_offset", "mla_kv64")]:
            (x, sx, xs), (y, sy, ys) = self.losses(a), self.losses(b)
            error = sqrt(sx * sx / len(xs) + sy * sy / len(ys))
            cache = self.stats(a)["cache_elements"] / self.stats(b)["cache_elements"] - 1
            rows.append([f"{a} against {b}", f"{x - y:+.4f}", f"{error:.4f}", f"{100 * cache:+.1f}%"])
        return table(["pair", "validation loss", "standard error over seeds", "cache"], rows)

    def along(self):
        """Differences from MLA with a latent of 256 while training."""
        base = self.validations("mla_kv256")
        steps = sorted(next(iter(base.values())))

        def average(curves, tokens):
            return mean(curve[tokens] for curve in curves.values())
        rows = [["mla_kv256, its loss"] + [f"{average(base, t):.3f}" for t in steps]]
        for name in self.settings:
            if name != "mla_kv256":
                curves = self.validations(name)
                rows.append([name] + [f"{average(curves, t) - average(base, t):+.3f}" for t in steps])
        return table(["tokens"] + [millions(t) for t in steps], rows)

    def plateau(self):
        """Tokens at which the mean training loss of the last 20 steps first falls below a value."""
        bounds = [4.0, 3.5, 3.0, 2.5, 2.0]

        def crossing(rows, bound):
            return next((rows[i]["tokens"] for i in range(19, len(rows))
                         if mean(row["loss"] for row in rows[i - 19:i + 1]) < bound), None)

        rows = []
        for name in self.settings:
            cells = []
            for bound in bounds:
                found = [crossing(run, bound) for _, run in sorted(self.runs[name].items())]
                cells.append(" / ".join(millions(tokens) if tokens else "not reached" for tokens in found))
            rows.append([name] + cells)
        return table(["training loss below"] + [str(bound) for bound in bounds], rows)

    def counts(self):
        names = [n for n in self.settings if f"sweeps/attention/{n}-seed_1/comparison.json" in self.files]
        compared = {n: self.files[f"sweeps/attention/{n}-seed_1/comparison.json"] for n in names}
        rows = []
        for i, row in enumerate(compared[names[0]]["by_count"]):
            end = "more" if row["seen_to"] is None else f"{row['seen_to'] - 1:,}"
            label = f"{row['seen_from']:,} to {end}" + ("" if row["tokens"] >= COUNTS_OF_NOTE else " (few)")
            cells = [compared[n]["by_count"][i] for n in names]
            rows.append([label, f"{row['tokens']:,}"] + [f"{c['benefit']:+.3f} ± {c['standard_error']:.3f}" for c in cells])
        rows.append(["all", f"{compared[names[0]]['all']['tokens']:,}"] +
                    [f"{compared[n]['all']['benefit']:+.3f} ± {compared[n]['all']['standard_error']:.3f}" for n in names])
        return table(["times seen in training", "validation tokens"] + names, rows)

    def sweep(self, name):
        """A sweep's settings in its own order, those that are not finished left out."""
        content = self.files[f"sweeps/{name}/table.csv"]
        names = list(content[0])[:list(content[0]).index("finished")]
        rows = []
        for row in content:
            if row["val_loss"]:
                spread = f" ± {float(row['val_spread']):.4f}" if row["val_spread"] else ""
                rows.append([row[n] for n in names] +
                            [millions(float(row["parameters"]) - float(row["gate_tables"])), millions(row["gate_tables"]),
                             int(float(row["cache_elements"])), f"{float(row['flops_per_token']) / 1e6:.0f}M",
                             millions(row["tokens"]), f"{float(row['val_loss']):.4f}{spread}",
                             f"{float(row['bits_per_byte']):.3f}"])
        return table([n.split(".")[-1] for n in names] + ["parameters without tables", "gate tables", "cached elements",
                                                          "FLOPs per token", "tokens", "validation loss", "bits per byte"], rows)

    def paper(self):
        """Validation losses of the 120M models while training, beside each the mean training loss of the 50 steps up to
        it; all follow one schedule, so a column compares."""
        curves = {}
        for path, content in self.files.items():
            found = re.fullmatch(r"sweeps/paper_120m/(\w+)/metrics\.jsonl", path)
            if found:
                curves[found[1]] = {row["tokens"]: (row["val_loss"], mean(r["loss"] for r in content[max(0, i - 49):i + 1]))
                                    for i, row in enumerate(content) if row.get("val_loss") is not None}
        tokens = sorted({t for curve in curves.values() for t in curve})
        rows = [[name] + ["{:.3f} ({:.3f})".format(*curve[t]) if t in curve else "" for t in tokens]
                for name, curve in sorted(curves.items(), key=lambda run: run[1][min(max(c) for c in curves.values())])]
        return table(["tokens"] + [millions(t) for t in tokens], rows)

    def speed(self):
        rows = []
        for name in self.settings:
            rates = sorted(row["tokens_per_s"] for run in self.runs[name].values() for row in run)
            seconds = mean(run[-1]["time"] for run in self.runs[name].values())
            rows.append([name, f"{rates[len(rates) // 2] / 1e3:.0f}k", f"{seconds:.0f} s"])
        return table(["setting", "tokens/s, one H100", "training"], rows)

    def tables(self):
        tables = {name: getattr(self, name)() for name in
                  ("attention", "differences", "along", "plateau", "counts", "speed", "paper")}
        return tables | {name: self.sweep(name) for name in
                         ("attention_total_parameters", "attention_flops", "scaling", "kv_lora_rank", "embed_dim",
                          "share_layers", "gate_form", "tables", "vocabulary", "learning_rate")}


def filled(page, tables):
    def fill(found):
        if found[1] not in tables:
            sys.exit(f"error: no table '{found[1]}'; expected one of {', '.join(tables)}")
        return f"<!-- study: {found[1]} -->\n{tables[found[1]]}\n<!-- study: end -->"
    return re.sub(r"<!-- study: (?!end)(\w+) -->\n.*?<!-- study: end -->", fill, page, flags=re.S)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("archive", type=pathlib.Path)
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--write", type=pathlib.Path, metavar="PAGE", help="fill the page's tables")
    what.add_argument("--check", type=pathlib.Path, metavar="PAGE", help="fail when they are not these")
    options = parser.parse_args()
    tables = Study(read(options.archive)).tables()
    page = options.write or options.check
    if not page:
        for name, text in tables.items():
            print(f"{name}\n{text}\n")
        return
    old = page.read_text()
    new = filled(old, tables)
    missing = [name for name in tables if f"<!-- study: {name} -->" not in old]
    if missing:
        sys.exit(f"error: {page}: no place for {', '.join(missing)}; expected <!-- study: NAME --> lines")
    if options.write:
        page.write_text(new)
    elif new != old:
        sys.exit(f"error: {page}: its tables are not the archive's; "
                 f"run: scripts/study_tables.py {options.archive} --write {page}")


if __name__ == "__main__":
    main()
