#!/usr/bin/env python3
"""Writes the results in benchmarks/results/*.json into the README as a table.

    python3 tools/benchtable/benchtable.py [--check]

The table replaces what stands between the markers below. --check changes
nothing and exits 1 when the README does not show the committed results.
"""
import argparse
import json
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
README, RESULTS = ROOT / "README.md", ROOT / "benchmarks/results"
BEGIN, END = "<!-- benchmarks: made by make bench -->", "<!-- /benchmarks -->"
ORDER = ("bert_speed", "calibration", "fidelity", "vision", "news", "overhead", "load", "loadgen", "servers")


def table(results):
    lines = ["| what | fewbit | peer | ratio | bar | |", "|---|---|---|---|---|---|"]
    for r in results:
        for row in r["rows"]:
            ratio = "" if row["ratio"] is None else "%.2fx" % row["ratio"]
            holds = {True: "holds", False: "**missed**", None: ""}[row["holds"]]
            cells = [row["what"], row["ours"], row["peer"], ratio, row["bar"], holds]
            lines.append("| " + " | ".join(c.replace("|", "\\|") for c in cells) + " |")
    return lines


def facts(results):
    machines = sorted({"%s, %d cores" % (r["machine"].get("cpu", "unknown CPU"), r["machine"]["cores"]) for r in results})
    commits = sorted({r["commit"][:10] for r in results})
    noisy = [r["name"] for r in results if r["noise"]["load1_before"] > r["machine"]["cores"]]
    quick = [r["name"] for r in results if r["mode"] != "full"]
    text = "Measured %s on %s at commit %s against onnxruntime %s; how each number was made: [benchmarks/README.md](benchmarks/README.md)." % (
        max(r["when"] for r in results)[:10], "; ".join(machines), ", ".join(commits),
        ", ".join(sorted({r["versions"]["onnxruntime"] for r in results})))
    if quick:
        text += " Quick counts (`make bench`, not `make bench-full`): %s." % ", ".join(quick)
    if noisy:
        text += " More was running than the machine has cores during: %s." % ", ".join(noisy)
    return [text]


def main():
    ap = argparse.ArgumentParser(description="Write the benchmark results into README.md.")
    ap.add_argument("--check", action="store_true", help="only compare")
    args = ap.parse_args()
    results = [json.loads(p.read_text()) for n in ORDER for p in [RESULTS / (n + ".json")] if p.exists()]
    if not results:
        print("benchtable: no results in benchmarks/results; run make bench", file=sys.stderr)
        return 1
    new = [BEGIN, ""] + table(results) + [""] + facts(results) + ["", END]
    if not args.check:
        print("\n".join(new[2:-2]))
    old = README.read_text(encoding="utf-8") if README.exists() else ""
    if BEGIN not in old or END not in old:
        print("benchtable: README.md has no markers %s ... %s" % (BEGIN, END), file=sys.stderr)
        return 1
    head, rest = old.split(BEGIN, 1)
    text = head + "\n".join(new) + rest.split(END, 1)[1]
    if args.check:
        if text != old:
            print("benchtable: README.md does not show benchmarks/results; run python3 tools/benchtable/benchtable.py", file=sys.stderr)
        return int(text != old)
    README.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
