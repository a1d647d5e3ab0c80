#!/usr/bin/env python3
"""What others do on this machine: the figures that ours stand beside.

  peers.py gpu              cuBLASLt and an encoder through PyTorch
  peers.py cpu MODEL.onnx   entropy calibration of BERT-base by ONNX Runtime's tool

Prints one line of JSON. On the GPU every time is the median of several runs of a
CUDA graph, so that launches do not count; see docs/cuda.md for how ours are taken.
"""
import json
import os
import statistics
import sys
import tempfile
import time

torch = None  # of `gpu`

# (m, n, k) of the matrix products: the square of the goal, BERT-base at batch 1 and 32 of 128 tokens, small m.
GEMMS = [(4096, 4096, 4096), (8192, 8192, 8192),
         (128, 768, 768), (128, 2304, 768), (128, 3072, 768), (128, 768, 3072),
         (4096, 768, 768), (4096, 2304, 768), (4096, 3072, 768), (4096, 768, 3072),
         (32, 4096, 4096), (64, 4096, 4096)]
LAYERS, HEADS, WIDTH, FFN = 12, 12, 768, 3072  # BERT-base
BATCHES = [(1, 128), (32, 128), (128, 128)]


def graph_us(f, inner=10, runs=7):
    """Microseconds of one f(), by replaying a graph of `inner` of them."""
    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        for _ in range(3):
            f()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(inner):
            f()
    times = []
    for _ in range(runs + 1):
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        graph.replay()
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end) * 1e3 / inner)
    return statistics.median(times[1:])


def row(name, f, work=None, unit=None):
    """One row; work operations or bytes make a rate in 1e12 of them a second."""
    try:
        us = graph_us(f)
    except (RuntimeError, ValueError, NotImplementedError) as e:
        return {"name": name, "error": str(e).splitlines()[0][:200]}
    out = {"name": name, "us": round(us, 3)}
    if work:
        out[unit] = round(work / us / 1e6, 3)
    return out


def gemms():
    for m, n, k in GEMMS:
        a, b = torch.randint(-128, 128, (m, k), dtype=torch.int8, device="cuda"), torch.randint(-128, 128, (n, k), dtype=torch.int8, device="cuda")
        yield row("s8 %dx%dx%d" % (m, n, k), lambda: torch._int_mm(a, b.t()), 2.0 * m * n * k, "tops")  # cuBLASLt, int32 out
        x, w = torch.randn(m, k, device="cuda", dtype=torch.half), torch.randn(n, k, device="cuda", dtype=torch.half)
        yield row("f16 %dx%dx%d" % (m, n, k), lambda: torch.mm(x, w.t()), 2.0 * m * n * k, "tops")


def copies():
    src = torch.empty(1 << 30, dtype=torch.uint8, device="cuda")
    dst = torch.empty_like(src)
    yield row("copy 1 GiB", lambda: dst.copy_(src), 2.0 * src.numel(), "tbytes_per_s")


def encoders():
    layer = torch.nn.TransformerEncoderLayer(WIDTH, HEADS, FFN, 0.0, "gelu", batch_first=True)
    model = torch.nn.TransformerEncoder(layer, LAYERS, enable_nested_tensor=False).eval().half().cuda()
    with torch.inference_mode():
        for batch, tokens in BATCHES:
            x = torch.randn(batch, tokens, WIDTH, device="cuda", dtype=torch.half)
            got = row("BERT-base encoder f16 batch %d tokens %d" % (batch, tokens), lambda: model(x))
            yield got


TOKENS, SAMPLES, BINS = 128, 4, 128  # BINS: the tool's own default


def calibration(model):
    """Seconds a sample of onnxruntime.quantization's entropy calibration of the inputs and outputs of matrix products."""
    import numpy as np
    from onnxruntime.quantization.calibrate import CalibrationDataReader, EntropyCalibrater

    class Reader(CalibrationDataReader):
        def __init__(self):
            self.left = SAMPLES

        def get_next(self):
            if self.left == 0:
                return None
            self.left -= 1
            ids = np.random.default_rng(self.left).integers(1, 30000, (1, TOKENS))
            return {"input_ids": ids, "attention_mask": np.ones_like(ids), "token_type_ids": np.zeros_like(ids)}

    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        c = EntropyCalibrater(model, ["MatMul"], os.path.join(folder, "augmented.onnx"), num_bins=BINS, num_quantized_bins=128)
        c.augment_graph()
        c.create_inference_session()
        opened = time.perf_counter()
        c.collect_data(Reader())
        collected = time.perf_counter()
        tensors = len(c.compute_data().data)
        end = time.perf_counter()
    return {"samples": SAMPLES, "tokens": TOKENS, "bins": BINS, "tensors": tensors, "open_s": opened - start,
            "s_per_sample": (collected - opened) / SAMPLES, "search_s": end - collected}


def missing(what, e):
    print("no %s: %s" % (what, " ".join(str(e).split())))
    sys.exit(1)


def cpu(model):
    if not os.path.exists(model):
        missing("model", "the benchmark that writes it did not run")
    try:
        import onnx  # what the tool needs
        import onnxruntime
    except ImportError as e:
        missing("ONNX Runtime with its tools", e)
    print(json.dumps({"onnxruntime": onnxruntime.__version__, "onnx": onnx.__version__, "cpus": len(os.sched_getaffinity(0)), "calibration": calibration(model)}))


def gpu():
    global torch
    try:
        import torch
        if not torch.cuda.is_available():
            raise ImportError("torch.cuda.is_available() is false")
    except ImportError as e:
        missing("PyTorch with CUDA", e)
    torch.backends.cuda.matmul.allow_tf32 = True
    props = torch.cuda.get_device_properties(0)
    rows = [r for part in (copies, gemms, encoders) for r in part()]
    print(json.dumps({"torch": torch.__version__, "cuda": torch.version.cuda, "device": props.name, "multiprocessors": props.multi_processor_count, "rows": rows}))


if sys.argv[1:] == ["gpu"]:
    gpu()
elif len(sys.argv) == 3 and sys.argv[1] == "cpu":
    cpu(sys.argv[2])
else:
    sys.exit(__doc__)
