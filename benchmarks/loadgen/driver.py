"""MLPerf LoadGen drives the running server: SingleStream, MultiStream, Server, Offline over JSON, binary and gRPC.

These are LoadGen runs, not MLPerf results: settings are ours (user.conf), and
short ones last seconds where the rules ask for ten minutes. The server and
LoadGen share the machine. BERT-base answers sentences of held-out news at their
real lengths and at fixed ones; the news classifier answers 1,000 labelled texts
in accuracy mode. Before each run an endpoint that does nothing is asked 300
times over one connection. A run is void when a query failed, when more was
running than the machine has cores before it began, or when that endpoint's 99th
percentile passes a tenth of the target. The server has no cache of results.
"""
import http.client
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import common as c  # noqa: E402
import log  # noqa: E402

HERE = Path(__file__).resolve().parent
TARGET_MS, NULL_SHARE, NULL_REQUESTS = 50.0, 0.1, 300
SHORT, FULL = 10, 600  # seconds of a run
MAX_CONNECTIONS = 64
SENTENCES, CORPUS_SEED = 1024, 7


class Server:
    """bin/serve on free ports with a data directory of its own."""

    def __init__(self, folder):
        self.log = open(folder / "serve.log", "w")
        self.process = subprocess.Popen([c.ROOT / "bin/serve", "--listen", "127.0.0.1:0", "--grpc-listen", "127.0.0.1:0", "--data-dir", folder / "data", "--target", "%gms" % TARGET_MS],
                                        stdout=subprocess.PIPE, stderr=self.log, text=True)
        line = ""
        while "serves on" not in line:
            line = self.process.stdout.readline()
            if not line:
                raise RuntimeError("the server did not start; its log: %s" % (folder / "serve.log").read_text()[-500:])
        self.http = re.search(r"http://([^\s,]+)", line).group(1).rstrip("/")
        self.grpc = re.search(r"grpc://([^\s,]+)", line).group(1)

    def request(self, method, path, body=None):
        host, port = self.http.rsplit(":", 1)
        conn = http.client.HTTPConnection(host, int(port), timeout=120)
        conn.request(method, path, body)
        r = conn.getresponse()
        text = r.read()
        conn.close()
        if r.status >= 300:
            raise RuntimeError("%s %s: %d %s" % (method, path, r.status, text[:300].decode(errors="replace")))
        return json.loads(text)

    def null(self):
        """Percentiles in ms of an endpoint that does nothing."""
        host, port = self.http.rsplit(":", 1)
        conn, ms = http.client.HTTPConnection(host, int(port), timeout=30), []
        for _ in range(NULL_REQUESTS):
            t = time.perf_counter()
            conn.request("GET", "/v2/health/live")
            conn.getresponse().read()
            ms.append(1e3 * (time.perf_counter() - t))
        conn.close()
        return c.percentiles(np.array(ms))

    def energy(self):
        """Joules of the processors and of each GPU so far, or the reason why they cannot be read."""
        t = self.request("GET", "/telemetry")
        cpu, why = t["cpu"], t["cpu"].get("reasons", {})
        return {"cpu_joules": cpu["energy_j"], "cpu_reason": why.get("energy_j") or why.get("power_w"),
                "gpu_joules": [g["energy_j"] for g in t["gpu"]] if t["gpu"] else None, "gpu_reason": t.get("reasons", {}).get("gpu")}

    def stop(self):
        self.process.terminate()
        self.process.wait(60)
        self.log.close()


def difference(after, before):
    return None if after is None or before is None else after - before


