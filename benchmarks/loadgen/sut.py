"""One LoadGen test against a running server, in a process of its own (LoadGen keeps state between tests).

    sut.py CONFIG.json

The configuration names the server, the model, the scenario, the mode, the
encoded samples and a folder for the logs. The last line of standard output is
one JSON object: what this side saw. LoadGen's verdict is in its own log, which
driver.py reads. The SUT is a network SUT: queries cross the protocol of
inference, and completed ones carry the class as 4 bytes.
"""
import http.client
import json
import queue
import struct
import sys
import threading
from pathlib import Path

import mlperf_loadgen as lg
import numpy as np

MODEL = "fewbit"  # a name that mlperf.conf has no entry of its own for
EXPECTED_NS = 2_000_000  # faster than any model that is worth a benchmark
REQUEST_TIMEOUT = 30  # seconds; a lost answer is a failed query, not a hang
WARM = 16  # queries before the clock runs


class Rest:
    """The Open Inference Protocol over HTTP/1.1 with keep-alive; binary says how tensors travel."""

    def __init__(self, cfg, binary):
        host, port = cfg["http"].rsplit(":", 1)
        self.conn = http.client.HTTPConnection(host, int(port), timeout=REQUEST_TIMEOUT)
        self.path, self.output, self.binary = "/v2/models/%s/infer" % cfg["model"], cfg["output"], binary

    def encode(self, feeds):
        tensors, blobs = [], []
        for name, a in feeds.items():
            t = {"name": name, "shape": list(a.shape), "datatype": "INT64"}
            if self.binary:
                t["parameters"] = {"binary_data_size": a.nbytes}
                blobs.append(a.tobytes())
            else:
                t["data"] = a.ravel().tolist()
            tensors.append(t)
        head = json.dumps({"inputs": tensors, "outputs": [{"name": self.output, "parameters": {"binary_data": self.binary}}]}).encode()
        headers = {"Content-Type": "application/octet-stream", "Inference-Header-Content-Length": str(len(head))} if self.binary else {"Content-Type": "application/json"}
        return head + b"".join(blobs), headers

    def ask(self, encoded):
        """The scores of one sample. Raises unless the server answered 200."""
        for stale in (self.conn.sock is not None, False):
            try:
                self.conn.request("POST", self.path, *encoded)
                r = self.conn.getresponse()
                body = r.read()
                break
            except (OSError, http.client.HTTPException) as e:
                self.conn.close()
                # Some servers close a connection that was idle for seconds: every client asks again on a new one then.
                if not stale or not isinstance(e, (ConnectionError, http.client.BadStatusLine)):
                    raise
        if r.status != 200:
            raise RuntimeError("HTTP %d: %s" % (r.status, body[:200].decode(errors="replace")))
        return self.scores(body, r.headers)

    def scores(self, body, headers):
        if self.binary:
            return np.frombuffer(body[int(headers["Inference-Header-Content-Length"]):], np.float32)
        return np.asarray(json.loads(body)["outputs"][0]["data"], np.float32)


class Plain(Rest):
    """One JSON object of nested lists, as LitServe and BentoML take it, and the scores under "output" or as they are."""

    def __init__(self, cfg):
        super().__init__(cfg, False)
        self.path = "/predict"

    def encode(self, feeds):
        return json.dumps({k: a.tolist() for k, a in feeds.items()}).encode(), {"Content-Type": "application/json"}

    def scores(self, body, _):
        found = json.loads(body)
        return np.asarray(found["output"] if isinstance(found, dict) else found, np.float32)


class GRPC:
    """The same over gRPC, with messages that were made before the clock runs."""

    def __init__(self, cfg, channel=[]):
        import grpc
        from tritonclient.grpc import service_pb2
        self.pb, self.cfg = service_pb2, cfg
        if not channel:  # one HTTP/2 connection for all workers
            channel.append(grpc.insecure_channel(cfg["grpc"]))
        self.call = channel[0].unary_unary("/inference.GRPCInferenceService/ModelInfer", None, service_pb2.ModelInferResponse.FromString)

    def encode(self, feeds):
        m = self.pb.ModelInferRequest(model_name=self.cfg["model"])
        for name, a in feeds.items():
            m.inputs.add(name=name, datatype="INT64", shape=a.shape)
            m.raw_input_contents.append(a.tobytes())
        m.outputs.add(name=self.cfg["output"])
        return m.SerializeToString()

    def ask(self, encoded):
        return np.frombuffer(self.call(encoded, timeout=REQUEST_TIMEOUT).raw_output_contents[0], np.float32)


