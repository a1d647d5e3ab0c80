"""BERT-base in the native form at each level of processor that libfewbit_cpu has kernels
for and this one can stand in for (FEWBIT_CPU_LEVEL), against ONNX Runtime's INT8.

Levels and peer take turns, a process each, with 20 runs or more in each turn: batch 1,
sequence 128, made-up token ids, two threads. A lower level runs on this processor's clock and
caches, so that the rows compare the kernels with each other, not processors. ONNX
Runtime is not masked: it uses all that this processor has in every row. A level that
this processor lacks has a row that says so.
"""
import json
import os
import platform

import numpy as np

import common as c
import native_cpu

# From the highest; plain is the reference that tests compare with.
LEVELS = {"x86_64": ["amx", "avx512-bf16", "avx512-vnni", "avx2-vnni", "avx2"], "aarch64": ["arm-i8mm", "arm-dot"]}
LACKS = "cannot be taken"  # what libfewbit_cpu says of a level that is not there
TURNS = 3
SEQUENCE, THREADS = 128, 2


def once(path, level=None):
    env = dict(os.environ, FEWBIT_CPU_LEVEL=level) if level else None
    _, _, text = c.command([c.FEWBIT, "bench", path, "--seq", SEQUENCE, "--threads", THREADS, "--duration", "1s", "--json"], env=env)
    b = json.loads(text)
    return {k: b["models"][0][k] for k in ("n", "min_ms", "p50_ms", "p90_ms")}, b["noise"]["others"]


def split(levels, run):
    """Those of levels at which run(level) runs, and those that this processor lacks. Raises what else goes wrong."""
    there, lacking = [], []
    for level in levels:
        try:
            run(level)
            there.append(level)
        except RuntimeError as e:
            if LACKS not in str(e):
                raise
            lacking.append(level)
    return there, lacking


def main():
    r = c.Result("levels_cpu", "The native form at lower levels of processors", __doc__.strip())
    native, peer = native_cpu.made("bert-native.onnx", "cuda"), native_cpu.made("bert-ort-int8.onnx", "ort-cpu")
    what = "BERT-base native form, level %%s, sequence %d, batch 1, %d threads" % (SEQUENCE, THREADS)
    there, lacking = split(LEVELS.get(platform.machine(), []), lambda level: once(native, level))
    for level in lacking:
        r.row(what % level, "not measured: this processor lacks it")
    turns = [{level: once(native, level) for level in there} | {"": once(peer)} for _ in range(TURNS)]
    median = lambda level: float(np.median([t[level][0]["p50_ms"] for t in turns]))
    for level in there:
        ratio = float(np.median([t[""][0]["p50_ms"] / t[level][0]["p50_ms"] for t in turns]))
        r.row(what % level, "p50 %.1f ms" % median(level), "ONNX Runtime INT8, not masked: p50 %.1f ms" % median(""), ratio,
              turns=[{"ours": t[level], "peer": t[""]} for t in turns])
    r.save()


if __name__ == "__main__":
    main()
