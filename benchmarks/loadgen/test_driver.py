"""The driver and real LoadGen against a stand-in for the server. Needs the packages of .deps/venv-peers (make deps-bench)."""
import json
import tempfile
import threading
import time
import unittest
from concurrent import futures
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from unittest import mock

try:
    import grpc
    import mlperf_loadgen  # noqa: F401
    import numpy as np
    from tritonclient.grpc import service_pb2
except ImportError as e:
    raise unittest.SkipTest("needs the packages of .deps/venv-peers: %s" % e)

import driver
import log

SECONDS = 0.3
SAMPLES = [[1, 2, 3], [4, 5, 6], [7, 8, 9]]
MODEL = {"model": "m", "output": "scores", "inputs": ["input_ids"], "digest": "0"}


class StandIn:
    """A server that answers each text with class 1, after what its fields say."""

    def __init__(self):
        self.fail_after, self.slow_null, self.hits, self.joules, self.asked = None, 0.0, 0, 100.0, 0
        scores = np.array([0, 1], np.float32).tobytes()
        standin = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version, disable_nagle_algorithm, wbufsize = "HTTP/1.1", True, -1

            def send(self, status, body, **headers):
                self.send_response(status)
                for k, v in {"Content-Length": str(len(body)), **headers}.items():
                    self.send_header(k.replace("_", "-"), v)
                self.end_headers()
                self.wfile.write(body)

            def do_GET(self):
                if self.path == "/v2/health/live":
                    time.sleep(standin.slow_null)
                    return self.send(200, b"")
                if self.path == "/telemetry":
                    return self.send(200, json.dumps({"cpu": {"energy_j": standin.joules}, "gpu": [{"energy_j": 2 * standin.joules}]}).encode())
                if self.path == "/v2/models/m/stats":
                    return self.send(200, json.dumps({"model_stats": [{"inference_stats": {"cache_hit": {"count": standin.hits}}}]}).encode())
                self.send(404, b"{}")

            def do_POST(self):
                body = self.rfile.read(int(self.headers["Content-Length"]))
                if standin.count():
                    return self.send(503, b"too busy")
                if "Inference-Header-Content-Length" in self.headers:
                    return self.send(200, b"{}" + scores, Inference_Header_Content_Length="2")
                json.loads(body)
                self.send(200, json.dumps({"outputs": [{"data": [0, 1]}]}).encode())

            def log_message(self, *args):
                pass

        def infer(body, _):
            request = service_pb2.ModelInferRequest.FromString(body)
            assert request.model_name == "m"
            self.count()
            return service_pb2.ModelInferResponse(raw_output_contents=[scores]).SerializeToString()

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        self.rpc = grpc.server(futures.ThreadPoolExecutor(4))
        port = self.rpc.add_insecure_port("127.0.0.1:0")
        self.rpc.add_generic_rpc_handlers([grpc.method_handlers_generic_handler("inference.GRPCInferenceService", {"ModelInfer": grpc.unary_unary_rpc_method_handler(infer)})])
        self.rpc.start()
        self.http, self.grpc = "127.0.0.1:%d" % self.server.server_port, "127.0.0.1:%d" % port

    def count(self):
        """Counts a request, with the energy it takes; whether it fails."""
        self.asked += 1
        self.joules += 0.5
        return self.fail_after is not None and self.asked > self.fail_after

    def stop(self):
        self.rpc.stop(None)
        self.server.shutdown()
        self.server.server_close()

    null, energy, request, cache_hits = driver.Server.null, driver.Server.energy, driver.Server.request, driver.Server.cache_hits


