"""MLPerf LoadGen drives the running server: SingleStream, MultiStream, Server, Offline over JSON, binary and gRPC.

These are LoadGen runs, not MLPerf results: the settings are ours (user.conf), and the rules ask for ten minutes a run,
which FEWBIT_SECONDS shortens. Server and LoadGen share the machine.

BERT-base with a head that tells praise from blame, in INT8, answers held-out movie snippets at their real lengths (some
25 tokens) and news texts cut at fixed ones, as stock operators of ONNX Runtime and in the native form. The peers serve the
same file of stock operators with the same onnxruntime and threads, and get the same queries in the form that each takes.

Every run begins with 16 queries that do not count. Before it the machine is watched until it is idle, for 30 seconds at most, and an endpoint of
fewbit that does nothing is asked 300 times over one connection. A run is void when a query failed, when something else
took a tenth of the processors, or when the 99th percentile of that endpoint passes a tenth of the target. The server
keeps no answers. A benchmark that was interrupted goes on where it was while neither the commit nor a file changed.
"""
import hashlib
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
import servers  # noqa: E402

HERE = Path(__file__).resolve().parent
MOVIES, MOVIE_TEXTS = c.DEPS / "models/movies", c.DEPS / "data/movies"
TARGET_MS, NULL_SHARE, NULL_REQUESTS, FOREIGN_SHARE = 50.0, 0.1, 300, 0.1
SECONDS = float(os.environ.get("FEWBIT_SECONDS") or (600 if c.FULL else 10))  # of a run
SETTLE_SECONDS = 30  # at most, for what a server still does after it has started
MAX_CONNECTIONS, THREADS = 64, 2
SNIPPETS, CORPUS_SEED = 1024, 7
RATE = 30  # queries a second that must be answered within the target
KEPT = c.WORK / "loadgen"
PEERS_ONLY = bool(os.environ.get("LOADGEN_PEERS"))  # the rows of fewbit alone stay


