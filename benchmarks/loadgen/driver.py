"""MLPerf LoadGen drives the running server: SingleStream, MultiStream, Server, Offline over JSON, binary and gRPC.

These are LoadGen runs, not MLPerf results: the settings are ours (user.conf), and the rules ask for ten minutes a run,
which FEWBIT_SECONDS shortens. Server and LoadGen share the machine.

BERT-base with a head that tells praise from blame, in INT8, answers held-out movie snippets at their real lengths (some
25 tokens) and news texts cut at fixed ones, as stock operators of ONNX Runtime and in the native form. The peers serve the
same file of stock operators with the same onnxruntime and threads, and get the same queries in the form that each takes.

Every run begins with 16 queries that do not count. Before it the machine is watched until it is idle, for 30 seconds at most, and an endpoint of
fewbit that does nothing is asked 300 times over one connection. A run is void when a query failed, when an answer came from a
cache (the server's own count of hits, for those that keep one), when something else took a tenth of the processors, or when the 99th percentile
of that endpoint passes a tenth of the target. INVALID is LoadGen's own word, with its reason; no bar holds by such a run.

Each row is measured by itself and says how long its runs were; LOADGEN_ONLY chooses rows. A void run does not replace a row that is not void.
"""
import datetime
import fnmatch
import hashlib
import http.client
import json
import os
import re
import shutil
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
SHORT_SECONDS, FULL_SECONDS = 10, 600
SECONDS = float(os.environ.get("FEWBIT_SECONDS") or (FULL_SECONDS if c.FULL else SHORT_SECONDS))  # of a run
SETTLE_SECONDS = 30  # at most, for what a server still does after it has started
MAX_CONNECTIONS, THREADS = 64, 2
SNIPPETS, CORPUS_SEED = 1024, 7
RATE = 30  # queries a second that must be answered within the target
SERVER_SECONDS = 30  # at least, at RATE: LoadGen's early stopping trusts no 99th percentile of fewer than some 660 queries
RATIO_TURNS, RATIO_SECONDS, KEPT_SHARE = 3, 4, 0.9  # of the native form's lead in a process, that the server must keep
PROBE_SECONDS, PROBE_QPS = 3, 60  # the run that says how many samples an Offline run needs
KEPT = c.WORK / "loadgen"
ONLY = os.environ.get("LOADGEN_ONLY", "").split()  # patterns of rows' keys, see catalogue; none: the rows of the table
FORMS = {"stock": "stock operators", "native": "native form"}
TRANSPORTS = {"json": "JSON", "binary": "binary tensors", "grpc": "gRPC"}
SCENARIOS = ("SingleStream", "Server", "Offline", "MultiStream", "accuracy")
LENGTHS = (32, 64, 128)
SINGLE_MS = {"stock": 45, "native": 34}  # the bar of SingleStream at 128 tokens


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

    def cache_hits(self, model, at=None):
        """How many answers a server of the protocol has taken from a cache so far; None of a server that does not count them."""
        host, port = (at or self.http).rsplit(":", 1)
        conn = http.client.HTTPConnection(host, int(port), timeout=30)
        try:
            conn.request("GET", "/v2/models/%s/stats" % model)
            r = conn.getresponse()
            text = r.read()
            return sum(s["inference_stats"]["cache_hit"]["count"] for s in json.loads(text)["model_stats"]) if r.status == 200 else None
        except (OSError, http.client.HTTPException, ValueError, KeyError, TypeError):
            return None
        finally:
            conn.close()

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


def used(after, before):
    """The energy between two readings, or the reason why there is none."""
    gpus = after["gpu_joules"] and before["gpu_joules"]
    return {"cpu_joules": difference(after["cpu_joules"], before["cpu_joules"]), "cpu_reason": after["cpu_reason"],
            "gpu_joules": [difference(a, b) for a, b in zip(after["gpu_joules"], before["gpu_joules"])] if gpus else None, "gpu_reason": after["gpu_reason"]}


def logs_of(title):
    """An empty folder for the logs of a run: those of its last try stay."""
    folder = KEPT / "logs" / re.sub(r"[^a-zA-Z0-9.]+", "-", title)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder


