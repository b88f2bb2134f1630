#!/usr/bin/env python3
"""Checks what the compiler cannot: the order of the layers, who may include what, and the size of files.

    tests/check_layers.py [ROOT]

Prints one line a violation, "file:line: what", and fails when there is one.
"""

import pathlib
import re
import sys

# Each layer includes only itself and what stands left of it (docs/conventions.md).
LAYERS = "core kernels autograd ops nn optim dist text data io infer train lab cli".split()

CPP = {".h", ".cpp", ".cu", ".cuh"}
CODE = CPP | {".py", ".sh", ".cmake"}
MAX_LINES = 450
UNFINISHED = re.compile(r"\b(TO" r"DO|FIX" r"ME|XX" r"X)\b")

# Foreign headers and the files that may include them, as paths from the root.
FOREIGN = {
    "CUDA": (r"(cuda|cublas|cudnn|nvtx|curand|nvrtc|cub/|mma\.h)",
             r"(.*_cuda\.(cpp|cu)|.*\.cuh|.*_state\.h|.*_nccl\.cpp)"),
    "NCCL": (r"nccl", r"src/dist/.*(_cuda|_nccl)\.cpp"),
    "MPI": (r"mpi\.h", r"src/dist/\w*\.cpp"),
    "HDF5": (r"(hdf5|H5\w*)\.h", r"(src/io/(checkpoint|seal)\w*\.(cpp|h)|tests/test_checkpoint\w*\.cpp)"),
}

INCLUDE = re.compile(r'^\s*#\s*include\s*([<"])([^>"]+)[>"]')
# Literals are matched as well, so that a // inside one does not start a comment.
COMMENT_OR_LITERAL = re.compile(r'//[^\n]*|/\*.*?\*/|"(?:\\.|[^"\\\n])*"|\'(?:\\.|[^\'\\\n])\'', re.DOTALL)


def layer_of(path):
    """The layer of a path from the root or of an include; None for what belongs to no layer."""
    parts = path.split("/")
    if parts[0] == "src":
        parts = parts[1:]
    return parts[0] if len(parts) > 1 and parts[0] in LAYERS else None


def without_comments(text):
    """Comments and literals replaced by as many line ends as they had."""
    return COMMENT_OR_LITERAL.sub(lambda match: "\n" * match.group().count("\n"), text)


def check_includes(name, lines):
    own = layer_of(name)
    for number, line in enumerate(lines, 1):
        match = INCLUDE.match(line)
        if not match:
            continue
        bracket, header = match.groups()
        for library, (pattern, allowed) in FOREIGN.items():
            if re.match(pattern, header) and bracket == "<" and not re.fullmatch(allowed, name):
                yield f"{name}:{number}: includes {library}'s <{header}>; only files matching {allowed} may"
        other = layer_of(header) if bracket == '"' else None
        if own and other and LAYERS.index(other) > LAYERS.index(own):
            yield f"{name}:{number}: layer {own} includes \"{header}\" of the later layer {other}"


def check_file(root, path, launches):
    name = path.relative_to(root).as_posix()
    text = path.read_text(encoding="utf-8")
    lines = text.splitlines()
    if len(lines) > MAX_LINES:
        yield f"{name}:{len(lines)}: longer than {MAX_LINES} lines; split it"
    for number, line in enumerate(lines, 1):
        if UNFINISHED.search(line):
            yield f"{name}:{number}: unfinished work: {line.strip()}"
    if path.suffix not in CPP:
        return
    if name.startswith("src/") and layer_of(name) is None:
        yield f"{name}:1: belongs to no layer; the layers are {', '.join(LAYERS)}"
    yield from check_includes(name, lines)
    for number, line in enumerate(without_comments(text).splitlines(), 1):
        launches += [f"{name}:{number}"] * line.count("<<<")


def main():
    root = pathlib.Path(sys.argv[1] if len(sys.argv) > 1 else pathlib.Path(__file__).parent.parent).resolve()
    folders = ["kernels", "src", "tests", "scripts", "cmake"]
    files = sorted(p for folder in folders for p in (root / folder).rglob("*") if p.suffix in CODE)
    if not any(p.suffix in CPP for p in files):
        sys.exit(f"{root}: no source files below it; expected the repository's root")
    launches = []
    problems = [problem for path in files for problem in check_file(root, path, launches)]
    if any(p.suffix == ".cu" for p in files) and len(launches) != 1:
        problems.append(f"<<< appears {len(launches)} times; expected once, in launch_kernel: {', '.join(launches)}")
    for problem in problems:
        print(problem)
    if problems:
        sys.exit(1)
    print(f"{len(files)} files: layers, includes, launches and sizes are as they should be")


if __name__ == "__main__":
    main()
