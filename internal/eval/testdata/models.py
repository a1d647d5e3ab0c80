"""Writes fp32.onnx, int8.onnx, samples.npz and models.json: a small classifier,
the same quantized by onnxruntime.quantization, random labelled samples, and what
ONNX Runtime and NumPy say about the two models.

Run here: python3 models.py   (needs numpy, onnx, onnxruntime)
"""
import json

import numpy as np
import onnx
import onnxruntime as ort
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.quantization import QuantType, quantize_dynamic

rng = np.random.default_rng(5)
N, D, H, C = 240, 16, 24, 5
w1, b1 = rng.normal(size=(D, H)).astype("f") / 4, rng.normal(size=H).astype("f")
w2, b2 = rng.normal(size=(H, C)).astype("f") / 4, rng.normal(size=C).astype("f")
g = helper.make_graph(
    [
        helper.make_node("MatMul", ["x", "w1"], ["h0"], name="/fc1/MatMul"),
        helper.make_node("Add", ["h0", "b1"], ["h1"], name="/fc1/Add"),
        helper.make_node("Relu", ["h1"], ["h2"], name="/relu"),
        helper.make_node("MatMul", ["h2", "w2"], ["h3"], name="/fc2/MatMul"),
        helper.make_node("Add", ["h3", "b2"], ["logits"], name="/fc2/Add"),
    ],
    "classifier",
    [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", D])],
    [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["n", C]), helper.make_tensor_value_info("h2", TensorProto.FLOAT, ["n", H])],
    [numpy_helper.from_array(v, n) for n, v in [("w1", w1), ("b1", b1), ("w2", w2), ("b2", b2)]],
)
m = helper.make_model(g, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
onnx.checker.check_model(m)
onnx.save(m, "fp32.onnx")
quantize_dynamic("fp32.onnx", "int8.onnx", weight_type=QuantType.QInt8)

x = rng.normal(size=(N, D)).astype("f")
run = lambda p: [ort.InferenceSession(p, providers=["CPUExecutionProvider"]).run(None, {"x": v[None]}) for v in x]
a, b = run("fp32.onnx"), run("int8.onnx")
la, lb = np.concatenate([o[0] for o in a]).astype("f8"), np.concatenate([o[0] for o in b]).astype("f8")
ha, hb = np.concatenate([o[1] for o in a]).astype("f8"), np.concatenate([o[1] for o in b]).astype("f8")
# Labels that FP32 gets right about nine times in ten.
label = np.where(rng.random(N) < 0.9, la.argmax(1), rng.integers(0, C, N)).astype(np.int64)
np.savez("samples.npz", x=x, label=label)
ra, rb = la.argmax(1) == label, lb.argmax(1) == label
cos = (la * lb).sum(1) / np.linalg.norm(la, axis=1) / np.linalg.norm(lb, axis=1)
sq = lambda y, z: float(10 * np.log10((y**2).sum() / ((y - z) ** 2).sum()))
json.dump(
    {
        "samples": N, "ref_accuracy": float(ra.mean()), "quant_accuracy": float(rb.mean()), "difference": float((rb * 1.0 - ra).mean()),
        "agreement": float((la.argmax(1) == lb.argmax(1)).mean()), "cosine_mean": float(cos.mean()), "cosine_min": float(cos.min()),
        "cosine_p5": float(np.quantile(cos, 0.05)), "sqnr": sq(la, lb), "sqnr_hidden": sq(ha, hb), "max_abs": float(np.abs(la - lb).max()),
        "by_class": [float(ra[label == c].mean()) for c in range(C)],
    },
    open("models.json", "w"), indent=1,
)