class TestRun(unittest.TestCase):
    def setUp(self):
        self.server = StandIn()
        self.addCleanup(self.server.stop)
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.kept = Path(folder.name)
        for name, value in (("KEPT", self.kept), ("SECONDS", SECONDS), ("settled", lambda: 0.0), ("NULL_SHARE", 2.0)):  # a busy machine answers late
            p = mock.patch.object(driver, name, value)
            p.start()
            self.addCleanup(p.stop)
        self.clean = {"commit": "c", "changed_files": 1}
        p = mock.patch.object(driver.c, "commit", lambda: self.clean)
        p.start()
        self.addCleanup(p.stop)

    def run_one(self, scenario="SingleStream", transport="binary", **more):
        return driver.run(self.server, MODEL, scenario, transport, SAMPLES, **more)

    def test_transports_and_scenarios(self):
        for scenario, transport, more in (("SingleStream", "json", {}), ("SingleStream", "binary", {}), ("SingleStream", "grpc", {}), ("MultiStream", "binary", {"connections": 8}),
                                          ("Server", "grpc", {"qps": 50, "connections": 4}), ("Offline", "binary", {"qps": 200, "connections": 4})):
            with self.subTest(scenario=scenario, transport=transport):
                f = self.run_one(scenario, transport, **more)
                self.assertEqual(f["void"], [])
                self.assertEqual(f["detail"]["effective_scenario"], scenario)
                self.assertNotEqual(f["detail"]["effective_qsl_rng_seed"], 0)  # mlperf.conf was read
                self.assertTrue(list((self.kept / "logs").glob("*/mlperf_log_detail.txt")))
                if scenario == "Server":
                    self.assertEqual(f["detail"]["effective_target_latency_ns"], 50e6)  # user.conf was read
                    self.assertEqual(log.verdict(f["detail"]), log.TOO_FEW)
                    self.assertIsNone(driver.good(f, 1, 50))

    def test_accuracy(self):
        f = self.run_one("Offline", mode="accuracy", qps=100, connections=2)
        self.assertEqual(f["classes"], {"0": 1, "1": 1, "2": 1})
        self.assertEqual(driver.correct({"0": 1, "2": 0}, ["b", "b", "a"], ["a", "b"]), 2)  # no answer is no right answer

    def test_failed_request(self):
        self.server.fail_after = 20
        f = self.run_one()
        self.assertEqual(len(f["void"]), 1)
        self.assertRegex(f["void"][0], "queries failed, first: RuntimeError: HTTP 503: too busy")
        self.assertEqual(driver.void(f), " (VOID)")
        self.assertIsNone(driver.good(f, 1, 50))

    def test_cache(self):
        count = self.server.count

        def hit():
            self.server.hits += 1
            return count()
        self.server.count = hit
        self.assertRegex("; ".join(self.run_one()["void"]), "^[0-9]+ answers came from a cache$")

    def test_noise(self):
        self.server.slow_null = 0.11
        with mock.patch.object(driver, "NULL_REQUESTS", 2), mock.patch.object(driver, "settled", lambda: 0.4):
            why = "; ".join(self.run_one()["void"])
        self.assertRegex(why, "40 % of the processors")
        self.assertRegex(why, "an endpoint that does nothing took 1..")

    def test_energy(self):
        before = self.server.asked
        f = self.run_one()
        self.assertAlmostEqual(f["energy"]["cpu_joules"], 0.5 * (self.server.asked - before))
        self.assertAlmostEqual(f["energy"]["gpu_joules"][0], 1.0 * (self.server.asked - before))
        none = {"cpu_joules": None, "cpu_reason": "no RAPL", "gpu_joules": None, "gpu_reason": "no NVML"}
        self.assertEqual(driver.used(none, none), none)

    def test_goes_on_behind_finished_runs(self):
        self.clean = {"commit": "c", "changed_files": 0}
        first, asked = self.run_one(), self.server.asked
        self.assertEqual(self.run_one(), first)
        self.assertEqual(self.server.asked, asked)
        self.clean = {"commit": "d", "changed_files": 0}  # another commit measures anew
        self.run_one()
        self.assertGreater(self.server.asked, asked)
        self.server.fail_after = 0  # a void run is not kept
        with self.assertRaises(RuntimeError):
            self.run_one(seconds=0.2)  # it cannot even warm up

    def test_peak(self):
        rates = []

        def run(_, model, scenario, *args, qps=None, **more):
            if scenario == "Server":
                rates.append(qps)
            return {"failures": 0, "qps": qps, "detail": {"result_samples_per_second": 160, "result_99.00_percentile_latency_ns": 40e6 if qps < 50 else 60e6}}
        with mock.patch.object(driver, "run", run):
            best, tried, _ = driver.peak(self.server, MODEL, SAMPLES, steps=4)
        self.assertEqual(rates, [80, 40, 60, 50])
        self.assertEqual(best["qps"], 40)
        self.assertEqual(len(tried), 4)


