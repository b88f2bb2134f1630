#!/usr/bin/env python3
"""Reads a run's event files with TensorBoard's own EventAccumulator and compares them with metrics.jsonl.

    pip install tensorboard
    tests/interop/check_tensorboard.py runs/NAME

Every tag that is also a key of metrics.jsonl must hold the same steps and values (float32), and nothing beyond the
last step: what a resumed run repeats must appear once.
"""

import json
import math
import pathlib
import sys

import numpy as np
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator


def expected_points(rows, key):
    return [(row["step"], row[key]) for row in rows if row.get(key) is not None]


def check_tag(tag, found, expected):
    found = [event for event in found if math.isfinite(event.value)]  # JSON has null for these
    steps = [event.step for event in found]
    if steps != [step for step, _ in expected]:
        return f"{tag}: {len(steps)} steps, last {steps[-1:]}; metrics.jsonl has {len(expected)}"
    for event, (step, value) in zip(found, expected):
        if event.value != np.float32(value):
            return f"{tag}: step {step} holds {event.value}; metrics.jsonl has {value}"
    return None


def main():
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    run = pathlib.Path(sys.argv[1])
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    accumulator = EventAccumulator(str(run / "tensorboard"), size_guidance={"scalars": 0})
    accumulator.Reload()
    tags = accumulator.Tags()["scalars"]
    keys = [tag for tag in tags if any(tag in row for row in rows)]
    if "loss" not in keys:
        sys.exit(f"{run}: the event files hold {tags}, expected at least loss")
    problems = [check_tag(tag, accumulator.Scalars(tag), expected_points(rows, tag)) for tag in keys]
    for problem in filter(None, problems):
        print(problem, file=sys.stderr)
    if any(problems):
        sys.exit(1)
    print(f"{run}: {len(rows)} steps, tags {', '.join(keys)}: equal")


if __name__ == "__main__":
    main()
