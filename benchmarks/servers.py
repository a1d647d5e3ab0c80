"""The server against LitServe, BentoML, MLServer and NVIDIA's pytriton (its tritonserver).

The same INT8 model (the news classifier on all-MiniLM-L6-v2; with the argument bert BERT-base, its pooled output), batch 1,
2 threads, and the same onnxruntime behind each, one worker each; pytriton and fewbit get binary tensors, the others the
JSON that they take (fewbit then too). All servers are up at once; clients in closed loops over kept-alive connections ask
one after the other, in turn, several rounds; a percentile is the median of the rounds' own, since the machine's speed changes by
a quarter for seconds, which the pooled tail would charge to whom it met. First a null endpoint shows what the client itself costs. The memory is
the most that a server with its workers held after a round of load.
"""
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
import zipfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np

import common as c

sys.path.insert(0, str(Path(__file__).parent / "servers"))
import load  # noqa: E402

HERE = Path(__file__).parent / "servers"
THREADS, PORT = 2, 18200
PEERS = ("litserve", "bentoml", "mlserver", "pytriton")
ROUNDS, SECONDS = (7, 3.0) if c.FULL else (2, 2.0)
MANY = 8
MODEL = "model"  # the name that every server knows the model by


PINNED = {"litserve": "litserve", "bentoml": "bentoml", "mlserver": "mlserver", "pytriton": "nvidia-pytriton"}  # by the package of each


def versions():
    """The versions of the peers."""
    return {k: v for peer, package in PINNED.items() for k, v in c.pinned(HERE / (peer + ".txt"), package).items()}


def venv(peer):
    return c.environment(peer, HERE / (peer + ".txt"))


def news():
    out = c.WORK / "servers-news-int8.onnx"
    if not out.exists():
        c.fewbit("quantize", c.NEWS / "model.onnx", "-o", out, "--calib", c.BBC / "calib.jsonl", "--scheme", "int8", "--target", "ort-cpu", "--force", "--no-latency")
    return out


def bert():
    for out in (c.WORK / "bert-int8.onnx", c.WORK / "bert-int8-load.onnx"):  # as bert_speed.py and load leave it
        if out.exists():
            return out
    c.fewbit("quantize", c.BERT / "model.onnx", "-o", out, "--calib", c.BBC / "calib.jsonl", "--samples", "64", "--scheme", "int8", "--force", "--no-latency")
    return out


# By the argument: what the rows and the result are called, the model, its output, and the lengths in tokens.
CASES = {"news": ("news INT8", "servers", news, "logits", (128,)), "bert": ("BERT-base INT8", "servers_bert", bert, "pooler_output", (128, 16))}


def start(peer, port, path, named, work):
    env = dict(os.environ, MODEL=str(path), OUTPUT=named, THREADS=str(THREADS), BENTOML_HOME=str(work / "bentoml"), BENTOML_DO_NOT_TRACK="True", PYTHONPATH=str(HERE))
    if peer == "pytriton":  # its stub needs the libpython of this interpreter, not of another of the same version
        env["LD_LIBRARY_PATH"] = os.path.join(sys.base_prefix, "lib")
    if peer == "fewbit":
        argv = [c.ROOT / "bin/serve", "--listen", "127.0.0.1:%d" % port, "--grpc-listen", "", "--data-dir", work / "data", "--threads", THREADS]
    elif peer == "bentoml":
        argv = [venv(peer) / "bentoml", "serve", "serve_bentoml:Model", "--host", "127.0.0.1", "--port", port]
    elif peer == "mlserver":
        folder = work / "mlserver"
        folder.mkdir()
        (folder / "settings.json").write_text(json.dumps({"host": "127.0.0.1", "http_port": port, "grpc_port": port + 1, "metrics_port": port + 2, "parallel_workers": 0}))
        (folder / "model-settings.json").write_text(json.dumps({"name": MODEL, "implementation": "serve_mlserver.Model"}))
        argv = [venv(peer) / "mlserver", "start", folder]
    else:
        argv = [venv(peer) / "python", HERE / ("serve_%s.py" % peer), port, path, THREADS]
    log = open(work / (peer + ".log"), "wb")
    return subprocess.Popen([str(a) for a in argv], stdout=log, stderr=subprocess.STDOUT, env=env, cwd=HERE, start_new_session=True)


