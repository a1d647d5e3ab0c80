"""BERT-base in INT8 on the CPU: fewbit's forms against OpenVINO with NNCF's INT8.

All three files come from the same FP32 file and the same 64 texts: the native form
(kernels of our own), target ort-cpu (stock operators of ONNX Runtime), and NNCF's
quantization for transformers in OpenVINO with the latency hint and static shapes.
Batch 1, made-up token ids. Each engine has a process of its own and they take turns
of seconds; each row is the median over the turns of the ratio of their medians. The
latency between the two processors is taken around each turn; turns of different
states are rows of their own, and a turn during which it changed counts in neither.

The first rows give all hidden states, the last ones the scores of two classes, by BERT's pooler of
[CLS] and made-up weights behind it: the native form computes no row of the last
layer that a classifier does not read.
"""
import numpy as np

import bert_speed
import common as c

SHAPES = [(16, 2, 1.7), (64, 2, 1.25), (128, 2, 1.2), (256, 2, 1.1), (128, 1, 1.1)]  # sequence, threads, bar
CLASSIFIER_SHAPES = [(16, 2, 1.7), (64, 2, 1.25), (128, 2, 1.2)]
STOCK_BAR = 1.0  # of stock operators at sequence 128
TURNS, SECONDS, LEAST = (12, 2, 3) if c.FULL else (4, 1, 2)


def bench(path, sequence, threads):
    return c.bench(path, sequence, threads, SECONDS)["models"][0]["p50_ms"]


def classifier():
    """BERT-base with a head on its pooler; its only output is the scores of two classes."""
    import onnx
    from onnx import helper, numpy_helper
    path = c.WORK / "bert-classifier.onnx"
    if not path.exists():
        m = onnx.load(str(c.BERT / "model.onnx"))
        rng = np.random.default_rng(1)
        for name, value in (("scores.weight", rng.normal(0, 768 ** -0.5, (768, 2))), ("scores.bias", np.zeros(2))):
            m.graph.initializer.append(numpy_helper.from_array(value.astype(np.float32), name))
        m.graph.node.append(helper.make_node("Gemm", ["pooler_output", "scores.weight", "scores.bias"], ["scores"]))
        del m.graph.output[:]
        m.graph.output.append(helper.make_tensor_value_info("scores", onnx.TensorProto.FLOAT, ["batch", 2]))
        partial = path.with_suffix(".part")
        onnx.save(m, str(partial))
        partial.rename(path)
    return path


def compare(r, label, prefix, source, data, shapes):
    files = {}
    for name, target in (("native", "cuda"), ("stock", "ort-cpu")):
        files[name] = c.WORK / ("%s-%s.onnx" % (prefix, name))
        c.fewbit("quantize", source, "-o", files[name], "--calib", data, "--target", target, "--device", "cpu", "--force", "--no-latency")
    with c.OpenVINO(source, data, c.WORK / ("bert-%s.xml" % prefix)) as peer:
        theirs = lambda sequence, threads: peer.median(sequence, threads, SECONDS)
        for sequence, threads, bar in shapes:
            theirs(sequence, threads)  # compiles
            turn = lambda: [bench(files["native"], sequence, threads), theirs(sequence, threads), bench(files["stock"], sequence, threads), theirs(sequence, threads)]
            states, dropped = c.by_core_state(turn, lambda seen, dropped: sum(seen.values()) + dropped >= TURNS, LEAST)
            for state, (turns, ns) in states.items():
                native, first, stock, second = np.array(turns).T
                shape = "sequence %d, %d thread%s, %s" % (sequence, threads, "s"[:threads - 1], state)
                for name, ours, peers, want in (("native form", native, first, bar), ("stock operators", stock, second, STOCK_BAR if (sequence, threads) == (128, 2) else None)):
                    ratio, lo, hi = c.median_interval(peers / ours)
                    r.row("%s, %s, against OpenVINO, %s" % (label, name, shape), "p50 %.1f ms" % np.median(ours), "OpenVINO NNCF INT8: p50 %.1f ms" % np.median(peers), ratio,
                          ">= %.2fx" % want if want else "", ratio >= want if want else None, range=[float((peers / ours).min()), float((peers / ours).max())],
                          ours_ms=ours.tolist(), peer_ms=peers.tolist(), turns=len(turns), turns_dropped=dropped, core_latency_ns=ns)


def main():
    r = c.Result("openvino_cpu", "BERT-base on the CPU against OpenVINO", __doc__.strip())
    data = bert_speed.calibration_file(64)
    compare(r, "BERT-base INT8", "openvino", c.BERT / "model.onnx", data, SHAPES)
    compare(r, "BERT-base with a classification head ([CLS]) INT8", "openvino-classifier", classifier(), data, CLASSIFIER_SHAPES)
    r.body["versions"].update(c.OpenVINO.versions())
    r.save()


if __name__ == "__main__":
    main()
