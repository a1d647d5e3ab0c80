"""The plots of docs/benchmarks.md, each from committed results and nothing else.

Each function takes {name: result} and returns a Chart, or a text that says what
was not measured.
"""
import re

from svg import Chart

TARGET_MS = 50


def find(result, start):
    """The row of a result that begins so."""
    return next((r for r in result["rows"] if r["what"].startswith(start)), None)


def accuracy_latency(results):
    """Accuracy against latency: what quantizing costs and what it brings."""
    series = []
    if "demo" in results:
        e = results["demo"]["report"]["evaluation"]
        for i, (name, score) in enumerate((("FP32", "ref_accuracy"), ("INT8", "quant_accuracy"))):
            a = e[score]
            series.append({"name": "news, MiniLM %s" % name, "kind": 1 - i,
                           "points": [(e["latency"]["candidates"][i]["p50_ms"], 100 * a["value"], 100 * a["lo"], 100 * a["hi"])]})
    if "example_text" in results:
        f = results["example_text"]["facts"]
        cells = [c for c in f["latency"]["cells"] if c["batch"] == 1 and c["tokens"] == 32]
        row = find(results["example_text"], "example text: accuracy")
        if cells and row:
            p = f["accuracy"]["paired"]
            n = f["accuracy"]["n"]
            for i, (name, right, ms) in enumerate((("FP32", p["both_right"] + p["ref_only"], cells[0]["fp32_ms"]), ("INT8", p["both_right"] + p["quant_only"], cells[0]["int8_ms"]))):
                low, high = wilson(right, n)
                series.append({"name": "reviews, BERT-base %s" % name, "kind": 3 - i, "points": [(ms["p50"], 100 * right / n, 100 * low, 100 * high)]})
    if not series:
        return "needs a run of the demonstration or of examples/text-classification"
    return Chart("Accuracy against latency", "Accuracy with its 95 % interval against the median latency, FP32 and INT8.", "p50 of one text, ms (news: a whole document; reviews: 32 tokens)",
                 "accuracy, %", series, xzero=True)


def wilson(right, n, z=1.96):
    p, d = right / n, 1 + z * z / n
    mid, half = p + z * z / (2 * n), z * (p * (1 - p) / n + z * z / (4 * n * n)) ** 0.5
    return (mid - half) / d, (mid + half) / d


def latency_target(results):
    """The distribution of latency against the 50 ms line."""
    if "demo" not in results:
        return "needs a run of the demonstration (make run)"
    series = []
    for i, c in enumerate(results["demo"]["report"]["evaluation"]["latency"]["candidates"]):
        curve = c["curve_ms"]
        series.append({"name": ("FP32", "INT8")[i] + " (n = %d)" % c["n"], "kind": 1 - i, "marks": False,
                       "points": [(ms, 100 * k / (len(curve) - 1)) for k, ms in enumerate(curve)]})
    return Chart("News classifier: latency of one text", "Share of requests answered within a time, FP32 and INT8 in turn, against the target of 50 ms.", "latency, ms",
                 "answered within, % of requests", series, xlog=True, yzero=True, xtarget=TARGET_MS)


def load_target(results):
    """p99 over the rate of Poisson arrivals against the 50 ms line."""
    if "example_text" not in results:
        return "p99 over the rate of arrivals needs a run of examples/text-classification (make example-text FULL=1)"
    load = results["example_text"]["facts"]["load"]
    series = [{"name": name, "kind": kind, "points": [(l["rate"], l["latency"]["p99_ms"]) for l in load[key]]}
              for name, key, kind in (("BERT-base INT8", "int8", 0), ("BERT-base FP32", "fp32", 1)) if load.get(key)]
    return Chart("Movie reviews at Poisson arrivals: p99", "99th percentile of the latency over the rate of arrivals, INT8 and FP32, against the target of 50 ms.", "texts a second",
                 "p99, ms", series, ylog=True, xzero=True, ytarget=TARGET_MS)


def loadgen_rate(form, name):
    """p99 of LoadGen's Server scenario over its rate, for texts of three lengths: every run of the search for the highest rate."""
    def draw(results):
        rows = [(r, m.group(1)) for r in results.get("loadgen", {"rows": []})["rows"] for m in [re.fullmatch("%s/peak/(\\d+)" % form, r["details"]["key"])] if m]
        series = []
        for row, tokens in rows:
            points = sorted((t["qps"], t["p99_ms"]) for t in row["details"]["curve"] if not t["void"])
            if points:
                series.append({"name": "%s tokens" % tokens, "points": points, "kind": len(series)})
        if not series:
            return "p99 over LoadGen's rate needs ONLY=loadgen LOADGEN_ONLY='%s/peak/*' make bench-full" % form
        seconds = sorted({row["details"]["run_seconds"] for row, _ in rows})
        return Chart("BERT-base INT8, %s: LoadGen Server, runs of %s s" % (name, ", ".join("%g" % s for s in seconds)),
                     "99th percentile of the latency over the rate of LoadGen's Server scenario for texts of 32, 64 and 128 tokens, BERT-base INT8, %s, against the target of 50 ms." % name,
                     "queries a second", "p99, ms", series, ylog=True, xzero=True, ytarget=TARGET_MS)
    return draw


