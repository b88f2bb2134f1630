#!/usr/bin/env python3
"""Losses of two runs side by side, as means over windows of steps.

    scripts/compare_losses.py RUN OTHER [--window 100] [--bound X]

Reads metrics.jsonl of both run directories. With --bound, exits with 1 when a window's means differ by more.
"""
import argparse
import json
import pathlib
import sys


def losses(run):
    path = pathlib.Path(run) / "metrics.jsonl"
    if not path.is_file():
        sys.exit(f"error: {path} is not there; name two run directories")
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    return {row["step"]: row["loss"] for row in rows}


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("run")
    parser.add_argument("other")
    parser.add_argument("--window", type=int, default=100, help="steps of a mean (100)")
    parser.add_argument("--bound", type=float, help="largest difference that is accepted")
    options = parser.parse_args()
    first, other = losses(options.run), losses(options.other)
    steps = sorted(first.keys() & other.keys())
    largest = 0.0
    print(f"{'steps':>13} {'loss':>9} {'other':>9} {'other - loss':>13}")
    for begin in range(0, len(steps) - options.window + 1, options.window):
        window = steps[begin : begin + options.window]
        a, b = (sum(values[s] for s in window) / len(window) for values in (first, other))
        largest = max(largest, abs(b - a))
        print(f"{window[0]:>6}-{window[-1]:>6} {a:>9.4f} {b:>9.4f} {b - a:>+13.4f}")
    print(f"largest difference of means over {options.window} steps: {largest:.4f}")
    # A NaN is above every bound.
    if options.bound is not None and not largest <= options.bound:
        sys.exit(f"error: it exceeds {options.bound}")


if __name__ == "__main__":
    main()