def memory(pid):
    """Bytes that a server and its workers, the processes of its session, hold now; what several share counts once. None where that cannot be read."""
    held = 0
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            if int(stat.read_text().rsplit(")", 1)[1].split()[3]) == pid:
                held += next(1024 * int(l.split()[1]) for l in (stat.parent / "smaps_rollup").read_text().splitlines() if l.startswith("Pss:"))
        except (OSError, StopIteration):  # it ended meanwhile
            continue
    return held or None


def stop(processes):
    for p in processes:
        p.terminate()
    for p in processes:
        try:
            p.wait(20)
        except subprocess.TimeoutExpired:
            pass
        try:
            os.killpg(p.pid, signal.SIGKILL)  # some leave workers behind, which go on polling
        except ProcessLookupError:
            pass


def bodies(feeds, named):
    """The request of each server, and of fewbit in both forms."""
    lists = {k: v.tolist() for k, v in feeds.items()}
    plain = json.dumps(lists).encode()
    inputs = [{"name": k, "shape": list(v.shape), "datatype": "INT64"} for k, v in feeds.items()]
    protocol = {peer: json.dumps({"outputs": [{"name": output(peer, named)}], "inputs": [dict(i, data=feeds[i["name"]].ravel().tolist()) for i in inputs]}).encode()
                for peer in ("fewbit", "mlserver")}
    head = json.dumps({"parameters": {"binary_data_output": True}, "outputs": [{"name": named}], "inputs": [dict(i, parameters={"binary_data_size": feeds[i["name"]].nbytes}) for i in inputs]}).encode()
    binary = head + b"".join(v.tobytes() for v in feeds.values())
    j, b = ["Content-Type: application/json"], ["Content-Type: application/octet-stream", "Inference-Header-Content-Length: %d" % len(head)]
    infer = "/v2/models/%s/infer" % MODEL
    return {"litserve": load.request("/predict", plain, j), "bentoml": load.request("/predict", plain, j), "mlserver": load.request(infer, protocol["mlserver"], j),
            "pytriton": load.request(infer, binary, b), "fewbit": load.request(infer, protocol["fewbit"], j), "fewbit binary": load.request(infer, binary, b), "null": load.request("/", binary, b)}


def wait(port, message, process, seconds=90):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if process.poll() is not None:
            raise RuntimeError("it ended with status %d" % process.returncode)
        try:
            return load.Connection(port).ask(message)
        except (OSError, RuntimeError):
            time.sleep(0.3)
    raise RuntimeError("it did not answer within %d s" % seconds)


class Null(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self):
        self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *args):
        pass


def main():
    what, name, make, named, lengths = CASES[sys.argv[1] if len(sys.argv) > 1 else "news"]
    r = c.Result(name, "Against other servers" if name == "servers" else "Against other servers, BERT-base", __doc__.strip())
    r.body["versions"].update(versions())
    path = make()
    text = " ".join(row["text"] for row in c.rows("test")[:8])
    messages = {n: bodies(c.ids_feeds(c.tokenizer(n).encode(text).ids), named) for n in lengths}
    ports, pids, processes, missing = {}, {}, [], {}
    null = ThreadingHTTPServer(("127.0.0.1", 0), Null)
    threading.Thread(target=null.serve_forever, daemon=True).start()
    ports["null"] = null.server_address[1]
    with tempfile.TemporaryDirectory() as tmp:
        try:
            for i, peer in enumerate(("fewbit", *PEERS)):
                port = PORT + 10 * i
                try:
                    p = start(peer, port, path, named, Path(tmp))
                    processes.append(p)
                    if peer == "fewbit":
                        wait_ready(port, p)
                        upload(port, path)
                    wait(port, messages[lengths[0]][peer], p)
                    ports[peer], pids[peer] = port, p.pid
                    c.say("%s is up" % peer)
                except (RuntimeError, OSError, subprocess.CalledProcessError) as e:
                    if peer == "fewbit":
                        raise
                    missing[peer] = str(e)[:300]
                    c.say("%s is left out: %s" % (peer, missing[peer]))
            ports["fewbit binary"], pids["fewbit binary"] = ports["fewbit"], pids["fewbit"]
            for n in lengths:
                measure(r, what if len(lengths) == 1 else "%s, %d tokens," % (what, n), messages[n], ports, pids, missing)
        finally:
            stop(processes)
    r.save()


