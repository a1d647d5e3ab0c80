"""LitServe with the model in onnxruntime. usage: serve_litserve.py PORT MODEL THREADS"""
import os
import sys

import litserve
import numpy as np
import onnxruntime as ort

PORT, MODEL, THREADS = int(sys.argv[1]), sys.argv[2], int(sys.argv[3])


class Api(litserve.LitAPI):
    def setup(self, device):
        options = ort.SessionOptions()
        options.intra_op_num_threads = THREADS
        self.session = ort.InferenceSession(MODEL, options, providers=["CPUExecutionProvider"])

    def decode_request(self, request):
        return {name: np.asarray(values, np.int64) for name, values in request.items()}

    def predict(self, feeds):
        return self.session.run([os.environ["OUTPUT"]], feeds)[0]

    def encode_response(self, output):
        return {"output": output.tolist()}


if __name__ == "__main__":
    litserve.LitServer(Api(), accelerator="cpu", workers_per_device=1, fast_queue=True).run(host="127.0.0.1", port=PORT, log_level="error", generate_client_file=False)
