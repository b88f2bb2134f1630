#!/usr/bin/env python3
"""Trains one model on the CPU in float32 and on the GPU in bf16, and compares what the runs wrote down.

    tests/interop/check_devices.py BINARY [--work DIR] [--text FILE] [--steps 50] [--layers 12] [--hidden 256]

The GPU's losses follow the CPU's within 0.02 nats at every step; a repeated run and one that stops half-way and resumes
have the first one's losses, gradient norms and final weights, bit for bit. The text is the documentation of this
repository unless FILE is given. Needs a GPU; the standard library alone.
"""

import argparse
import hashlib
import json
import pathlib
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parents[2]
TOLERANCE = 0.02


def rows_of(run):
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("binary", type=pathlib.Path)
    parser.add_argument("--work", type=pathlib.Path, default=pathlib.Path("build/check_devices"))
    parser.add_argument("--text", type=pathlib.Path)
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--hidden", type=int, default=256)
    args = parser.parse_args()
    work, half = args.work, args.steps // 2
    work.mkdir(parents=True, exist_ok=True)

    def egmla(*words):
        done = subprocess.run([args.binary, *map(str, words)], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        if done.returncode:
            sys.exit(f"egmla {words[0]} failed: {done.stderr.strip().splitlines()[-1]}")

    texts = [args.text] if args.text else sorted(ROOT.glob("docs/*.md")) + [ROOT / "README.md", ROOT / "CHANGELOG.md"]
    egmla("tokenizer", "train", *texts, "--vocab-size", 1024, "--out", work / "tokenizer.json")
    egmla("data", "prepare", *texts, "--tokenizer", work / "tokenizer.json", "--out", work / "data")

    def train(name, *overrides):
        run = work / name
        egmla("train", ROOT / "configs/quickstart.yaml", f"run.dir={run}", f"data.train={work}/data/train_*.bin",
              "data.val=[]", f"data.tokenizer={work}/tokenizer.json", "data.sequence_length=256", "model.vocab_size=1024",
              f"model.num_hidden_layers={args.layers}", f"model.hidden_size={args.hidden}",
              f"model.intermediate_size={4 * args.hidden}", f"train.max_steps={args.steps}", "train.batch_tokens=2048",
              "train.optimizer.lr=1e-3", "train.schedule.warmup_steps=10", "train.checkpoint.every=0",
              "train.sample.every=0", "train.eval.every=0", *overrides)
        return run

    subprocess.run(["rm", "-rf", *(work / n for n in ("cpu", "gpu", "again", "halves"))], check=True)
    cpu = rows_of(train("cpu", "run.device=cpu"))
    runs = {"gpu": train("gpu", "run.device=cuda"), "again": train("again", "run.device=cuda")}
    train("halves", "run.device=cuda", f"train.stop_at_step={half}")
    runs["halves"] = train("halves", "run.device=cuda")

    gpu = rows_of(runs["gpu"])
    largest = max((abs(a["loss"] - b["loss"]), a["step"]) for a, b in zip(cpu, gpu))
    print(f"{len(gpu)} steps, loss {cpu[0]['loss']:.4f} to {cpu[-1]['loss']:.4f} on the CPU; the GPU differs by at most "
          f"{largest[0]:.4f} nats (step {largest[1]})")
    problems = []
    if len(cpu) != args.steps or len(gpu) != args.steps or largest[0] > TOLERANCE:
        problems.append(f"the GPU's losses leave the CPU's by {largest[0]:.4f} nats; expected at most {TOLERANCE}")
    # The weights alone: other parts of a checkpoint name the run's own directory.
    for name in ("again", "halves"):
        found = rows_of(runs[name])
        for mine, other in zip(gpu, found):
            for field in ("loss", "grad_norm", "lr", "tokens"):
                if mine[field] != other[field]:
                    problems.append(f"{name}: step {mine['step']}: {field} {other[field]}; expected {mine[field]}")
        if len(found) != len(gpu):
            problems.append(f"{name}: {len(found)} steps; expected {len(gpu)}")
    weights = {}
    for name, run in runs.items():
        out = work / f"weights_{name}"
        subprocess.run(["rm", "-rf", out], check=True)
        egmla("export", run, "--format", "hf", "--out", out, "--dtype", "fp32")
        weights[name] = hashlib.sha256((out / "model.safetensors").read_bytes()).hexdigest()
    for name in ("again", "halves"):
        if weights[name] != weights["gpu"]:
            problems.append(f"{name}: the final weights differ from the first run's")
    for problem in problems[:10]:
        print(problem, file=sys.stderr)
    if problems:
        sys.exit(1)
    print("a repeated run and a resumed one: the same losses, gradient norms and weights, bit for bit")


if __name__ == "__main__":
    main()
