"""Runs in OpenVINO's environment: quantizes a model with NNCF, profiles one, or answers lines
"BATCHES THREADS SECONDS [STREAMS]" on standard input with one JSON line of run times
in ms. BATCHES are the lengths of made-up texts, "128" or "16,32/48,64": a slash ends a
batch, which is padded to its longest, with a mask; "-" is one sample of the shapes that
the model has. With streams all texts run alone, so many at a time, their length not
fixed when the model is compiled; else batches run one after the other, each with a
static shape."""
import json
import sys
import time

import numpy as np
import openvino as ov


def quantize(source, data, target):
    import nncf
    arrays = np.load(data)
    samples = [{k: arrays[k][i:i + 1] for k in arrays.files} for i in range(len(arrays[arrays.files[0]]))]
    # The settings that NNCF documents for transformers.
    model = nncf.quantize(ov.Core().read_model(source), nncf.Dataset(samples), model_type=nncf.ModelType.TRANSFORMER, subset_size=len(samples))
    ov.save_model(model, target, compress_to_fp16=False)


def feeds(inputs, lengths, rng):
    """A batch of texts of these lengths, or without any one sample; by name."""
    out = {}
    for i in inputs:
        dims = i.partial_shape
        shape = (len(lengths), max(lengths)) if lengths else tuple(1 if d.is_dynamic else d.get_length() for d in dims)
        if i.element_type.is_real():
            v = rng.standard_normal(shape, np.float32)
        elif i.any_name == "input_ids":
            v = rng.integers(1000, 20000, shape)
        elif i.any_name == "attention_mask" and lengths:
            v = np.arange(shape[1]) < np.array(lengths)[:, None]
        else:
            v = np.zeros(shape)
        out[i.any_name] = v.astype(i.element_type.to_dtype())
    return out


def runner(core, path, batches, threads, streams):
    """A function that runs all batches once."""
    rng, config = np.random.default_rng(1), {"INFERENCE_NUM_THREADS": threads, "NUM_STREAMS": streams or 1}
    if streams:
        model = core.read_model(path)
        model.reshape({i.any_name: [1, -1] for i in model.inputs})
        compiled = core.compile_model(model, "CPU", {"PERFORMANCE_HINT": "THROUGHPUT", **config})
        texts = [feeds(compiled.inputs, [n], rng) for n in sorted((n for b in batches for n in b), reverse=True)]
        queue = ov.AsyncInferQueue(compiled, streams)

        def at_once():
            for text in texts:
                queue.start_async(text, share_inputs=True)
            queue.wait_all()
        return at_once
    requests = []
    for lengths in batches:
        model = core.read_model(path)
        given = feeds(model.inputs, lengths, rng)
        model.reshape({k: v.shape for k, v in given.items()})
        r = core.compile_model(model, "CPU", {"PERFORMANCE_HINT": "LATENCY", **config}).create_infer_request()
        for k, v in given.items():
            r.set_tensor(k, ov.Tensor(v))
        requests.append(r)

    def in_turn():
        for r in requests:
            r.infer()
    return in_turn


def serve(path):
    core, runners = ov.Core(), {}
    for line in sys.stdin:
        key, seconds = line.split()[:2] + line.split()[3:], float(line.split()[2])
        key = tuple(key)
        if key not in runners:
            batches = [[] if b == "-" else [int(n) for n in b.split(",")] for b in key[0].split("/")]
            runners[key] = runner(core, path, batches, *(int(v) for v in key[1:]), *[0] * (3 - len(key)))
        run, ms = runners[key], []
        for _ in range(5):
            run()
        end = time.perf_counter() + seconds
        while time.perf_counter() < end:
            t = time.perf_counter()
            run()
            ms.append(1e3 * (time.perf_counter() - t))
        print(json.dumps(ms), flush=True)


def profile(path, length, threads, runs):
    """Prints {operator and kernel: [ms a run, nodes]} by OpenVINO's own counters."""
    core = ov.Core()
    model = core.read_model(path)
    given = feeds(model.inputs, [length], np.random.default_rng(1))
    model.reshape({k: v.shape for k, v in given.items()})
    r = core.compile_model(model, "CPU", {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_NUM_THREADS": threads, "NUM_STREAMS": 1, "PERF_COUNT": True}).create_infer_request()
    found = {}
    for _ in range(runs):
        r.infer(given)
        for p in r.profiling_info:
            ms = p.real_time.total_seconds() * 1e3
            if ms > 0:
                of = found.setdefault(p.node_type + " " + p.exec_type, [0, 0])
                of[0] += ms / runs
                of[1] += 1 / runs
    print(json.dumps(found))


if __name__ == "__main__":
    if sys.argv[1] == "quantize":
        quantize(*sys.argv[2:])
    elif sys.argv[1] == "profile":
        profile(sys.argv[2], *map(int, sys.argv[3:]))
    else:
        serve(sys.argv[2])
