"""The server as real clients see it: tritonclient (HTTP, gRPC), openai and grpcurl, each unchanged.

usage: clients.py HOST:PORT GRPC_HOST:PORT GRPCURL, with the model minilm uploaded.
"""

import json
import math
import subprocess
import sys
import unittest
import urllib.error
import urllib.request

import numpy as np
import openai
import tritonclient.grpc as triton_grpc
import tritonclient.http as triton_http
from tritonclient.grpc import service_pb2
from tritonclient.utils import InferenceServerException

HTTP, GRPC, GRPCURL = sys.argv[1:4]
MODEL = "minilm"


def post(path, body):
    request = urllib.request.Request(f"http://{HTTP}{path}", json.dumps(body).encode(), {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as e:
        return e.code, json.load(e)


def arrays(rows=2, width=9):
    ids = np.arange(rows * width, dtype=np.int64).reshape(rows, width) + 1000
    return {"input_ids": ids, "attention_mask": np.ones_like(ids), "token_type_ids": np.zeros_like(ids)}


def identity_model():
    """An ONNX model y = Identity(x) of floats, as protobuf bytes: no onnx package here."""

    def field(number, value):
        value = value if isinstance(value, bytes) else value.encode()
        return bytes([number << 3 | 2, len(value)]) + value

    def info(name):  # a vector of float32 with a variable length
        return field(1, name) + field(2, field(1, b"\x08\x01" + field(2, field(1, field(2, "n")))))

    graph = field(1, field(1, "x") + field(2, "y") + field(4, "Identity")) + field(2, "g") + field(11, info("x")) + field(12, info("y"))
    return b"\x08\x08" + field(7, graph) + field(8, field(1, "") + b"\x10\x11")


class Triton:
    """The same tests for both transports."""

    def inputs(self, **shape):
        have = {i["name"] for i in self.metadata()["inputs"]}
        made = []
        for name, array in arrays(**shape).items():
            if name in have:
                tensor = self.lib.InferInput(name, list(array.shape), "INT64")
                tensor.set_data_from_numpy(array)
                made.append(tensor)
        return made

    def test_health(self):
        self.assertTrue(self.client.is_server_live())
        self.assertTrue(self.client.is_server_ready())
        self.assertTrue(self.client.is_model_ready(MODEL))
        self.assertFalse(self.client.is_model_ready("nobody"))

    def test_infer(self):
        output = self.metadata()["outputs"][0]["name"]
        result = self.client.infer(MODEL, self.inputs(), request_id="7", outputs=[self.lib.InferRequestedOutput(output)])
        values = result.as_numpy(output)
        self.assertEqual(values.shape[0], 2)
        self.assertEqual(values.dtype, np.float32)
        self.assertTrue(np.isfinite(values).all())
        RESULTS.setdefault(output, []).append(values)

    def test_deadline(self):
        with self.assertRaises(InferenceServerException) as caught:
            self.client.infer(MODEL, self.inputs(rows=16, width=256), timeout=100)  # microseconds
        self.assertRegex(str(caught.exception).lower(), "deadline|in time")

    def test_errors(self):
        with self.assertRaisesRegex(InferenceServerException, "nobody"):
            self.client.infer("nobody", self.inputs())
        wrong = self.lib.InferInput("input_ids", [1, 4], "FP32")
        wrong.set_data_from_numpy(np.zeros((1, 4), np.float32))
        with self.assertRaisesRegex(InferenceServerException, "input"):
            self.client.infer(MODEL, [wrong])
        self.test_infer()

    def as_json(self):
        return {"as_json": True} if self.transport == "grpc" else {}

    def test_log_settings(self):
        before = self.client.get_log_settings(**self.as_json())
        after = self.client.update_log_settings({"log_verbose_level": 1, "log_info": False, "log_format": "ISO8601"}, **self.as_json())
        self.assertIn("ISO8601", json.dumps(after))
        self.assertNotEqual(after, before)
        with self.assertRaisesRegex(InferenceServerException, "log_file"):
            self.client.update_log_settings({"log_file": "/var/log/x"})
        self.client.update_log_settings({"log_verbose_level": 0, "log_info": True, "log_format": "default"})
        self.assertEqual(self.client.get_log_settings(**self.as_json()), before)

    def test_trace_settings(self):
        def of(answer, name):  # HTTP: text; gRPC: a list of text
            value = answer["settings"][name]["value"] if "settings" in answer else answer[name]
            return value if isinstance(value, str) else value[0]

        before = self.client.get_trace_settings(**self.as_json())
        self.assertEqual(of(before, "trace_level"), "OFF")
        mine = self.client.update_trace_settings(MODEL, {"trace_level": ["TIMESTAMPS"], "trace_rate": "7"}, **self.as_json())
        self.assertEqual((of(mine, "trace_level"), of(mine, "trace_rate")), ("TIMESTAMPS", "7"))
        self.assertEqual(self.client.get_trace_settings(**self.as_json()), before)
        mine = self.client.update_trace_settings(MODEL, {"trace_level": None, "trace_rate": None}, **self.as_json())
        self.assertEqual(mine, before)
        with self.assertRaisesRegex(InferenceServerException, "trace_level"):
            self.client.update_trace_settings(MODEL, {"trace_level": ["TENSORS"]})
        with self.assertRaisesRegex(InferenceServerException, "nobody"):
            self.client.get_trace_settings("nobody")

    def test_repository(self):
        self.client.unload_model(MODEL)
        self.assertFalse(self.client.is_model_ready(MODEL))
        self.client.load_model(MODEL)
        self.assertTrue(self.client.is_model_ready(MODEL))

    def test_load_with_files(self):
        name = "inline-" + self.transport
        files = {"file:1/model.onnx": identity_model()}
        self.client.load_model(name, config=json.dumps({"backend": "onnxruntime", "max_batch_size": 0}), files=files)
        self.assertTrue(self.client.is_model_ready(name, "1"))
        tensor = self.lib.InferInput("x", [2], "FP32")
        tensor.set_data_from_numpy(np.array([1, 2], np.float32))
        self.assertEqual(self.client.infer(name, [tensor], model_version="1").as_numpy("y").tolist(), [1, 2])
        with self.assertRaisesRegex(InferenceServerException, "backend"):
            self.client.load_model(name, config=json.dumps({"backend": "python"}), files=files)
        self.client.unload_model(name)
        self.assertFalse(self.client.is_model_ready(name))


RESULTS = {}


class TritonHTTP(Triton, unittest.TestCase):
    transport = "http"
    lib = triton_http

    def setUp(self):
        self.client = triton_http.InferenceServerClient(HTTP)
        self.addCleanup(self.client.close)

    def metadata(self):
        return self.client.get_model_metadata(MODEL)

    def test_compression(self):
        output = self.metadata()["outputs"][0]["name"]
        plain = self.client.infer(MODEL, self.inputs()).as_numpy(output)
        for request in (None, "gzip", "deflate"):
            for response in (None, "gzip", "deflate"):
                packed = self.client.infer(MODEL, self.inputs(), request_compression_algorithm=request, response_compression_algorithm=response)
                np.testing.assert_allclose(packed.as_numpy(output), plain, atol=1e-6)

    def test_json_tensors(self):
        """The same numbers as JSON and as bytes."""
        output = self.metadata()["outputs"][0]["name"]
        asked = self.lib.InferRequestedOutput(output, binary_data=False)
        inputs = self.inputs()
        for tensor in inputs:
            tensor.set_data_from_numpy(arrays()[tensor.name()], binary_data=False)
        np.testing.assert_allclose(self.client.infer(MODEL, inputs, outputs=[asked]).as_numpy(output), self.client.infer(MODEL, self.inputs()).as_numpy(output), atol=1e-6)

    def test_async(self):
        client = triton_http.InferenceServerClient(HTTP, concurrency=4)
        self.addCleanup(client.close)
        waiting = [client.async_infer(MODEL, self.inputs(), request_id=str(i)) for i in range(16)]
        self.assertEqual([w.get_result().get_response()["id"] for w in waiting], [str(i) for i in range(16)])

    def test_trace_file(self):
        """What a traced request left is in the file."""
        self.client.update_trace_settings(MODEL, {"trace_level": ["TIMESTAMPS"], "trace_rate": "1", "trace_count": "1", "trace_file": "clients.json"})
        self.test_infer()
        self.assertEqual(self.client.get_trace_settings(MODEL)["trace_count"], "0")
        with urllib.request.urlopen(f"http://{HTTP}/v2/trace/files/clients.json") as answer:
            names = [e["name"] for e in json.load(answer)]
        for phase in ("prepare", "queue", "infer", "finish"):
            self.assertEqual(names.count(phase), 1)
        self.client.update_trace_settings(MODEL, {"trace_level": None, "trace_rate": None, "trace_count": None, "trace_file": None})

    def test_statistics(self):
        self.test_infer()
        stats = self.client.get_inference_statistics(MODEL)["model_stats"][0]
        self.assertGreaterEqual(stats["inference_stats"]["success"]["count"], 1)
        self.assertTrue(self.client.get_model_repository_index())
        self.assertEqual(self.client.get_server_metadata()["name"], "fewbit")
        self.assertEqual(self.client.get_model_config(MODEL)["name"], MODEL)


class TritonGRPC(Triton, unittest.TestCase):
    transport = "grpc"
    lib = triton_grpc

    def setUp(self):
        self.client = triton_grpc.InferenceServerClient(GRPC)
        self.addCleanup(self.client.close)

    def metadata(self):
        return self.client.get_model_metadata(MODEL, as_json=True)

    def test_statistics(self):
        self.test_infer()
        stats = self.client.get_inference_statistics(MODEL).model_stats[0]
        self.assertGreaterEqual(stats.inference_stats.success.count, 1)
        self.assertTrue(self.client.get_model_repository_index().models)
        self.assertEqual(self.client.get_server_metadata().name, "fewbit")
        self.assertEqual(self.client.get_model_config(MODEL).config.name, MODEL)

    def test_stream(self):
        answers = []
        self.client.start_stream(lambda result, error: answers.append((result, error)))
        for i in range(3):
            self.client.async_stream_infer(MODEL, self.inputs(), request_id=str(i))
        self.client.stop_stream()
        self.assertEqual([r.get_response().id for r, e in answers if e is None], ["0", "1", "2"])

    def test_stream_error(self):
        """An error in a stream is that request's; the others are answered."""
        answers = []
        self.client.start_stream(lambda result, error: answers.append((result, error)))
        for name in (MODEL, "nobody", MODEL):
            self.client.async_stream_infer(name, self.inputs(), request_id=name)
        self.client.stop_stream()
        self.assertEqual([e is None for _, e in answers], [True, False, True])
        self.assertIn("nobody", str(answers[1][1]))

    def test_stream_strict(self):
        """With Triton's header the stream ends with the status of its first error."""
        answers = []
        self.client.start_stream(lambda result, error: answers.append((result, error)), headers={"triton_grpc_error": "true"})
        for name in (MODEL, "nobody"):
            self.client.async_stream_infer(name, self.inputs(), request_id=name)
        self.client.stop_stream()
        self.assertEqual([e is None for _, e in answers], [True, False])
        self.assertIn("NOT_FOUND", answers[1][1].status())

    def test_description(self):
        """Every call of ours has tritonclient's name and messages of the same fields."""
        service = service_pb2.DESCRIPTOR.services_by_name["GRPCInferenceService"]
        with open("internal/grpc/pb/inference.proto", encoding="utf-8") as f:
            ours = f.read()
        calls = [line.split()[1].split("(")[0] for line in ours.splitlines() if line.strip().startswith("rpc ")]
        self.assertGreater(len(calls), 10)
        for call in calls:
            self.assertIn(call, service.methods_by_name)
        missing = set(service.methods_by_name) - set(calls)
        self.assertTrue(all("SharedMemory" in name for name in missing), missing)


class GRPCurl(unittest.TestCase):
    """grpcurl, which asks the server for its description."""

    def call(self, *args, data=None):
        message = [] if data is None else ["-d", json.dumps(data)]
        done = subprocess.run([GRPCURL, "-plaintext", *message, GRPC, *args], capture_output=True, text=True, timeout=60)
        return done.returncode, done.stdout, done.stderr

    def test_describe(self):
        self.assertIn("inference.GRPCInferenceService", self.call("list")[1])
        self.assertIn("ModelInfer", self.call("list", "inference.GRPCInferenceService")[1])

    def test_infer(self):
        service = "inference.GRPCInferenceService/"
        self.assertEqual(json.loads(self.call(service + "ServerReady")[1]), {"ready": True})
        inputs = [{"name": n, "datatype": "INT64", "shape": list(a.shape), "contents": {"int64_contents": a.ravel().tolist()}} for n, a in arrays().items()]
        code, out, err = self.call(service + "ModelInfer", data={"model_name": MODEL, "id": "g1", "inputs": inputs})
        self.assertEqual((code, err), (0, ""))
        answer = json.loads(out)
        self.assertEqual((answer["modelName"], answer["id"]), (MODEL, "g1"))
        code, _, err = self.call(service + "ModelInfer", data={"model_name": "nobody"})
        self.assertNotEqual(code, 0)
        self.assertIn("NotFound", err)


class OpenAI(unittest.TestCase):
    def setUp(self):
        self.client = openai.OpenAI(base_url=f"http://{HTTP}/v1", api_key="none", max_retries=0)
        self.addCleanup(self.client.close)

    def test_embeddings(self):
        near, same, far = (d.embedding for d in self.client.embeddings.create(
            model=MODEL, input=["A cat sits on the mat.", "A cat is sitting on a mat.", "Shares fell sharply on Monday."]).data)
        self.assertAlmostEqual(math.hypot(*near), 1, places=4)
        dot = lambda a, b: sum(x * y for x, y in zip(a, b))
        self.assertGreater(dot(near, same), dot(near, far) + 0.3)
        numbers = self.client.embeddings.create(model=MODEL, input="A cat sits on the mat.", encoding_format="float").data[0].embedding
        self.assertGreater(dot(near, numbers), 0.9999)
        short = self.client.embeddings.create(model=MODEL, input="A cat sits on the mat.", dimensions=64)
        self.assertEqual(len(short.data[0].embedding), 64)
        self.assertGreater(short.usage.prompt_tokens, 5)

    def test_errors(self):
        with self.assertRaises(openai.NotFoundError):
            self.client.embeddings.create(model="nobody", input="x")
        with self.assertRaises(openai.BadRequestError) as caught:
            self.client.embeddings.create(model=MODEL, input="")
        self.assertIn("text", caught.exception.body["message"])


class TEI(unittest.TestCase):
    def test_routes(self):
        status, vectors = post("/embed", {"inputs": ["one", "two"]})
        self.assertEqual((status, len(vectors)), (200, 2))
        status, tokens = post("/tokenize", {"inputs": "hello world"})
        self.assertEqual((status, [t["id"] for t in tokens[0]]), (200, [101, 7592, 2088, 102]))
        self.assertEqual([(t["text"], t["special"]) for t in tokens[0]], [("[CLS]", True), ("hello", False), ("world", False), ("[SEP]", True)])
        long = "one " * 600
        for body, wanted in (
            ({"inputs": ""}, (400, "Empty")),
            ({"inputs": ["one"] * 300}, (413, "Validation")),
            ({"inputs": long}, (413, "Validation")),
            ({"inputs": 7}, (422, "Validation")),
        ):
            status, error = post("/embed", body)
            self.assertEqual((status, error["error_type"]), wanted)
        for direction in ("Left", "Right"):
            self.assertEqual(post("/embed", {"inputs": long, "truncate": True, "truncation_direction": direction})[0], 200)
        with urllib.request.urlopen(f"http://{HTTP}/health") as answer:
            self.assertEqual(answer.status, 200)
        with urllib.request.urlopen(f"http://{HTTP}/info") as answer:
            self.assertEqual(json.load(answer)["model_id"], MODEL)


class Agreement(unittest.TestCase):
    def test_transports_agree(self):
        """Runs last: what HTTP and gRPC answered to the same inputs is the same."""
        for values in RESULTS.values():
            for v in values[1:]:
                np.testing.assert_allclose(v, values[0], atol=1e-5)


if __name__ == "__main__":
    order = [TritonHTTP, TritonGRPC, GRPCurl, OpenAI, TEI, Agreement]
    suite = unittest.TestSuite(unittest.defaultTestLoader.loadTestsFromTestCase(c) for c in order)
    sys.exit(not unittest.TextTestRunner(verbosity=2).run(suite).wasSuccessful())