def wait_ready(port, process):
    for _ in range(100):
        try:
            urllib.request.urlopen("http://127.0.0.1:%d/v2/health/ready" % port).close()
            return
        except OSError:
            time.sleep(0.1)
    raise RuntimeError("bin/serve does not become ready")


def upload(port, path):
    urllib.request.urlopen(urllib.request.Request("http://127.0.0.1:%d/models/%s" % (port, MODEL), packed(path).read_bytes(), method="PUT")).close()


def packed(path):
    """A model file as it is uploaded: in a zip with its external data, if it has any."""
    weights = path.with_name(path.name + ".data")
    if not weights.exists():
        return path
    out = path.with_suffix(".zip")
    with zipfile.ZipFile(out, "w") as z:
        z.write(path, "model.onnx")
        z.write(weights, weights.name)
    return out


def output(peer, name):
    """What a server calls the output that the file calls name."""
    return "output" if peer == "mlserver" else name


def rounds(times):
    """The median of the rounds' percentiles, each of theirs, and the percentiles of all answers together."""
    each = [c.percentiles(t) for t in times]
    return {"n": sum(e["n"] for e in each), **{q: float(np.median([e[q] for e in each])) for q in each[0] if q != "n"},
            "p99_ms_by_round": [e["p99_ms"] for e in each], "pooled": c.percentiles([x for t in times for x in t])}


def measure(r, model, message, ports, pids, missing):
    one, many, rate, held = {k: [] for k in ports}, {k: [] for k in ports}, {k: [] for k in ports}, {k: [] for k in pids}
    for name, port in ports.items():
        load.closed_loop(port, message[name], MANY, 0.5)  # warm
    for turn in range(ROUNDS):
        for name, port in ports.items():
            one[name].append(load.closed_loop(port, message[name], 1, SECONDS)[0])
            ms, per_second = load.closed_loop(port, message[name], MANY, SECONDS)
            many[name].append(ms)
            rate[name].append(per_second)
            if name in pids and (now := memory(pids[name])):
                held[name].append(now)
        c.say("%s round %d of %d: %s" % (model, turn + 1, ROUNDS, ", ".join("%s %.0f/s" % (k, v[-1]) for k, v in rate.items())))
    facts = {k: {"one_client": rounds(one[k]), "clients_%d" % MANY: rounds(many[k]), "requests_per_second": float(np.median(rate[k])), "memory_bytes": max(held.get(k) or [0]) or None} for k in ports}
    text = lambda k: "p50 %.1f, p99 %.1f ms; %d clients: p99 %.0f ms, %.0f/s%s" % (
        facts[k]["one_client"]["p50_ms"], facts[k]["one_client"]["p99_ms"], MANY, facts[k]["clients_%d" % MANY]["p99_ms"], facts[k]["requests_per_second"],
        "; %.0f MB" % (facts[k]["memory_bytes"] / 1e6) if facts[k]["memory_bytes"] else "")
    for peer in PEERS:
        ours = "fewbit binary" if peer == "pytriton" else "fewbit"
        what = "%s served, against %s (%s)" % (model, peer, "binary tensors" if peer == "pytriton" else "JSON")
        if peer not in ports:
            r.row(what, text(ours), "not measured: " + missing[peer], None, "ahead in all")
            continue
        a, b = facts[ours], facts[peer]
        pairs = [(a["one_client"][q], b["one_client"][q]) for q in ("p50_ms", "p99_ms")] + [(a["clients_%d" % MANY]["p99_ms"], b["clients_%d" % MANY]["p99_ms"])]
        ahead = all(x < y for x, y in pairs) and a["requests_per_second"] > b["requests_per_second"]
        r.row(what, text(ours), "%s: %s" % (peer, text(peer)), a["requests_per_second"] / b["requests_per_second"], "ahead in all", ahead, fewbit_facts=a, peer_facts=b, null_endpoint=facts["null"])


if __name__ == "__main__":
    main()
