"""Runs in LiteRT's environment. "scores MODEL.tflite IMAGES.npz OUT.npy" writes the model's
answers; "serve MODEL.tflite..." answers lines "MODEL_INDEX THREADS SECONDS" on standard input
with one JSON line of run times in ms, of one image. Images come in ONNX's layout."""
import json
import sys
import time

import numpy as np
from ai_edge_litert.interpreter import Interpreter


def opened(path, threads, batch=1):
    it = Interpreter(path, num_threads=threads)
    i = it.get_input_details()[0]
    it.resize_tensor_input(i["index"], [batch, *i["shape"][1:]])
    it.allocate_tensors()
    return it, i


def codes(details, x):
    """x as an input takes it: some quantizers make inputs and outputs integers too."""
    if details["dtype"] == np.float32:
        return x
    (scale, zero), limits = details["quantization"], np.iinfo(details["dtype"])
    return np.clip(np.rint(x / scale) + zero, limits.min, limits.max).astype(details["dtype"])


def values(details, q):
    """The floats of an output."""
    scale, zero = details["quantization"]
    return q if details["dtype"] == np.float32 else (q.astype(np.float32) - zero) * np.float32(scale)


def scores(path, images, out):
    x = np.load(images)["input"]
    it, i = opened(path, 2)
    answers = []
    o = it.get_output_details()[0]
    for image in x:
        it.set_tensor(i["index"], codes(i, np.ascontiguousarray(image.transpose(1, 2, 0))[None]))
        it.invoke()
        answers.append(values(o, it.get_tensor(o["index"])[0]))
    np.save(out, np.array(answers))


def serve(paths):
    open_models = {}
    for line in sys.stdin:
        index, threads, seconds = line.split()
        if (index, threads) not in open_models:
            it, i = opened(paths[int(index)], int(threads))
            it.set_tensor(i["index"], np.random.default_rng(1).standard_normal(i["shape"]).astype(np.float32))
            open_models[index, threads] = it
        it, ms = open_models[index, threads], []
        for _ in range(5):
            it.invoke()
        end = time.perf_counter() + float(seconds)
        while time.perf_counter() < end:
            t = time.perf_counter()
            it.invoke()
            ms.append(1e3 * (time.perf_counter() - t))
        print(json.dumps(ms), flush=True)


if sys.argv[1] == "scores":
    scores(*sys.argv[2:])
else:
    serve(sys.argv[2:])
