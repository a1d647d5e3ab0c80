"""Runs in OpenVINO's environment: quantizes BERT-base with NNCF, or answers lines
"SEQUENCE THREADS SECONDS" on standard input with one JSON line of run times in ms."""
import json
import sys
import time

import numpy as np
import openvino as ov


def quantize(source, data, target):
    import nncf
    arrays = np.load(data)
    samples = [{k: arrays[k][i:i + 1] for k in arrays.files} for i in range(len(arrays["input_ids"]))]
    # The settings that NNCF documents for transformers.
    model = nncf.quantize(ov.Core().read_model(source), nncf.Dataset(samples), model_type=nncf.ModelType.TRANSFORMER, subset_size=len(samples))
    ov.save_model(model, target, compress_to_fp16=False)


def serve(path):
    core, rng = ov.Core(), np.random.default_rng(1)
    model, requests = core.read_model(path), {}
    for line in sys.stdin:
        sequence, threads, seconds = (int(v) for v in line.split())
        if (sequence, threads) not in requests:
            model.reshape({i.any_name: [1, sequence] for i in model.inputs})
            compiled = core.compile_model(model, "CPU", {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_NUM_THREADS": threads, "NUM_STREAMS": 1})
            r = compiled.create_infer_request()
            for i in compiled.inputs:
                ids = rng.integers(1000, 20000, (1, sequence)) if i.any_name == "input_ids" else np.full((1, sequence), i.any_name == "attention_mask")
                r.set_tensor(i, ov.Tensor(ids.astype(np.int64)))
            requests[sequence, threads] = r
        r, ms = requests[sequence, threads], []
        for _ in range(5):
            r.infer()
        end = time.perf_counter() + seconds
        while time.perf_counter() < end:
            t = time.perf_counter()
            r.infer()
            ms.append(1e3 * (time.perf_counter() - t))
        print(json.dumps(ms), flush=True)


if __name__ == "__main__":
    if sys.argv[1] == "quantize":
        quantize(*sys.argv[2:])
    else:
        serve(sys.argv[2])