def search_accuracy(results):
    """What each trial of a search keeps of FP32's accuracy against its latency."""
    row = find(results["search"], "search to a passing") if "search" in results else None
    trials = row["details"]["trials"] if row else None
    if not isinstance(trials, list):
        return "accuracy against latency of a search's trials needs ONLY=search make bench-full"
    shown = [t for t in trials if t.get("p50_ms") and t.get("samples")][:3]
    fp32 = sorted(t["fp32_p50_ms"] for t in shown)[len(shown) // 2]
    series = [{"name": "FP32", "kind": 3, "points": [(fp32, 100)]}]
    for i, t in enumerate(shown):
        keeps = [100 * (1 - t[k]) for k in ("loss", "loss_hi", "loss_lo")]
        series.append({"name": t["label"], "kind": i, "points": [(t["p50_ms"], *keeps)]})
    return Chart("fewbit search on BERT-base: accuracy kept against latency", "Share of FP32's accuracy that each trial of a search keeps, with its 95 % interval, against its median latency.",
                 "p50 of one movie snippet, ms", "accuracy, % of FP32's", series, xzero=True)


def batch_throughput(results):
    """Texts a second over the batch size."""
    if "example_text" not in results:
        return "throughput over the batch size needs a run of examples/text-classification (make example-text FULL=1)"
    cells = results["example_text"]["facts"]["latency"]["cells"]
    series = []
    for tokens in (32, 128):
        for key, name in (("int8_ms", "INT8"), ("fp32_ms", "FP32")):
            points = [(c["batch"], 1000 * c["batch"] / c[key]["p50"]) for c in cells if c["tokens"] == tokens]
            if points:
                series.append({"name": "%s, %d tokens" % (name, tokens), "points": points, "kind": len(series)})
    ticks = sorted({c["batch"] for c in cells})
    return Chart("BERT-base: batch size against throughput", "Texts a second over the batch size, one client over HTTP, INT8 and FP32.", "texts in one request",
                 "texts a second", series, xlog=True, yzero=True, xticks=ticks)


def sequence_latency(results):
    """Latency over the sequence length."""
    series, ticks = [], set()
    if "native_cpu" in results:
        rows = [(int(m.group(1)), r["details"]) for r in results["native_cpu"]["rows"] for m in [re.search(r"sequence (\d+), batch 1, 2 threads", r["what"])] if m]
        for key, name in (("ours_ms", "fewbit kernels INT8"), ("peer_ms", "ONNX Runtime INT8")):
            series.append({"name": name, "points": [(n, d[key]["p50_ms"]) for n, d in rows], "kind": len(series)})
        ticks |= {n for n, _ in rows}
    if not series:
        return "latency over the sequence length needs make bench (native_cpu)"
    return Chart("BERT-base: latency over the sequence length", "Median latency over the sequence length, batch 1, two threads, against the target of 50 ms.", "tokens",
                 "p50, ms", series, xlog=True, ylog=True, ytarget=TARGET_MS, xticks=sorted(ticks))


def calibration_memory(results):
    """Peak memory of calibration over the number of samples."""
    if "calibration_memory" not in results:
        return "memory over samples needs ONLY=calibration_memory make bench-full"
    rows = [r["details"] for r in results["calibration_memory"]["rows"]]
    series = [{"name": name, "kind": kind, "points": [(d["samples"], d[key] / 1e6) for d in rows if key in d]}
              for kind, (name, key) in enumerate((("fewbit", "ours_bytes"), ("onnxruntime, as it comes", "peer_bytes"), ("onnxruntime, 48 tensors", "peer_48_bytes")))]
    return Chart("Calibration of BERT-base: peak memory over samples", "Peak resident memory of calibrating BERT-base over the number of samples, against onnxruntime's entropy calibration.",
                 "samples of 128 tokens", "peak memory, MB", series, ylog=True, xlog=True, xticks=[d["samples"] for d in rows])


def image_memory(results):
    """Resident memory of the image scenario by phase, against its limit."""
    if "example_image" not in results:
        return "memory by phase under 2 GB needs a run of examples/image-classification (make example-image FULL=1)"
    f = results["example_image"]["facts"]
    series = []
    for m in f["models"]:
        points = [(s["seconds"], s["resident_mb"]) for s in m["trace"]]
        if points:
            series.append({"name": m["name"].split(" (")[0], "points": points, "kind": len(series), "marks": False})
    return Chart("Quantizing under a limit of 2 GB: memory over time", "Resident memory of fewbit quantize over its time, for each model of the image scenario.", "seconds since the start",
                 "resident memory, MB", series, yzero=True, xzero=True, ytarget=round(f["limit_mb"]), unit=" MB", goal="limit")


# File below docs/plots -> what draws it, in the order of the page.
PLOTS = {"accuracy-latency": accuracy_latency, "search-accuracy": search_accuracy, "latency-target": latency_target, "load-target": load_target,
         "loadgen-stock": loadgen_rate("stock", "stock operators"), "loadgen-native": loadgen_rate("native", "native form"), "batch-throughput": batch_throughput,
         "sequence-latency": sequence_latency, "calibration-memory": calibration_memory, "image-memory": image_memory}
