#!/usr/bin/env python3
"""Writes the results in benchmarks/results/*.json into the README as a table, and
into docs/benchmarks.md and docs/plots/*.svg.

    python3 tools/benchtable/benchtable.py [--check]

The table replaces what stands between the markers below. --check changes
nothing and exits 1 when one of them does not show the committed results.
"""
import argparse
import json
import sys
from pathlib import Path

import page
from plots import PLOTS

ROOT = Path(__file__).resolve().parents[2]
README, RESULTS = ROOT / "README.md", ROOT / "benchmarks/results"
BEGIN, END = "<!-- benchmarks: made by make bench -->", "<!-- /benchmarks -->"
ORDER = ("bert_speed", "calibration", "fidelity", "vision", "litert", "fashion", "news", "search", "overhead", "load", "cycles", "loadgen", "servers", "servers_bert", "example_text", "example_image", "example_drone")


def table(results):
    lines = ["| what | fewbit | peer | ratio | bar | |", "|---|---|---|---|---|---|"]
    for r in results:
        for row in r["rows"]:
            ratio = "" if row["ratio"] is None else "%.2fx" % row["ratio"]
            holds = {True: "holds", False: "**missed**", None: ""}[row["holds"]]
            cells = [row["what"], row["ours"], row["peer"], ratio, row["bar"], holds]
            lines.append("| " + " | ".join(c.replace("|", "\\|") for c in cells) + " |")
    return lines


# The plots that the README shows, at most two of those that are drawn.
SHOWN = ("accuracy-latency", "load-target", "latency-target")


def facts(results, named):
    machines = sorted({"%s, %d cores" % (r["machine"].get("cpu", "unknown CPU"), r["machine"]["cores"]) for r in results})
    commits = sorted({r["commit"][:10] for r in results})
    noisy = [r["name"] for r in results if r["noise"]["load1_before"] > r["machine"]["cores"]]
    quick = [r["name"] for r in results if r["mode"] != "full"]
    text = "Measured %s on %s at commit %s against onnxruntime %s; every result with its n and its noise, and plots: [docs/benchmarks.md](docs/benchmarks.md); how each number was made: [benchmarks/README.md](benchmarks/README.md)." % (
        max(r["when"] for r in results)[:10], "; ".join(machines), ", ".join(commits),
        ", ".join(sorted({r["versions"]["onnxruntime"] for r in results})))
    if quick:
        text += " Quick counts (`make bench`, not `make bench-full`): %s." % ", ".join(quick)
    if noisy:
        text += " More was running than the machine has cores during: %s." % ", ".join(noisy)
    shown = ["<img src=\"docs/plots/%s.svg\" width=\"49%%\" alt=\"%s\">" % (name, chart.about) for name in SHOWN for chart in [PLOTS[name](named)] if not isinstance(chart, str)]
    return [text] + (["", "<p align=\"center\">" + " ".join(shown[:2]) + "</p>"] if shown else [])


def others(results):
    """{path: text} of the page and the plots, and the plots that no result makes any more."""
    files = {ROOT / name: text for name, text in page.page(results).items()}
    return files, [p for p in (ROOT / "docs/plots").glob("*.svg") if p not in files]


def main():
    ap = argparse.ArgumentParser(description="Write the benchmark results into README.md.")
    ap.add_argument("--check", action="store_true", help="only compare")
    args = ap.parse_args()
    named = {p.stem: json.loads(p.read_text()) for p in sorted(RESULTS.glob("*.json"))}
    results = [named[n] for n in ORDER if n in named]
    if not results:
        print("benchtable: no results in benchmarks/results; run make bench", file=sys.stderr)
        return 1
    new = [BEGIN, ""] + table(results) + [""] + facts(results, named) + ["", END]
    if not args.check:
        print("\n".join(new[2:-2]))
    old = README.read_text(encoding="utf-8") if README.exists() else ""
    if BEGIN not in old or END not in old:
        print("benchtable: README.md has no markers %s ... %s" % (BEGIN, END), file=sys.stderr)
        return 1
    head, rest = old.split(BEGIN, 1)
    text = head + "\n".join(new) + rest.split(END, 1)[1]
    files, gone = others(named)
    files[README] = text
    stale = [f for f, t in files.items() if not f.exists() or f.read_text(encoding="utf-8") != t] + gone
    if args.check:
        if stale:
            names = ", ".join(str(f.relative_to(ROOT)) for f in stale)
            print("benchtable: %s: not what benchmarks/results says; run python3 tools/benchtable/benchtable.py" % names, file=sys.stderr)
        return int(bool(stale))
    for f in gone:
        f.unlink()
    for f in stale:
        if f in files:
            f.parent.mkdir(parents=True, exist_ok=True)
            f.write_text(files[f], encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