class TestRows(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.path = Path(folder.name) / "loadgen.json"

    def rows(self, commit):
        r = driver.c.Result("loadgen", "t", "h")
        r.path = self.path
        r.body["commit"] = commit
        return driver.Rows(r)

    def kept(self):
        return {row["details"]["key"]: row for row in json.loads(self.path.read_text())["rows"]}

    def test_one_row_anew(self):
        rows = self.rows("first")
        rows.put("stock/Server/binary", "b", "2", "", None, "", None, [])
        rows.put("stock/SingleStream/binary", "a", "1", "", None, "", None, [])
        self.assertEqual(list(self.kept()), ["stock/SingleStream/binary", "stock/Server/binary"])
        self.assertEqual(json.loads(self.path.read_text())["mode"], "quick")
        with mock.patch.object(driver, "SECONDS", driver.FULL_SECONDS):
            self.rows("second").put("stock/Server/binary", "b", "3", "", None, "", None, [])
        kept = self.kept()
        self.assertEqual([kept[k]["details"]["commit"] for k in kept], ["first", "second"])
        self.assertEqual([kept[k]["details"]["run_seconds"] for k in kept], [driver.SECONDS, driver.FULL_SECONDS])
        self.assertEqual(kept["stock/Server/binary"]["details"]["command"], "ONLY=loadgen LOADGEN_ONLY=stock/Server/binary make bench-full")
        self.assertEqual(json.loads(self.path.read_text())["mode"], "quick")  # one row is

    def test_void_does_not_replace(self):
        rows = self.rows("first")
        rows.put("stock/Server/binary", "b", "2", "", None, "", None, ["busy"])
        self.assertEqual(rows.void, ["stock/Server/binary"])
        rows.put("stock/Server/binary", "b", "3", "", None, "", None, [])
        rows.put("stock/Server/binary", "b", "4 (VOID)", "", None, "", None, ["busy"])
        self.assertEqual(self.kept()["stock/Server/binary"]["ours"], "3")

    def test_choice(self):
        self.assertIn("peer/Server/mlserver", driver.chosen([]))
        self.assertNotIn("native/Server/grpc", driver.chosen([]))
        for full in (True, False):
            with mock.patch.object(driver.c, "FULL", full):
                self.assertEqual("native/peak/64" in driver.chosen([]), full)
        self.assertEqual(driver.chosen(["native/Server/grpc", "*/peak/32"]), ["stock/peak/32", "native/peak/32", "native/Server/grpc"])
        with self.assertRaisesRegex(SystemExit, "no row is called native/Sever"):
            driver.chosen(["native/Sever/grpc"])

    def test_committed_result(self):
        for row in json.loads((driver.c.RESULTS / "loadgen.json").read_text())["rows"]:
            d = row["details"]
            self.assertIn(d["key"], driver.catalogue())
            self.assertIn("LOADGEN_ONLY=" + d["key"], d["command"])
            self.assertTrue(d["run_seconds"] > 0 and d["when"] and d["commit"])
            self.assertFalse(row["holds"] and (d["void"] or "INVALID" in row["ours"]), row["what"])


if __name__ == "__main__":
    unittest.main()
