#!/usr/bin/env python3
"""Run a model that `fewbit pack` wrote in Python, with fewbit's kernels for the CPU.

    fewbit quantize model.onnx -o small.onnx --calib texts.jsonl --target cpu
    fewbit pack small.onnx -o packed.onnx
    python3 native_cpu.py packed.onnx --vs model.onnx

Needs `pip install onnxruntime numpy` (1.24 or newer) and libfewbit_cpu.so of `make build`.
"""
import argparse
import pathlib
import statistics
import sys
import time

import numpy as np
import onnxruntime as ort

ROOT = pathlib.Path(__file__).resolve().parents[2]


def session(model, threads, library=None):
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    if library:
        options.register_custom_ops_library(str(library))
        # The operators cut their work for as many threads.
        options.add_session_config_entry("fewbit.threads", str(threads))
    return ort.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])


def inputs(s, length):
    """One sample: masks of ones, token types of zeros, ids below 100, else a standard normal distribution."""
    rng = np.random.default_rng(1)
    types = {"tensor(int64)": np.int64, "tensor(int32)": np.int32, "tensor(float)": np.float32}
    feeds = {}
    for i in s.get_inputs():
        shape = [d if isinstance(d, int) else 1 if at == 0 else length for at, d in enumerate(i.shape)]
        if i.type not in types:
            sys.exit(f"native_cpu.py: input {i.name} has type {i.type}; give this program's inputs() a value for it")
        if types[i.type] is np.float32:
            value = rng.standard_normal(shape)
        elif "mask" in i.name:
            value = np.ones(shape)
        elif "type" in i.name:
            value = np.zeros(shape)
        else:
            value = rng.integers(0, 100, shape)
        feeds[i.name] = value.astype(types[i.type])
    return feeds


def main():
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("model", help="what fewbit pack wrote")
    p.add_argument("--library", default=ROOT / "bin/libfewbit_cpu.so", help="libfewbit_cpu.so")
    p.add_argument("--vs", help="the float model, to compare with")
    p.add_argument("--threads", type=int, default=2)
    p.add_argument("--seq", type=int, default=128, help="length of sequences")
    p.add_argument("--runs", type=int, default=20)
    a = p.parse_args()
    try:
        begun = time.perf_counter()
        packed = session(a.model, a.threads, a.library)
        print(f"{pathlib.Path(a.model).name} opened in {1000 * (time.perf_counter() - begun):.0f} ms")
        models = {"packed": packed}
        if a.vs:
            models["float"] = session(a.vs, a.threads)
    except Exception as e:  # ONNX Runtime has a class for each status
        sys.exit(f"native_cpu.py: {str(e).splitlines()[0]}")
    feeds = inputs(packed, a.seq)
    answers = {name: s.run(None, feeds)[0] for name, s in models.items()}
    times = {name: [] for name in models}
    for _ in range(a.runs):  # in turn
        for name, s in models.items():
            begun = time.perf_counter()
            s.run(None, feeds)
            times[name].append(1000 * (time.perf_counter() - begun))
    for name, t in times.items():
        print(f"{name}: median {statistics.median(t):.2f} ms (n = {len(t)})")
    if a.vs:
        x, y = (answers[name].ravel().astype(np.float64) for name in ("packed", "float"))
        print(f"cosine {x @ y / np.sqrt((x @ x) * (y @ y)):.6f}")


if __name__ == "__main__":
    main()
