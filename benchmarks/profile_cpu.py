"""Where the time of BERT-base goes: stock operators of ONNX Runtime, and OpenVINO, by each one's own profiler.

The two INT8 files of openvino_cpu.py, sequence 128, batch 1, 2 threads; milliseconds a run by operator with the number of
its nodes, the largest first. A profiler costs time itself: read shares. QAttention of ONNX Runtime is the product for Q, K
and V and then attention in FP32, where OpenVINO computes scores and values in BF16. Behind ONNX Runtime's products
stand an operator each for smoothing, GELU, sums, normalization and quantization, which pass through memory in FP32; OpenVINO, and the
native form, have most of it behind the product, in the cache. Stock operators lack both, so that the plan for more is the
native form; what is left for them is small: divisors of smoothing folded into V's columns (1 %, measured once).
"""
import collections
import json

import numpy as np

import bert_speed
import common as c

SEQUENCE, THREADS, SHOWN = 128, 2, 8
RUNS = 100 if c.FULL else 30


def stock(path):
    import onnxruntime as ort
    o = ort.SessionOptions()
    o.intra_op_num_threads, o.enable_profiling, o.profile_file_prefix = THREADS, True, str(c.WORK / "profile")
    s, feeds = ort.InferenceSession(str(path), o, providers=["CPUExecutionProvider"]), c.ids_feeds(np.random.default_rng(1).integers(1000, 20000, SEQUENCE))
    for _ in range(RUNS):
        s.run(None, feeds)
    path = c.Path(s.end_profiling())
    ms, nodes = collections.Counter(), collections.Counter()
    for e in json.loads(path.read_text()):
        if e.get("cat") == "Node" and e["name"].endswith("_kernel_time"):
            ms[e["args"]["op_name"]] += e["dur"] / 1e3 / RUNS
            nodes[e["args"]["op_name"]] += 1 / RUNS
    path.unlink()
    return ms, nodes


def main():
    r = c.Result("profile_cpu", "Where the time goes on the CPU", __doc__.strip())
    data, file = bert_speed.calibration_file(64), c.WORK / "openvino-stock.onnx"
    c.fewbit("quantize", c.BERT / "model.onnx", "-o", file, "--calib", data, "--target", "ort-cpu", "--force", "--no-latency")
    theirs = c.WORK / "bert-openvino.xml"
    with c.OpenVINO(c.BERT / "model.onnx", data, theirs) as peer:  # which makes the file
        _, _, text = c.command([peer.python, peer.worker, "profile", theirs, SEQUENCE, THREADS, RUNS])
    both = json.loads(text)
    found = {"stock operators of ONNX Runtime": stock(file),
             "OpenVINO NNCF INT8": (collections.Counter({k: v[0] for k, v in both.items()}), {k: v[1] for k, v in both.items()})}
    for name, (ms, nodes) in found.items():
        total = sum(ms.values())
        r.row("BERT-base INT8, sequence %d, %d threads, %s" % (SEQUENCE, THREADS, name), "%.1f ms: " % total + ", ".join("%s %.2f (%d)" % (k, v, round(nodes[k])) for k, v in ms.most_common(SHOWN)),
              n=RUNS, ms=dict(ms), nodes={k: round(v) for k, v in nodes.items()})
    r.body["versions"].update(c.OpenVINO.versions())
    r.save()


if __name__ == "__main__":
    main()
