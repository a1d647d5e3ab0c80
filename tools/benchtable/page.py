"""docs/benchmarks.md: every committed result, each row with its command, machine, n and noise."""
from plots import PLOTS

ORDER = ("bert_speed", "openvino_cpu", "profile_cpu", "padding_cpu", "towers_cpu", "native_cpu", "levels_cpu", "int4_cpu", "kernels", "calibration", "calibration_memory", "fidelity", "accuracy", "classifiers", "tokens", "int4", "quantizers", "search", "vision", "litert", "fashion", "news", "overhead", "load", "cycles", "sides", "loadgen", "servers", "servers_bert",
         "example_text", "example_image", "example_drone")
HEAD = """# Benchmarks

Made by `python3 tools/benchtable/benchtable.py` from `benchmarks/results/*.json`, which hold the raw numbers; `go test
./tools/doccheck` fails when this page or a plot is not what they say. How each benchmark works, and what it takes:
[benchmarks/README.md](../benchmarks/README.md). How numbers are made: [testing.md](testing.md#how-benchmark-numbers-are-made).
`make bench-full` runs all of them; the command of each is below its name.

A row is a ratio against a peer in the same run wherever there is one: latencies of two sections were not measured together. n is
the number of samples behind the row. Load is the one-minute average before and after, with the number of cores; above that number
other programs were running, and only ratios mean something. Stolen is the share of time that the hypervisor took.
"""


def holds(row):
    return {True: "holds", False: "**missed**", None: ""}[row["holds"]]


def count(details):
    """The samples behind a row: the first n (or samples, or rounds) in its details, at any depth."""
    if isinstance(details, dict):
        for key in ("n", "samples", "answered", "rounds"):
            v = details.get(key)
            if isinstance(v, int) and not isinstance(v, bool):
                return str(v)
        for v in details.values():
            n = count(v)
            if n:
                return n
    return ""


def cell(text):
    return str(text).replace("|", "\\|").replace("\n", " ")


def command(r, row=None):
    """What measures a result anew, or one row of it where rows are measured by themselves."""
    if row and row["details"] and "command" in row["details"]:
        return row["details"]["command"]
    return r.get("command") or "ONLY=%s make bench%s" % (r["name"], "-full" if r["mode"] == "full" else "")


def processor(m):
    return m.get("cpu", "unknown CPU") + (" (%s)" % m["processor"] if "processor" in m else "")


def facts(r):
    m, noise = r["machine"], r["noise"]
    parts = ["`%s`" % command(r), "%s, %d cores" % (processor(m), m["cores"]), r["when"][:10],
             "commit %s%s" % (r["commit"][:10], " with %d changed files" % r["changed_files"] if r["changed_files"] else ""),
             ", ".join("%s %s" % (k, str(v).removeprefix("go")) for k, v in sorted(r["versions"].items())),
             "load %.1f to %.1f%s" % (noise["load1_before"], noise["load1_after"], " **(busy)**" if noise["load1_before"] > m["cores"] else "")]
    if noise.get("stolen_share") is not None:
        parts.append("stolen %.1f %%" % (100 * noise["stolen_share"]))
    parts.append("full counts" if r["mode"] == "full" else "quick counts")
    return " · ".join(parts)


def runs(r):
    """Of rows that were measured by themselves: how long their runs were, when, and on which commit; those of one kind together."""
    groups = {}
    for row in r["rows"]:
        d = row["details"] or {}
        if "run_seconds" in d:
            kind = "runs of %g s, %s, commit %s%s" % (d["run_seconds"], d["when"][:10], d["commit"][:10], " with %d changed files" % d["changed_files"] if d["changed_files"] else "")
            groups.setdefault(kind, []).append("`%s`" % d["key"])
    return ["- %s: %s" % (kind, ", ".join(keys)) for kind, keys in groups.items()]


def section(r, level="##"):
    lines = [level + " " + r["title"], "", facts(r), "", "\n".join(" ".join(p.split()) for p in r["how"].split("\n\n")), "",
             "| what | fewbit | peer | ratio | n | bar | |", "|---|---|---|---|---|---|---|"]
    for row in r["rows"]:
        ratio = "" if row["ratio"] is None else "%.2fx" % row["ratio"]
        lines.append("| " + " | ".join(cell(c) for c in (row["what"], row["ours"], row["peer"], ratio, count(row["details"]), row["bar"], holds(row))) + " |")
    told = runs(r)
    return lines + [""] + (told + [""] if told else [])


def plots(results):
    """({file: svg}, [markdown lines]) of what was measured."""
    files, lines, missing = {}, [], []
    for name, draw in PLOTS.items():
        chart = draw(results)
        if isinstance(chart, str):
            missing.append(chart)
            continue
        files["docs/plots/%s.svg" % name] = chart.render()
        lines += ["![%s](plots/%s.svg)" % (chart.about, name), ""]
    demo = results.get("demo", {}).get("report")
    if demo:
        lines += ["What the plots say of the news classifier is `make run`'s (%s, %s)." % (demo["created"][:10], demo["machine"]["cpu"]), ""]
    if missing:
        lines += ["Not drawn, because it was not measured yet:", ""] + ["- %s" % m for m in missing] + [""]
    return files, lines


def ordered(results):
    return [n for n in ORDER if n in results] + sorted(n for n in results if n not in ORDER and "rows" in results[n])


def page(results, elsewhere):
    """({file: text}) of the page and its plots. elsewhere: {processor: its results}."""
    files, lines = plots(results)
    text = [HEAD] + ["## Plots", ""] + lines
    for n in ordered(results):
        text += section(results[n])
    for name, others in sorted(elsewhere.items()):
        text += ["## On another processor: " + name, ""]
        for n in ordered(others):
            text += section(others[n], "###")
    files["docs/benchmarks.md"] = "\n".join(text).rstrip() + "\n"
    return files
