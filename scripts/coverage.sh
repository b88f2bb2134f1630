#!/usr/bin/env bash
# The suite built with gcov's counters (build-coverage/): lines of src/ and kernels/*_cpu.cpp that ran, by folder.
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
cd "$root"
[[ $# -eq 0 ]] || die "coverage.sh takes no argument"

say "Building (build-coverage/)"
cmake --preset cpu -B build-coverage -DCMAKE_BUILD_TYPE=Debug -DCMAKE_CXX_FLAGS="--coverage -O1" \
  -DCMAKE_CXX_COMPILER_LAUNCHER= >/dev/null
cmake --build build-coverage -j "${EGMLA_JOBS:-$(nproc)}"
find build-coverage -name '*.gcda' -delete

say "Tests"
run_ctest build-coverage >build-coverage/ctest.log 2>&1 || note "tests failed; the counts hold what ran (build-coverage/ctest.log)"

say "Lines that ran"
python3 - <<'PYTHON'
import collections, gzip, json, pathlib, subprocess, tempfile

root = pathlib.Path.cwd()
ran = collections.defaultdict(dict)
with tempfile.TemporaryDirectory() as folder:
    for counts in root.glob("build-coverage/**/egmla*.dir/**/*.gcda"):
        subprocess.run(["gcov", "--json-format", str(counts)], cwd=folder, check=True, capture_output=True)
        for report in pathlib.Path(folder).glob("*.gcov.json.gz"):
            for file in json.load(gzip.open(report))["files"]:
                path = (root / "build-coverage" / file["file"]).resolve()
                if not path.is_relative_to(root / "src") and not path.name.endswith("_cpu.cpp"):
                    continue
                lines = ran[path.relative_to(root)]
                for line in file["lines"]:
                    number = line["line_number"]
                    lines[number] = lines.get(number, False) or line["count"] > 0
            report.unlink()
folders = collections.defaultdict(lambda: [0, 0])
for path, lines in ran.items():
    for key in (path.parent.as_posix(), "all"):
        folders[key][0] += sum(lines.values())
        folders[key][1] += len(lines)
for name, (hit, lines) in sorted(folders.items()):
    print(f"        {name:16} {hit:6} of {lines:6}  {100 * hit / lines:5.1f}%")
PYTHON