class Server:
    """bin/serve on free ports with a data directory of its own."""

    def __init__(self, folder):
        self.log = open(folder / "serve.log", "w")
        self.process = subprocess.Popen([c.ROOT / "bin/serve", "--listen", "127.0.0.1:0", "--grpc-listen", "127.0.0.1:0", "--data-dir", folder / "data", "--target", "%gms" % TARGET_MS, "--threads", str(THREADS)],
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

    def model(self, name, path):
        """Serves a file and returns what run needs to ask it."""
        with open(servers.packed(path), "rb") as f:
            self.request("PUT", "/models/" + name, f)
        m = self.request("GET", "/v2/models/" + name)
        # The smallest output: scores, or the pooled vector rather than every token's.
        output = min(m["outputs"], key=lambda o: len(o["shape"]))["name"]
        return {"model": name, "output": output, "inputs": [i["name"] for i in m["inputs"]], "digest": c.sha256(path)}

    def stop(self):
        self.process.terminate()
        self.process.wait(60)
        self.log.close()


def busy_share(seconds=1.0):
    """The share of the processors' time that was taken over the next second."""
    def stat():
        v = [int(x) for x in Path("/proc/stat").read_text().splitlines()[0].split()[1:9]]
        return sum(v), sum(v) - v[3] - v[4]
    (a, b), _, (x, y) = stat(), time.sleep(seconds), stat()
    return (y - b) / max(x - a, 1)


def settled():
    """The share that is taken as soon as it is small enough, or after SETTLE_SECONDS."""
    end = time.monotonic() + SETTLE_SECONDS
    while (share := busy_share()) > FOREIGN_SHARE and time.monotonic() < end:
        pass
    return share


def kept(key):
    """Where a run of the same commit, file, queries and settings is kept; None while files differ from the commit."""
    now = c.commit()
    if now["changed_files"]:
        return None
    return KEPT / (hashlib.sha256(json.dumps([now["commit"], key], sort_keys=True).encode()).hexdigest()[:24] + ".json")


def difference(after, before):
    return None if after is None or before is None else after - before


def run(server, model, scenario, transport, samples, mode="performance", qps=None, connections=1, server_name="fewbit", at=None, turn=0):
    """One test; returns its facts. void lists why the numbers must not be used."""
    config = {"http": at or server.http, "grpc": server.grpc, **model, "scenario": scenario, "mode": mode, "transport": transport, "seconds": SECONDS, "qps": qps, "connections": connections}
    title = "%s %s %s %s%s" % (server_name, model["model"], scenario, transport, "" if qps is None else " at %.1f/s" % qps)
    keep = kept([server_name, turn, {k: v for k, v in config.items() if k not in ("http", "grpc")}, samples])
    if keep and keep.exists():
        facts = json.loads(keep.read_text())
        c.say("%s: %s, kept from before" % (title, headline(facts)))
        return facts
    c.say("%s: some %.0f s" % (title, SECONDS))
    busy, load, null, energy = settled(), os.getloadavg()[0], server.null(), server.energy()
    with tempfile.TemporaryDirectory(dir=c.WORK) as folder:
        folder = Path(folder)
        (folder / "samples.json").write_text(json.dumps(samples))
        (folder / "config.json").write_text(json.dumps({**config, "samples": str(folder / "samples.json"), "logs": str(folder)}))
        began = time.monotonic()
        p = subprocess.run([sys.executable, HERE / "sut.py", folder / "config.json"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        if p.returncode:
            raise RuntimeError("LoadGen ended with %d: %s" % (p.returncode, (p.stderr.strip().splitlines() or ["no output"])[-1]))
        seen = json.loads(p.stdout.strip().splitlines()[-1])
        detail = log.detail((folder / "mlperf_log_detail.txt").read_text())
        classes = log.classes((folder / "mlperf_log_accuracy.json").read_text()) if mode == "accuracy" else None
    after = server.energy()
    facts = {"server": server_name, "model": model["model"], "scenario": scenario, "transport": transport, "mode": mode, "connections": connections, "qps": qps, "seconds": time.monotonic() - began,
             "null": null, "busy_share_before": busy, "load1": load, "core_latency_ns": c.core_latency()(),
             "energy": {"cpu_joules": difference(after["cpu_joules"], energy["cpu_joules"]), "cpu_reason": after["cpu_reason"],
                        "gpu_joules": [difference(a, b) for a, b in zip(after["gpu_joules"], energy["gpu_joules"])] if after["gpu_joules"] else None, "gpu_reason": after["gpu_reason"]},
             "detail": {k: v for k, v in detail.items() if k.startswith(("result_", "effective_", "requested_"))}, **seen}
    facts["void"] = log.void(seen["failures"], seen["first_error"], busy, FOREIGN_SHARE, null["p99_ms"], NULL_SHARE * TARGET_MS)
    if classes is not None:
        facts["classes"] = {str(k): v for k, v in classes.items()}
    c.say("%s: %s%s" % (title, headline(facts), " VOID: " + "; ".join(facts["void"]) if facts["void"] else ""))
    if keep and not facts["void"]:
        KEPT.mkdir(parents=True, exist_ok=True)
        part = keep.with_suffix(".part")
        part.write_text(json.dumps(facts))
        part.rename(keep)
    return facts


def void(facts):
    return " (VOID)" if facts["void"] else ""


def ms(facts, percentile):
    return log.latency_ms(facts["detail"], percentile)


def headline(f):
    d = f["detail"]
    if f["mode"] == "accuracy":
        return "%d answers" % len(f.get("classes", {}))
    if f["scenario"] == "Offline":
        return "%.1f samples/s" % d["result_samples_per_second"]
    return "p50 %.1f ms, p90 %.1f ms, p99 %.1f ms" % (ms(f, 50), ms(f, 90), ms(f, 99))


def good(f, value, bar):
    """Whether a bar holds; None of a void run."""
    return None if f["void"] else value < bar


def peak(server, model, samples, steps=5):
    """The highest rate whose Server run holds the target, and every run of the search: a bisection between 0 and the rate of
    an Offline run, past which every queue grows."""
    tried, best = [], None
    offline = run(server, model, "Offline", "binary", samples, qps=60, connections=MAX_CONNECTIONS)
    low, high = 0.0, offline["detail"]["result_samples_per_second"]
    for _ in range(steps):
        qps = (low + high) / 2
        f = run(server, model, "Server", "binary", samples, qps=qps, connections=MAX_CONNECTIONS)
        tried.append(f)
        if ms(f, 99) <= TARGET_MS and not f["failures"]:
            low, best = qps, f
        else:
            high = qps
    return best, tried, offline["detail"]["result_samples_per_second"]


def snippets():
    """Held-out movie snippets: token ids at their real lengths, and labels."""
    t = c.tokenizer(128)
    rows = [json.loads(l) for l in open(MOVIE_TEXTS / "test.jsonl", encoding="utf-8")]
    pick = [rows[i] for i in np.random.default_rng(CORPUS_SEED).permutation(len(rows))[:SNIPPETS]]
    return [t.encode(r["text"]).ids for r in pick], [r["label"] for r in pick]


def fixed(length, n=64):
    """Token ids of exactly length, from held-out news that are at least that long."""
    t, out = c.tokenizer(length), []
    for r in c.rows("test"):
        ids = t.encode(r["text"]).ids
        if len(ids) == length:
            out.append(ids)
        if len(out) == n:
            return out
    raise RuntimeError("only %d texts of %d tokens" % (len(out), length))


def files():
    """The INT8 classifier as stock operators and in the native form, made from 64 training snippets."""
    if not (MOVIES / "model.onnx").exists():
        raise SystemExit("loadgen: .deps/models/movies is not there; run make example-text once, which makes it")
    calib = c.WORK / "loadgen-calib.jsonl"
    calib.write_text("".join(open(MOVIE_TEXTS / "train.jsonl", encoding="utf-8").readlines()[:64]), encoding="utf-8")
    made = {}
    for form, argv in (("stock operators", ("--scheme", "int8", "--target", "ort-cpu", "--calib", calib)), ("native form", ("--scheme", "int8-dynamic", "--target", "cuda"))):
        made[form] = c.WORK / ("loadgen-%s.onnx" % form.split()[0])
        c.fewbit("quantize", MOVIES / "model.onnx", "-o", made[form], *argv, "--force", "--no-latency")
    return made


def ours(r, server, made):
    name = {"stock operators": "stock", "native form": "native"}
    models = {form: server.model(name[form], path) for form, path in made.items()}
    at128, (real, labels) = fixed(128), snippets()
    single = {}
    for form, bar in (("stock operators", 45), ("native form", 34)):
        m = models[form]
        f = single[form] = run(server, m, "SingleStream", "binary", at128)
        r.row("BERT-base INT8, %s, LoadGen SingleStream, 128 tokens" % form, "p90 %.1f ms%s" % (ms(f, 90), void(f)), "", None, "p90 < %d ms" % bar, good(f, ms(f, 90), bar), n=queries(f), run=f)
        f = run(server, m, "Server", "binary", real, qps=RATE, connections=MAX_CONNECTIONS)
        r.row("BERT-base INT8, %s, LoadGen Server at %d queries a second, movie snippets" % (form, RATE), "p99 %.1f ms%s" % (ms(f, 99), void(f)), "", None, "p99 < 50 ms", good(f, ms(f, 99), TARGET_MS), n=queries(f), run=f)
        f = run(server, m, "Offline", "binary", real, qps=60, connections=MAX_CONNECTIONS)
        r.row("BERT-base INT8, %s, LoadGen Offline, movie snippets" % form, "%.1f samples/s%s" % (f["detail"]["result_samples_per_second"], void(f)), "", None, run=f)
        f = run(server, m, "MultiStream", "binary", real, connections=8)
        r.row("BERT-base INT8, %s, LoadGen MultiStream (8), movie snippets" % form, "p99 %.1f ms%s" % (ms(f, 99), void(f)), "", None, n=queries(f), run=f)
        for length in (32, 64, 128):
            best, tried, most = peak(server, m, fixed(length))
            r.row("BERT-base INT8, %s, highest LoadGen Server rate with p99 within 50 ms, %d tokens" % (form, length),
                  "%.1f/s, p99 %.1f ms%s; Offline %.1f/s" % (best["qps"], ms(best, 99), void(best), most) if best else "none; Offline %.1f/s" % most, "", None,
                  curve=[{"qps": t["qps"], "n": queries(t), "p50_ms": ms(t, 50), "p99_ms": ms(t, 99), "void": t["void"]} for t in tried])
    for transport in ("json", "grpc"):
        f = run(server, models["stock operators"], "SingleStream", transport, at128)
        r.row("BERT-base INT8, stock operators, LoadGen SingleStream over %s, 128 tokens" % {"json": "JSON", "grpc": "gRPC"}[transport], "p90 %.1f ms%s" % (ms(f, 90), void(f)), "binary: p90 %.1f ms" % ms(single["stock operators"], 90),
              ms(single["stock operators"], 90) / ms(f, 90), n=queries(f), run=f)
    names = (MOVIES / "labels.txt").read_text().split()
    f = run(server, models["stock operators"], "Offline", "binary", real, mode="accuracy", qps=100, connections=8)
    right = sum(names[f["classes"].get(str(i), 0)] == label for i, label in enumerate(labels))
    r.row("BERT-base INT8, stock operators, LoadGen accuracy mode, %d movie snippets%s" % (len(labels), void(f)), "%.2f %% [%.2f, %.2f]" % ((100 * right / len(labels),) + tuple(100 * v for v in c.wilson(right, len(labels)))), "", None,
          n=len(labels), run={k: v for k, v in f.items() if k != "classes"})
    return models["stock operators"], real


def queries(f):
    """How many queries an answer was counted of."""
    return int(f["detail"]["result_query_count"]) if "result_query_count" in f["detail"] else None


def peers(r, server, model, real, path):
    """The same Server run on fewbit and on each peer in turn; the one that is not asked is idle."""
    for i, peer in enumerate(servers.PEERS):
        what, port = "BERT-base INT8, stock operators, LoadGen Server at %d queries a second, movie snippets, against %s" % (RATE, peer), servers.PORT + 10 * (i + 1)
        process = own = None
        with tempfile.TemporaryDirectory(dir=c.WORK) as folder:
            try:
                process = servers.start(peer, port, path, model["output"], Path(folder))
                servers.wait(port, servers.bodies(c.ids_feeds(real[0]), model["output"])[peer], process)
                transport = {"pytriton": "binary", "mlserver": "json"}.get(peer, "plain")
                asked = {**model, "model": servers.MODEL, "output": servers.output(peer, model["output"])}
                own = run(server, model, "Server", "binary" if transport == "binary" else "json", real, qps=RATE, connections=MAX_CONNECTIONS, turn=i + 1)
                f = run(server, asked, "Server", transport, real, qps=RATE, connections=MAX_CONNECTIONS, server_name=peer, at="127.0.0.1:%d" % port)
                bad = void(own) or void(f)
                r.row(what, "p50 %.1f ms, p99 %.1f ms%s" % (ms(own, 50), ms(own, 99), void(own)), "p50 %.1f ms, p99 %.1f ms%s" % (ms(f, 50), ms(f, 99), void(f)), ms(f, 99) / ms(own, 99), "ahead", None if bad else ms(own, 99) < ms(f, 99), n=queries(f), run=f, commit=r.body["commit"])
            except (RuntimeError, OSError, subprocess.CalledProcessError) as e:
                r.row(what, "p99 %.1f ms" % ms(own, 99) if own else "", "not measured: " + str(e)[:300], commit=r.body["commit"])
            finally:
                if process:
                    servers.stop([process])


def main():
    r = c.Result("loadgen", "LoadGen runs (not MLPerf results)", __doc__.strip())
    made = files()
    with tempfile.TemporaryDirectory(dir=c.WORK) as folder:
        server = Server(Path(folder))
        try:
            if PEERS_ONLY and r.path.exists():
                r.body["rows"] = [row for row in json.loads(r.path.read_text())["rows"] if ", against " not in row["what"]]
                model, real = server.model("stock", made["stock operators"]), snippets()[0]
            else:
                model, real = ours(r, server, made)
            peers(r, server, model, real, made["stock operators"])
        finally:
            server.stop()
    r.body["seconds"] = SECONDS
    r.save()


if __name__ == "__main__":
    main()