def run(server, model, scenario, transport, samples, output, inputs, mode="performance", seconds=None, qps=None, connections=1):
    """One test; returns its facts. void lists why the numbers must not be used."""
    load, null, energy = os.getloadavg()[0], server.null(), server.energy()
    with tempfile.TemporaryDirectory(dir=c.WORK) as folder:
        folder = Path(folder)
        (folder / "samples.json").write_text(json.dumps(samples))
        (folder / "config.json").write_text(json.dumps({"http": server.http, "grpc": server.grpc, "model": model, "scenario": scenario, "mode": mode, "transport": transport, "output": output, "inputs": inputs,
                                                        "samples": str(folder / "samples.json"), "logs": str(folder), "seconds": seconds, "qps": qps, "connections": connections}))
        began = time.monotonic()
        p = subprocess.run([sys.executable, HERE / "sut.py", folder / "config.json"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        if p.returncode:
            raise RuntimeError("LoadGen ended with %d: %s" % (p.returncode, (p.stderr.strip().splitlines() or ["no output"])[-1]))
        seen = json.loads(p.stdout.strip().splitlines()[-1])
        detail = log.detail((folder / "mlperf_log_detail.txt").read_text())
        classes = log.classes((folder / "mlperf_log_accuracy.json").read_text()) if mode == "accuracy" else None
    after = server.energy()
    facts = {"model": model, "scenario": scenario, "transport": transport, "mode": mode, "connections": connections, "qps": qps, "seconds": time.monotonic() - began, "null": null, "load1": load,
             "energy": {"cpu_joules": difference(after["cpu_joules"], energy["cpu_joules"]), "cpu_reason": after["cpu_reason"],
                        "gpu_joules": [difference(a, b) for a, b in zip(after["gpu_joules"], energy["gpu_joules"])] if after["gpu_joules"] else None, "gpu_reason": after["gpu_reason"]},
             "detail": {k: v for k, v in detail.items() if k.startswith(("result_", "effective_", "requested_"))}, **seen}
    facts["void"] = log.void(seen["failures"], seen["first_error"], load, os.cpu_count(), null["p99_ms"], NULL_SHARE * TARGET_MS)
    if classes is not None:
        facts["classes"] = classes
    c.say("%s %s %s%s: %s%s" % (model, scenario, transport, "" if qps is None else " at %.1f/s" % qps, headline(facts), "" if not facts["void"] else "  VOID: " + "; ".join(facts["void"])))
    return facts


def ms(facts, percentile):
    return log.latency_ms(facts["detail"], percentile)


def headline(f):
    d = f["detail"]
    if f["mode"] == "accuracy":
        return "%d answers" % len(f.get("classes", {}))
    if f["scenario"] == "Offline":
        return "%.1f samples/s" % d["result_samples_per_second"]
    return "p50 %.1f ms, p90 %.1f ms, p99 %.1f ms, %s" % (ms(f, 50), ms(f, 90), ms(f, 99), d.get("result_validity", ""))


def peak(server, model, samples, output, inputs, seconds, steps=6):
    """The highest rate whose Server run holds the target, and every run of the search: a bisection between 0 and the rate of
    an Offline run, past which every queue grows."""
    tried, best = [], None
    offline = run(server, model, "Offline", "binary", samples, output, inputs, seconds=seconds, qps=60, connections=MAX_CONNECTIONS)
    low, high = 0.0, offline["detail"]["result_samples_per_second"]
    for _ in range(steps):
        qps = (low + high) / 2
        f = run(server, model, "Server", "binary", samples, output, inputs, seconds=seconds, qps=qps, connections=MAX_CONNECTIONS)
        tried.append(f)
        if ms(f, 99) <= TARGET_MS and not f["failures"]:
            low, best = qps, f
        else:
            high = qps
    return best, tried


def sentences(limit):
    """Token ids of distinct sentences of the held-out news, at their real lengths up to limit."""
    t, seen = c.tokenizer(limit), {}
    for r in c.rows("test"):
        for s in re.split(r"(?<=[.!?])\s+", r["text"]):
            if len(s.split()) >= 3:
                seen.setdefault(s, None)
    pick = np.random.default_rng(CORPUS_SEED).permutation(len(seen))[:SENTENCES]
    every = list(seen)
    return [t.encode(every[i]).ids for i in pick]


def fixed(length, n=64):
    """Token ids of exactly length, from texts that are at least that long."""
    t, out = c.tokenizer(length), []
    for r in c.rows("test"):
        ids = t.encode(r["text"]).ids
        if len(ids) == length:
            out.append(ids)
        if len(out) == n:
            return out
    raise RuntimeError("only %d texts of %d tokens" % (len(out), length))


def upload(server, name, path):
    with open(path, "rb") as f:
        server.request("PUT", "/models/" + name, f)
    m = server.request("GET", "/v2/models/" + name)
    # The smallest output: scores, or the pooled vector rather than every token's.
    output = min(m["outputs"], key=lambda o: len(o["shape"]))["name"]
    return output, [i["name"] for i in m["inputs"]]


def main():
    r = c.Result("loadgen", "LoadGen runs (not MLPerf results)", __doc__.strip())
    seconds = FULL if c.FULL else SHORT
    bert, news = c.WORK / "bert-int8.onnx", c.WORK / "news-int8.onnx"
    for out, argv in ((bert, (c.BERT / "model.onnx", "--calib", calibration())), (news, (c.NEWS / "model.onnx", "--calib", c.BBC / "calib.jsonl"))):
        if not out.exists():
            c.fewbit("quantize", argv[0], "-o", out, *argv[1:], "--force", "--no-latency")
    runs = []
    show = lambda f: " VOID" if f["void"] else ""
    with tempfile.TemporaryDirectory(dir=c.WORK) as folder:
        server = Server(Path(folder))
        try:
            b, n = upload(server, "bert", bert), upload(server, "news", news)
            at128, real = fixed(128), sentences(128)

            f = run(server, "bert", "SingleStream", "binary", at128, *b, seconds=seconds)
            r.row("BERT-base INT8, LoadGen SingleStream, 128 tokens", "p90 %.1f ms%s" % (ms(f, 90), show(f)), "", None, "p90 < 45 ms", ms(f, 90) < 45 if not f["void"] else None, run=f)
            for transport in ("json", "grpc"):
                runs.append(run(server, "bert", "SingleStream", transport, at128, *b, seconds=seconds))
            f = run(server, "bert", "MultiStream", "binary", real, *b, seconds=seconds, connections=8)
            r.row("BERT-base INT8, LoadGen MultiStream (8), news sentences", "p99 %.1f ms%s" % (ms(f, 99), show(f)), "", None, run=f)
            f = run(server, "bert", "Offline", "binary", real, *b, seconds=seconds, qps=60, connections=MAX_CONNECTIONS)
            r.row("BERT-base INT8, LoadGen Offline, news sentences", "%.1f samples/s%s" % (f["detail"]["result_samples_per_second"], show(f)), "", None, run=f)
            f = run(server, "bert", "Server", "binary", real, *b, seconds=seconds, qps=30, connections=MAX_CONNECTIONS)
            r.row("BERT-base INT8, LoadGen Server at 30 queries a second, news sentences", "p99 %.1f ms%s" % (ms(f, 99), show(f)), "", None, "p99 < 50 ms", ms(f, 99) < TARGET_MS if not f["void"] else None, run=f)
            for length in (32, 64, 128):
                best, tried = peak(server, "bert", fixed(length), *b, seconds=seconds)
                r.row("BERT-base INT8, highest LoadGen Server rate with p99 within 50 ms, %d tokens" % length, "%.1f/s, p99 %.1f ms%s" % (best["qps"], ms(best, 99), show(best)) if best else "none", "", None,
                      curve=[{"qps": t["qps"], "p50_ms": ms(t, 50), "p99_ms": ms(t, 99), "void": t["void"]} for t in tried])

            labels = (c.NEWS / "labels.txt").read_text().split()
            test, t = c.rows("test"), c.tokenizer(128)
            f = run(server, "news", "Offline", "binary", [t.encode(x["text"]).ids for x in test], *n, mode="accuracy", qps=100, connections=8)
            right = sum(labels[f["classes"].get(i, 0)] == x["label"] for i, x in enumerate(test))
            del f["classes"]
            r.row("news INT8, LoadGen accuracy mode, %d texts" % len(test), "%.2f %% [%.2f, %.2f]" % ((100 * right / len(test),) + tuple(100 * v for v in c.wilson(right, len(test)))), "", None, run=f)
        finally:
            server.stop()
    r.body["runs"] = runs
    r.save()


def calibration():
    from bert_speed import CALIB, calibration_file
    return calibration_file(CALIB)


if __name__ == "__main__":
    main()
