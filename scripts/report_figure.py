#!/usr/bin/env python3
"""One chart of a report as a PNG, drawn by headless Chromium on a light page.

    scripts/report_figure.py report.html 'Final loss against cache' docs/images/study_cache.png
"""
import argparse
import pathlib
import re
import subprocess
import sys
import tempfile

WIDTH, PAD = 1080, 20


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("report", type=pathlib.Path)
    parser.add_argument("title", help="the chart's heading")
    parser.add_argument("out", type=pathlib.Path)
    parser.add_argument("--chromium", default="chromium")
    options = parser.parse_args()
    page = options.report.read_text()
    style = re.search(r"<style>(.*?)</style>", page, re.S)[1].replace("prefers-color-scheme: dark", "not all")
    found = re.search(rf"<figure><h3>{re.escape(options.title)}</h3><div class=\"wide\">(<svg .*?)</div>", page, re.S)
    if not found:
        titles = re.findall(r"<figure><h3>(.*?)</h3>", page)
        sys.exit(f"error: {options.report}: no wide chart '{options.title}'; it has {', '.join(titles)}")
    width, height = (float(v) for v in re.search(r'viewBox="0 0 (\S+) (\S+)"', found[1]).groups())
    with tempfile.TemporaryDirectory() as folder:
        html = pathlib.Path(folder, "figure.html")
        html.write_text(f"<!doctype html><meta charset=utf-8><style>{style}\nbody {{ padding: {PAD}px; max-width: none }}"
                        f"</style><body>{found[1]}")
        subprocess.run([options.chromium, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars",
                        "--force-device-scale-factor=1.5", f"--screenshot={options.out.resolve()}",
                        f"--window-size={WIDTH + 2 * PAD},{round(height * WIDTH / width) + 2 * PAD}", html.as_uri()],
                       check=True, stderr=subprocess.DEVNULL)


if __name__ == "__main__":
    main()
