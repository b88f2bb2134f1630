#!/usr/bin/env python3
"""Compares the losses of every token between egmla and the independent reference, over every kind of model.

    tests/reference/compare.py EGMLA_BINARY [--work DIR] [--case NAME ...]

For each case egmla writes a checkpoint of its initial weights, and another after a few training steps, and evaluates
both token by token; the reference reads the same checkpoints. Needs numpy, h5py, pyyaml.
"""

import argparse
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile

import numpy as np
import yaml

import self_test
from cases import CASES, END_OF_TEXT, T, TRAIN_SAMPLES, VAL_SAMPLES, configuration, masks_documents, random_ids
from cases import write_byte_tokenizer, write_shard
from egmla_reference import Model

TOLERANCE = 1e-4  # nats; egmla computes in float32


class Disagreement(Exception):
    pass


def egmla(binary, *arguments):
    # The models are tiny: more threads would only wait for each other.
    result = subprocess.run([binary, *map(str, arguments)], capture_output=True, text=True,
                            env={**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"})
    if result.returncode != 0:
        last = (result.stderr.strip().splitlines() or ["no message"])[-1]
        raise Disagreement(f"egmla {' '.join(map(str, arguments))}: exit code {result.returncode}: {last}")


def train_and_evaluate(binary, folder, stage, *overrides):
    """Returns the losses of the validation tokens as egmla prints them, and the checkpoint they came from."""
    run = folder / stage
    egmla(binary, "train", folder / "config.yaml", f"run.dir={run}", *overrides)
    egmla(binary, "eval", run, "--per-token", folder / f"{stage}.txt")
    checkpoints = sorted((run / "checkpoints").glob("step-*.h5"))
    if not checkpoints:
        raise Disagreement(f"{run}: no checkpoint was written")
    return np.loadtxt(folder / f"{stage}.txt", ndmin=1), checkpoints[-1]


def reference_losses(checkpoint, ids, end_of_text):
    model = Model.load(checkpoint)
    losses = [model.losses(ids[start : start + T + 1], end_of_text) for start in range(0, VAL_SAMPLES * T, T)]
    unread = sorted(set(model.weights) - model.used)
    if unread:
        raise Disagreement(f"{checkpoint}: holds tensors that the model does not have: {', '.join(unread)}")
    return np.concatenate(losses), sum(weight.size for weight in model.weights.values())


def run_case(binary, name, folder):
    """Returns (parameters, largest difference at the start, after training); raises Disagreement."""
    folder.mkdir(parents=True)
    documents = masks_documents(name)
    val = random_ids(VAL_SAMPLES, documents, seed=11)
    write_shard(folder / "train.bin", random_ids(TRAIN_SAMPLES, documents, seed=10))
    write_shard(folder / "val.bin", val)
    if documents:
        write_byte_tokenizer(folder / "tokenizer.json")
    (folder / "config.yaml").write_text(yaml.safe_dump(configuration(name, folder), sort_keys=False))
    differences, found = [], []
    for stage, overrides in (("initial", ["train.max_steps=0"]), ("trained", [])):
        losses, checkpoint = train_and_evaluate(binary, folder, stage, *overrides)
        expected, parameters = reference_losses(checkpoint, val, END_OF_TEXT if documents else None)
        if losses.shape != expected.shape:
            raise Disagreement(f"{stage}: egmla printed {losses.size} losses; expected {expected.size}")
        differences.append(np.abs(losses - expected).max())
        found.append(losses)
    if np.abs(found[0] - found[1]).max() < 1e-2:
        raise Disagreement("training moved no loss by 0.01: the second comparison says nothing")
    return parameters, *differences


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("binary", type=pathlib.Path)
    parser.add_argument("--work", type=pathlib.Path, help="folder that keeps the runs; it is emptied first")
    parser.add_argument("--case", nargs="+", choices=CASES, default=list(CASES), metavar="NAME", help=", ".join(CASES))
    arguments = parser.parse_args()
    self_test.run()
    if arguments.work:
        shutil.rmtree(arguments.work, ignore_errors=True)
    failed = 0
    print(f"{'case':24}{'parameters':>12}{'initial':>12}{'trained':>12}   largest difference of a token's loss, nats")
    with tempfile.TemporaryDirectory() as temporary:
        work = (arguments.work or pathlib.Path(temporary)).resolve()
        for name in arguments.case:
            try:
                parameters, *differences = run_case(arguments.binary.resolve(), name, work / name)
            except Disagreement as problem:
                print(f"{name:24}FAILED: {problem}")
                failed += 1
                continue
            agrees = max(differences) <= TOLERANCE  # false for NaN too
            failed += not agrees
            print(f"{name:24}{parameters:12,}{differences[0]:12.1e}{differences[1]:12.1e}   "
                  f"{'ok' if agrees else f'FAILED: above {TOLERANCE:g}'}")
    print(f"reference: {len(arguments.case) - failed} passed, {failed} failed")
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
