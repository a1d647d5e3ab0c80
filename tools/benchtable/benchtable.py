#!/usr/bin/env python3
"""Writes the results in benchmarks/results/*.json into docs/benchmarks.md and
docs/plots/*.svg, and into the README as a table: the headlines below, and every
row of any result that misses its bar.

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
# What the README shows of each result: how its rows begin.
HEADLINES = {
    "bert_speed": ("BERT-base INT8 speed", "BERT-base file size"),
    "openvino_cpu": tuple("BERT-base INT8, native form, against OpenVINO, sequence %d, 2 threads" % n for n in (16, 64, 128, 256)),
    "native_cpu": ("BERT-base native form, sequence 128, batch 1, 2 threads",),
    "calibration": ("calibration time, 64 samples, against", "calibration peak memory, against"),
    "fidelity": ("cosine, MiniLM plain file, default command", "cosine, MiniLM plain file, onnxruntime static defaults"),
    "quantizers": ("MiniLM, INT8 static, fewbit's default, against", "BERT-base, INT8 static, fewbit's default, against", "BERT-base, INT8 by row, smoothed, native form, against"),
    "classifiers": ("movie snippets, BERT-base, INT8, portable form", "movie snippets, BERT-base, INT8, native form"),
    "vision": ("EfficientNet-lite0 top-1 agreement with FP32", "EfficientNet-lite0 latency, INT8"),
    "search": ("search to a passing BERT-base",),
    "overhead": ("server overhead, binary tensors",),
    "loadgen": tuple("BERT-base INT8, %s, LoadGen %s" % (form, run) for form in ("stock operators", "native form") for run in ("SingleStream, 128 tokens", "Server at 30 queries a second, movie snippets")) + ("BERT-base INT8, native form against stock operators, LoadGen",),
    "example_image": ("example image: ResNet-50 (random weights), static, peak memory of quantizing", "example image: EfficientNet-lite0, static, same class as FP32"),
    "example_text": ("example text: accuracy", "example text: p99 at 30 texts a second"),
    "example_drone": ("example drone: accuracy", "example drone: size, mixed precision"),
}


class Stale(Exception):
    """A headline of which a result has no row."""


def chosen(results, elsewhere):
    """[(result, its rows for the README)], results that have any; of another processor the misses alone."""
    rows = []
    for name in page.ordered(results):
        r = results[name]
        heads = HEADLINES.get(name, ())
        for head in heads:
            if not any(row["what"].startswith(head) for row in r["rows"]):
                raise Stale("%s.json: no row begins with %r" % (name, head))
        some = [row for row in r["rows"] if row["holds"] is False or row["what"].startswith(heads)]
        rows += [(r, some)] if some else []
    for processor, others in sorted(elsewhere.items()):
        for name in page.ordered(others):
            some = [{**row, "what": "%s: %s" % (processor, row["what"])} for row in others[name]["rows"] if row["holds"] is False]
            rows += [(others[name], some)] if some else []
    return rows


def table(rows):
    lines = ["| what | fewbit | peer | ratio | bar | | command |", "|---|---|---|---|---|---|---|"]
    for r, some in rows:
        for row in some:
            ratio = "" if row["ratio"] is None else "%.2fx" % row["ratio"]
            cells = [row["what"], row["ours"], row["peer"], ratio, row["bar"], page.holds(row), "`%s`" % page.command(r, row)]
            lines.append("| " + " | ".join(page.cell(c) for c in cells) + " |")
    return lines


# The plots that the README shows, at most two of those that are drawn.
SHOWN = ("accuracy-latency", "load-target", "latency-target")


def facts(results, named, elsewhere):
    machines = sorted({"%s, %d cores" % (page.processor(r["machine"]), r["machine"]["cores"]) for r in results})
    commits = sorted({r["commit"][:10] for r in results})
    noisy = [r["name"] for r in results if r["noise"]["load1_before"] > r["machine"]["cores"]]
    quick = [r["name"] for r in results if r["mode"] != "full"]
    count, bars = sum(len(r["rows"]) for r in named.values() if "rows" in r), [row["holds"] for r in named.values() for row in r.get("rows", ()) if row["holds"] is not None]
    text = "Of %d rows measured %d have a bar, %d of them hold; each that is missed stands here. All of them with their n and their noise, and plots: [docs/benchmarks.md](docs/benchmarks.md); how each number was made: [benchmarks/README.md](benchmarks/README.md)." % (
        count, len(bars), sum(bars))
    text += " Measured %s on %s at commit %s against onnxruntime %s." % (
        max(r["when"] for r in results)[:10], "; ".join(machines), ", ".join(commits), ", ".join(sorted({r["versions"]["onnxruntime"] for r in results})))
    for processor, others in sorted(elsewhere.items()):
        bars = [row["holds"] for r in others.values() for row in r["rows"] if row["holds"] is not None]
        text += " On %s, where %s were measured as well, %d of %d bars hold." % (processor, ", ".join("`%s`" % n for n in page.ordered(others)), sum(bars), len(bars))
    if quick:
        text += " Quick counts (`make bench`, not `make bench-full`): %s." % ", ".join(quick)
    if noisy:
        text += " More was running than the machine has cores during: %s." % ", ".join(noisy)
    shown = ["<img src=\"docs/plots/%s.svg\" width=\"49%%\" alt=\"%s\">" % (name, chart.about) for name in SHOWN for chart in [PLOTS[name](named)] if not isinstance(chart, str)]
    return [text] + (["", "<p align=\"center\">" + " ".join(shown[:2]) + "</p>"] if shown else [])


def others(results, elsewhere):
    """{path: text} of the page and the plots, and the plots that no result makes any more."""
    files = {ROOT / name: text for name, text in page.page(results, elsewhere).items()}
    return files, [p for p in (ROOT / "docs/plots").glob("*.svg") if p not in files]


def main():
    ap = argparse.ArgumentParser(description="Write the benchmark results into README.md.")
    ap.add_argument("--check", action="store_true", help="only compare")
    args = ap.parse_args()
    named = {p.stem: json.loads(p.read_text()) for p in sorted(RESULTS.glob("*.json"))}
    elsewhere = {}
    for p in sorted(RESULTS.glob("*/*.json")):
        r = json.loads(p.read_text())
        elsewhere.setdefault(page.processor(r["machine"]), {})[p.stem] = r
    try:
        rows = chosen({n: r for n, r in named.items() if "rows" in r}, elsewhere)
    except Stale as e:
        print("benchtable: %s; it is a headline of the README" % e, file=sys.stderr)
        return 1
    if not rows:
        print("benchtable: no results in benchmarks/results; run make bench", file=sys.stderr)
        return 1
    new = [BEGIN, ""] + table(rows) + [""] + facts([r for r, _ in rows], named, elsewhere) + ["", END]
    if not args.check:
        print("\n".join(new[2:-2]))
    old = README.read_text(encoding="utf-8") if README.exists() else ""
    if BEGIN not in old or END not in old:
        print("benchtable: README.md has no markers %s ... %s" % (BEGIN, END), file=sys.stderr)
        return 1
    head, rest = old.split(BEGIN, 1)
    text = head + "\n".join(new) + rest.split(END, 1)[1]
    files, gone = others(named, elsewhere)
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
