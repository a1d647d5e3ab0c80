"""NVIDIA's pytriton: its tritonserver with the model in onnxruntime. usage: serve_pytriton.py PORT MODEL THREADS"""
import os
import sys

import numpy as np
import onnxruntime as ort
from pytriton.model_config import ModelConfig, Tensor
from pytriton.triton import Triton, TritonConfig

PORT, MODEL, THREADS = int(sys.argv[1]), sys.argv[2], int(sys.argv[3])
NAMES = ("input_ids", "attention_mask", "token_type_ids")


def main():
    options = ort.SessionOptions()
    options.intra_op_num_threads = THREADS
    session = ort.InferenceSession(MODEL, options, providers=["CPUExecutionProvider"])
    output = os.environ["OUTPUT"]

    def infer(requests):
        return [{output: session.run([output], {n: r[n] for n in NAMES})[0]} for r in requests]

    # Without Triton's own batching: rows of one request are the batch already.
    with Triton(config=TritonConfig(http_address="127.0.0.1", http_port=PORT, grpc_port=PORT + 1, metrics_port=PORT + 2, log_verbose=0)) as triton:
        triton.bind("model", infer, inputs=[Tensor(name=n, dtype=np.int64, shape=(-1, -1)) for n in NAMES],
                    outputs=[Tensor(name=output, dtype=np.float32, shape=(-1, -1))], config=ModelConfig(batching=False), strict=False)
        triton.serve()


if __name__ == "__main__":
    main()