def run(server, model, scenario, transport, samples, mode="performance", qps=None, connections=1, server_name="fewbit", at=None, turn=0, seconds=None):
    """One test; returns its facts. void lists why the numbers must not be used."""
    seconds = seconds or SECONDS
    config = {"http": at or server.http, "grpc": server.grpc, **model, "scenario": scenario, "mode": mode, "transport": transport, "seconds": seconds, "qps": qps, "connections": connections}
    title = "%s %s %s%s %s%s" % (server_name, model["model"], scenario, " accuracy" * (mode == "accuracy"), transport, "" if qps is None else " at %.1f/s" % qps)
    keep = kept([server_name, turn, {k: v for k, v in config.items() if k not in ("http", "grpc")}, samples])
    if keep and keep.exists():
        facts = json.loads(keep.read_text())
        c.say("%s: %s, kept from before" % (title, headline(facts)))
        return facts
    c.say("%s: some %.0f s" % (title, seconds))
    busy, load, null, energy, hits = settled(), os.getloadavg()[0], server.null(), server.energy(), server.cache_hits(model["model"], at)
    folder = logs_of("%s of %d tokens turn %d" % (title, len(samples[0]), turn))
    with tempfile.TemporaryDirectory(dir=c.WORK) as work:
        (Path(work) / "samples.json").write_text(json.dumps(samples))
        (Path(work) / "config.json").write_text(json.dumps({**config, "samples": work + "/samples.json", "logs": str(folder)}))
        began = time.monotonic()
        p = subprocess.run([sys.executable, HERE / "sut.py", work + "/config.json"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        if p.returncode:
            raise RuntimeError("LoadGen ended with %d: %s" % (p.returncode, (p.stderr.strip().splitlines() or ["no output"])[-1]))
    seen = json.loads(p.stdout.strip().splitlines()[-1])
    detail = log.detail((folder / "mlperf_log_detail.txt").read_text())
    classes = log.classes((folder / "mlperf_log_accuracy.json").read_text()) if mode == "accuracy" else None
    took, hits = time.monotonic() - began, difference(server.cache_hits(model["model"], at), hits)
    facts = {"server": server_name, "model": model["model"], "scenario": scenario, "transport": transport, "mode": mode, "connections": connections, "qps": qps, "seconds": took,
             "null": null, "busy_share_before": busy, "load1": load, "core_latency_ns": c.core_latency()(), "energy": used(server.energy(), energy), "cache_hits": hits,
             "logs": str(folder.relative_to(c.ROOT)) if folder.is_relative_to(c.ROOT) else None,
             "detail": {k: v for k, v in detail.items() if k.startswith(("result_", "effective_", "requested_", "early_stopping_"))}, **seen}
    facts["void"] = log.void(seen["failures"], seen["first_error"], hits, busy, FOREIGN_SHARE, null["p99_ms"], NULL_SHARE * TARGET_MS)
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
    """What must be said behind a number: that it is void, or LoadGen's verdict."""
    why = log.verdict(facts["detail"])
    return " (VOID)" if facts["void"] else " (INVALID: %s)" % why if why else ""


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
    """Whether a bar holds; None of a void run, and of one within the bar whose count LoadGen does not trust."""
    if f["void"] or value < bar and log.verdict(f["detail"]):
        return None
    return value < bar


def offline(server, model, transport, samples):
    """An Offline run of as many samples as its time asks for: a short one says how many a second there are."""
    probe = run(server, model, "Offline", transport, samples, qps=PROBE_QPS, connections=MAX_CONNECTIONS, seconds=min(PROBE_SECONDS, SECONDS))
    return run(server, model, "Offline", transport, samples, qps=round(rate(probe), -1) + 10, connections=MAX_CONNECTIONS)


def rate(f):
    return f["detail"]["result_samples_per_second"]


def peak(server, model, samples, steps=5):
    """The highest rate whose Server run holds the target, every run of the search, and the Offline run: a bisection between 0
    and the rate of that, past which every queue grows."""
    tried, best, most = [], None, offline(server, model, "binary", samples)
    low, high = 0.0, rate(most)
    for _ in range(steps):
        qps = (low + high) / 2
        f = run(server, model, "Server", "binary", samples, qps=qps, connections=MAX_CONNECTIONS)
        tried.append(f)
        if ms(f, 99) <= TARGET_MS and not f["failures"]:
            low, best = qps, f
        else:
            high = qps
    return best, tried, most


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
    """The INT8 classifier as stock operators and in the native form, made from 64 training snippets; kept while bin/fewbit is the same."""
    if not (MOVIES / "model.onnx").exists():
        raise SystemExit("loadgen: .deps/models/movies is not there; run make example-text once, which makes it")
    calib = c.WORK / "loadgen-calib.jsonl"
    calib.write_text("".join(open(MOVIE_TEXTS / "train.jsonl", encoding="utf-8").readlines()[:64]), encoding="utf-8")
    made = {}
    for form, argv in (("stock", ("--scheme", "int8", "--target", "ort-cpu", "--calib", calib)), ("native", ("--scheme", "int8-dynamic", "--target", "cuda"))):
        made[form], stamp = c.WORK / ("loadgen-%s.onnx" % form), c.WORK / ("loadgen-%s.made-by" % form)
        want = " ".join([c.sha256(c.FEWBIT), c.sha256(MOVIES / "model.onnx"), c.sha256(calib)])
        if not made[form].exists() or not stamp.exists() or stamp.read_text() != want:
            c.fewbit("quantize", MOVIES / "model.onnx", "-o", made[form], *argv, "--force", "--no-latency")
            stamp.write_text(want)
    return made


def catalogue():
    """The keys of all rows, MODEL/SCENARIO/TRANSPORT, MODEL/peak/TOKENS, ratio/SCENARIO/TRANSPORT and peer/Server/NAME, in the order of the table, and
    whether a row is measured when nothing is chosen (searches in full counts only)."""
    keys = {}
    for form in FORMS:
        keys |= {"%s/%s/binary" % (form, s): True for s in ("SingleStream", "Server", "Offline", "MultiStream")}
        keys |= {"%s/peak/%d" % (form, length): c.FULL for length in LENGTHS}
    keys |= {"stock/SingleStream/json": True, "stock/SingleStream/grpc": True, "stock/accuracy/binary": True}
    keys |= {"ratio/SingleStream/binary": True, "ratio/Server/binary": True}
    keys |= {"peer/Server/" + peer: True for peer in servers.PEERS}
    for form in FORMS:
        for scenario in SCENARIOS:
            for transport in TRANSPORTS:
                keys.setdefault("%s/%s/%s" % (form, scenario, transport), False)
    return keys


def chosen(patterns):
    """The keys of the rows to measure, in order."""
    keys = catalogue()
    for p in patterns:
        if not fnmatch.filter(keys, p):
            raise SystemExit("loadgen: LOADGEN_ONLY: no row is called %s; the rows are: %s" % (p, " ".join(keys)))
    return [k for k, usual in keys.items() if (any(fnmatch.fnmatchcase(k, p) for p in patterns) if patterns else usual)]


def command(key):
    """What measures a row anew, as it was measured."""
    usual = "ONLY=loadgen LOADGEN_ONLY=%s make bench%s" % (key, "-full" if SECONDS >= FULL_SECONDS else "")
    return usual if SECONDS in (SHORT_SECONDS, FULL_SECONDS) else "FEWBIT_SECONDS=%g %s" % (SECONDS, usual)


class Rows:
    """The rows of the result. Those of earlier runs stay until they are measured anew, each with its own date and commit; the
    file is written after each row."""

    def __init__(self, result):
        self.result, self.rows, self.void = result, {}, []
        if result.path.exists():
            self.rows = {row["details"]["key"]: row for row in json.loads(result.path.read_text())["rows"]}

    def put(self, key, what, ours, peer, ratio, bar, holds, void, **details):
        r = self.result
        r.row("BERT-base INT8, " + what, ours, peer, ratio, bar, holds, key=key, command=command(key), when=datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
              commit=r.body["commit"], changed_files=r.body["changed_files"], run_seconds=max(SECONDS, SERVER_SECONDS) if "/Server/" in key else SECONDS, void=void, **details)
        row = r.body["rows"].pop()
        if void:
            self.void.append(key)
        if void and key in self.rows and not self.rows[key]["details"]["void"]:
            c.say("%s: void; the row of %s stays" % (key, self.rows[key]["details"]["when"][:10]))
        else:
            self.rows[key] = row
        self.save()

    def save(self):
        order = list(catalogue())
        body = self.result.body
        body["rows"] = sorted(self.rows.values(), key=lambda row: order.index(row["details"]["key"]))
        body["mode"] = "full" if all(row["details"]["run_seconds"] >= FULL_SECONDS for row in body["rows"]) else "quick"
        self.result.save()
        body["rows"] = []


def measure(rows, server, models, key):
    """One row of fewbit's own."""
    form, scenario, transport = key.split("/")
    m, named = models[form], FORMS[form]
    over = "" if transport == "binary" else " over " + TRANSPORTS.get(transport, "")
    if scenario == "peak":
        best, tried, most = peak(server, m, fixed(int(transport)))
        text = "%.1f/s, p99 %.1f ms%s; " % (best["qps"], ms(best, 99), void(best)) if best else "none; "
        rows.put(key, "%s, highest LoadGen Server rate with p99 within 50 ms, %s tokens" % (named, transport), text + "Offline %.1f/s%s" % (rate(most), void(most)), "", None, "", None,
                 sorted({why for f in (most, *tried) for why in f["void"]}),
                 curve=[{"qps": t["qps"], "n": queries(t), "p50_ms": ms(t, 50), "p99_ms": ms(t, 99), "void": t["void"], "verdict": log.verdict(t["detail"]), "energy": t["energy"]} for t in tried])
    elif scenario == "SingleStream":
        f, bar = run(server, m, scenario, transport, fixed(128)), SINGLE_MS[form]
        rows.put(key, "%s, LoadGen SingleStream%s, 128 tokens" % (named, over), "p90 %.1f ms%s" % (ms(f, 90), void(f)), "", None, "p90 < %d ms" % bar, good(f, ms(f, 90), bar), f["void"], n=queries(f), run=f)
    elif scenario == "Server":
        f = run(server, m, scenario, transport, snippets()[0], qps=RATE, connections=MAX_CONNECTIONS, seconds=max(SECONDS, SERVER_SECONDS))
        rows.put(key, "%s, LoadGen Server at %d queries a second%s, movie snippets" % (named, RATE, over), "p99 %.1f ms%s" % (ms(f, 99), void(f)), "", None, "p99 < 50 ms", good(f, ms(f, 99), TARGET_MS), f["void"], n=queries(f), run=f)
    elif scenario == "Offline":
        f = offline(server, m, transport, snippets()[0])
        rows.put(key, "%s, LoadGen Offline%s, movie snippets" % (named, over), "%.1f samples/s%s" % (rate(f), void(f)), "", None, "", None, f["void"], run=f)
    elif scenario == "MultiStream":
        f = run(server, m, scenario, transport, snippets()[0], connections=8)
        rows.put(key, "%s, LoadGen MultiStream (8)%s, movie snippets" % (named, over), "p99 %.1f ms%s" % (ms(f, 99), void(f)), "", None, "", None, f["void"], n=queries(f), run=f)
    else:
        texts, labels = snippets()
        f = run(server, m, "Offline", transport, texts, mode="accuracy", qps=100, connections=8)
        right = correct(f["classes"], labels, (MOVIES / "labels.txt").read_text().split())
        rows.put(key, "%s, LoadGen accuracy mode%s, %d movie snippets" % (named, over, len(labels)), "%.2f %% [%.2f, %.2f]%s" % ((100 * right / len(labels),) + tuple(100 * v for v in c.wilson(right, len(labels))) + (void(f),)),
                 "", None, "", None, f["void"], n=len(labels), run={k: v for k, v in f.items() if k != "classes"})


def correct(classes, labels, names):
    """How many samples got their label; one without an answer did not."""
    return sum(str(i) in classes and names[classes[str(i)]] == label for i, label in enumerate(labels))


def queries(f):
    """How many queries an answer was counted of."""
    return int(f["detail"]["result_query_count"]) if "result_query_count" in f["detail"] else None


def in_process(made, length):
    """How many times as fast the native form is as stock operators, in sessions of fewbit bench that take turns."""
    a, b = (m["p50_ms"] for m in c.bench(made["native"], length, THREADS, RATIO_SECONDS, vs=made["stock"])["models"])
    return b / a


def survives(rows, server, models, made, key):
    """What is left of the native form's lead through the server, in turns of both forms and of both in one process."""
    _, scenario, transport = key.split("/")
    single, real = scenario == "SingleStream", snippets()[0]
    samples, length, percentile = (fixed(128), 128, 90) if single else (real, round(np.mean([len(ids) for ids in real])), 99)
    alone, served, runs = [], [], []
    for turn in range(RATIO_TURNS):
        alone.append(in_process(made, length))
        pair = [run(server, models[form], scenario, transport, samples, turn=100 + turn, **({} if single else {"qps": RATE, "connections": MAX_CONNECTIONS, "seconds": max(SECONDS, SERVER_SECONDS)})) for form in ("stock", "native")]
        served.append(ms(pair[0], percentile) / ms(pair[1], percentile))
        runs += pair
    lead, whole = np.median(served), np.median(alone)
    bad = sorted({why for f in runs for why in f["void"]})
    rows.put(key, "native form against stock operators, LoadGen %s p%d over HTTP, %s" % (scenario, percentile, "128 tokens" if single else "%d queries a second, movie snippets" % RATE),
             "%.2fx%s" % (lead, " (VOID)" if bad else ""), "in process, %d tokens: %.2fx" % (length, whole), lead / whole, ">= %.2fx" % KEPT_SHARE, None if bad else bool(lead >= KEPT_SHARE * whole), bad,
             n=sum(map(queries, runs)), served=served, in_process=alone, turns=RATIO_TURNS)


def against(rows, server, model, path, peer):
    """The same Server run on fewbit and on a peer in turn; the one that is not asked is idle."""
    i, real, key = servers.PEERS.index(peer), snippets()[0], "peer/Server/" + peer
    what, port = "stock operators, LoadGen Server at %d queries a second, movie snippets, against %s" % (RATE, peer), servers.PORT + 10 * (i + 1)
    process = own = None
    with tempfile.TemporaryDirectory(dir=c.WORK) as folder:
        try:
            process = servers.start(peer, port, path, model["output"], Path(folder))
            servers.wait(port, servers.bodies(c.ids_feeds(real[0]), model["output"])[peer], process)
            transport = {"pytriton": "binary", "mlserver": "json"}.get(peer, "plain")
            asked, seconds = {**model, "model": servers.MODEL, "output": servers.output(peer, model["output"])}, max(SECONDS, SERVER_SECONDS)
            own = run(server, model, "Server", "binary" if transport == "binary" else "json", real, qps=RATE, connections=MAX_CONNECTIONS, turn=i + 1, seconds=seconds)
            f = run(server, asked, "Server", transport, real, qps=RATE, connections=MAX_CONNECTIONS, server_name=peer, at="127.0.0.1:%d" % port, seconds=seconds)
            bad, few = own["void"] + f["void"], log.TOO_FEW in (log.verdict(own["detail"]), log.verdict(f["detail"]))
            rows.put(key, what, "p50 %.1f ms, p99 %.1f ms%s" % (ms(own, 50), ms(own, 99), void(own)), "p50 %.1f ms, p99 %.1f ms%s" % (ms(f, 50), ms(f, 99), void(f)), ms(f, 99) / ms(own, 99), "ahead",
                     None if bad or few else ms(own, 99) < ms(f, 99), bad, n=queries(f), run=f, own=own)
        except (RuntimeError, OSError, subprocess.CalledProcessError) as e:
            rows.put(key, what, "p99 %.1f ms" % ms(own, 99) if own else "", "not measured: " + str(e)[:300], None, "", None, ["not measured"])
        finally:
            if process:
                servers.stop([process])


def main():
    keys = chosen(ONLY)
    r = c.Result("loadgen", "LoadGen run, not an MLPerf result", __doc__.strip())
    r.body["versions"].update(c.pinned(c.ROOT / "benchmarks/requirements.txt", "mlcommons-loadgen"), **servers.versions())
    rows, made = Rows(r), files()
    with tempfile.TemporaryDirectory(dir=c.WORK) as folder:
        server = Server(Path(folder))
        try:
            models = {form: server.model(form, path) for form, path in made.items()}
            for key in keys:
                if key.startswith("peer/"):
                    against(rows, server, models["stock"], made["stock"], key.split("/")[2])
                elif key.startswith("ratio/"):
                    survives(rows, server, models, made, key)
                else:
                    measure(rows, server, models, key)
        finally:
            server.stop()
    if rows.void:
        c.say("void, to be measured again (the same command does): " + " ".join(rows.void))
    return int(bool(rows.void))


if __name__ == "__main__":
    sys.exit(main())