TRANSPORTS = {"json": lambda c: Rest(c, False), "binary": lambda c: Rest(c, True), "grpc": GRPC, "plain": Plain}


class SUT:
    """Workers that each hold a connection; LoadGen's thread only puts queries into the queue."""

    def __init__(self, cfg, samples):
        self.cfg, self.samples, self.encoded = cfg, samples, {}
        self.queries, self.failures, self.first_error = queue.SimpleQueue(), 0, None
        self.lock = threading.Lock()
        self.workers = [threading.Thread(target=self.work, daemon=True) for _ in range(cfg["connections"])]
        for w in self.workers:
            w.start()

    def load(self, indices):
        t = TRANSPORTS[self.cfg["transport"]](self.cfg)
        for i in indices:
            ids = np.asarray(self.samples[i], np.int64)[None]
            every = {"input_ids": ids, "attention_mask": np.ones_like(ids), "token_type_ids": np.zeros_like(ids)}
            self.encoded[i] = t.encode({k: every[k] for k in self.cfg["inputs"]})

    def unload(self, indices):
        for i in indices:
            self.encoded.pop(i, None)

    def issue(self, samples):
        for s in samples:
            self.queries.put((s.id, s.index))

    def work(self):
        t = TRANSPORTS[self.cfg["transport"]](self.cfg)
        while (q := self.queries.get()) is not None:
            answer = b""
            try:
                answer = struct.pack("<i", int(t.ask(self.encoded[q[1]]).argmax()))
            except Exception as e:  # whatever went wrong: LoadGen has no notion of an error, the run is void
                with self.lock:
                    self.failures += 1
                    self.first_error = self.first_error or "%s: %s" % (type(e).__name__, e)
            keep = np.frombuffer(answer, np.uint8).copy() if answer else np.zeros(0, np.uint8)
            lg.QuerySamplesComplete([lg.QuerySampleResponse(q[0], keep.ctypes.data if answer else 0, len(answer))])

    def stop(self):
        for _ in self.workers:
            self.queries.put(None)


def settings(cfg):
    s = lg.TestSettings()
    s.FromConfig(str(Path(__file__).with_name("user.conf")), MODEL, cfg["scenario"])
    s.scenario = getattr(lg.TestScenario, cfg["scenario"])
    s.mode = lg.TestMode.AccuracyOnly if cfg["mode"] == "accuracy" else lg.TestMode.PerformanceOnly
    if cfg.get("seconds"):
        s.min_duration_ms = int(1000 * cfg["seconds"])
    # LoadGen prepares as many queries as these latencies ask for: too long a guess ends the run early.
    s.single_stream_expected_latency_ns, s.multi_stream_expected_latency_ns = EXPECTED_NS, s.multi_stream_samples_per_query * EXPECTED_NS
    if cfg.get("qps"):
        s.server_target_qps = s.offline_expected_qps = cfg["qps"]
    if cfg["scenario"] == "Server" and cfg["mode"] != "accuracy":
        # Past saturation a run would not end: what was not answered in time is late however long it takes.
        s.max_duration_ms = 2 * s.min_duration_ms
        s.min_query_count = 1
    return s


def main():
    cfg = json.loads(Path(sys.argv[1]).read_text())
    samples = json.loads(Path(cfg["samples"]).read_text())
    sut = SUT(cfg, samples)
    log = lg.LogSettings()
    log.log_output.outdir, log.log_output.copy_summary_to_stdout, log.enable_trace = cfg["logs"], False, False
    warm = list(range(min(WARM, len(samples))))
    sut.load(warm)
    t = TRANSPORTS[cfg["transport"]](cfg)
    for i in warm:
        t.ask(sut.encoded[i])
    system = lg.ConstructQDL(sut.issue, lambda: None, lambda: "fewbit over %s, Network SUT" % cfg["transport"])
    library = lg.ConstructQSL(len(samples), len(samples), sut.load, sut.unload)
    lg.StartTestWithLogSettings(system, library, settings(cfg), log)
    sut.stop()
    lg.DestroyQDL(system)
    lg.DestroyQSL(library)
    print(json.dumps({"failures": sut.failures, "first_error": sut.first_error}), flush=True)


if __name__ == "__main__":
    main()
