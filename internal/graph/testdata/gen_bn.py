"""Writes batchnorm.json: producers followed by BatchNormalization, the folded
weight and bias computed in numpy float64, checked here against ONNX Runtime.

    python gen_bn.py
"""
import json, os
import numpy as np, onnx, onnxruntime as ort
from onnx import helper, numpy_helper
from gen_fold import pack, onnx_attr

ort.set_default_logger_severity(4)
rng = np.random.default_rng(3)
cases = []


def f(*s): return np.asarray(rng.standard_normal(s), np.float32)


def run(nodes, inits, x):
    g = helper.make_graph(nodes, "g", [helper.make_tensor_value_info("x", 1, x.shape)], [helper.make_tensor_value_info("y", 1, None)],
                          [numpy_helper.from_array(v, k) for k, v in inits.items()])
    m = helper.make_model(g, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    so = ort.SessionOptions()
    so.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    return ort.InferenceSession(m.SerializeToString(), so, providers=["CPUExecutionProvider"]).run(None, {"x": x})[0]


def case(op, x, w, b, channels, eps=1e-5, bias_shape=None, **attrs):
    scale, shift, mean, var = f(channels), f(channels), f(channels), np.abs(f(channels)) + np.float32(.1)
    fac = scale.astype(np.float64) / np.sqrt(var.astype(np.float64) + float(np.float32(eps)))
    w64 = w.astype(np.float64)
    b64 = np.zeros(channels) if b is None else np.broadcast_to(b.astype(np.float64).reshape(-1), channels)
    if op == "Conv":
        w2 = w64 * fac.reshape(-1, *[1] * (w.ndim - 1))
    elif op == "ConvTranspose":
        g = attrs.get("group", 1)
        w2 = w64.copy()
        for i in range(w.shape[0]):
            for o in range(w.shape[1]):
                w2[i, o] *= fac[i // (w.shape[0] // g) * w.shape[1] + o]
    elif op == "Gemm" and attrs.get("transB"):
        w2 = w64 * fac[:, None]
    else:
        w2 = w64 * fac
    b2 = ((attrs.get("beta", 1.0) * b64 - mean) * fac + shift).astype(np.float32)
    w2 = w2.astype(np.float32)
    bn = helper.make_node("BatchNormalization", ["h", "scale", "shift", "mean", "var"], ["y"], epsilon=eps)
    inits = {"w": w, "scale": scale, "shift": shift, "mean": mean, "var": var}
    if b is not None:
        inits["b"] = b
    if op in ("MatMul", "MatMul+Add"):
        nodes = [helper.make_node("MatMul", ["x", "w"], ["h" if op == "MatMul" else "p"])]
        if op == "MatMul+Add":
            nodes.append(helper.make_node("Add", ["b", "p"], ["h"]))
        want = x.astype(np.float64) @ w2 + b2
    else:
        nodes = [helper.make_node(op, ["x", "w"] + (["b"] if b is not None else []), ["h"], **attrs)]
        a2 = {k: v for k, v in attrs.items() if k != "beta"}
        want = run([helper.make_node(op, ["x", "w", "b"], ["y"], **a2)], {"w": w2, "b": b2}, x)
    got = run(nodes + [bn], inits, x)
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5)
    cases.append({"op": op, "attrs": [onnx_attr(a) for a in nodes[0].attribute], "eps": eps, "x": list(x.shape), "w": pack(w),
                  "b": None if b is None else pack(b), "bn": [pack(v) for v in (scale, shift, mean, var)], "w2": pack(w2), "b2": pack(b2)})


case("Conv", f(1, 3, 5, 5), f(4, 3, 3, 3), f(4), 4)
case("Conv", f(1, 3, 5, 5), f(4, 3, 3, 3), None, 4, eps=1e-3)
case("Conv", f(1, 4, 5, 5), f(4, 1, 3, 3), f(4), 4, group=4)
case("Conv", f(1, 2, 6), f(3, 2, 2), f(3), 3)
case("ConvTranspose", f(1, 3, 4, 4), f(3, 2, 2, 2), f(2), 2, strides=[2, 2])
case("ConvTranspose", f(1, 4, 4, 4), f(4, 3, 2, 2), None, 6, group=2)
case("Gemm", f(2, 3), f(3, 4), f(4), 4)
case("Gemm", f(2, 3), f(4, 3), f(1, 4), 4, transB=1, alpha=0.5, beta=2.0)
case("Gemm", f(2, 3), f(3, 4), f(), 4)
case("Gemm", f(2, 3), f(3, 4), None, 4)
case("MatMul", f(2, 3), f(3, 4), None, 4)
case("MatMul+Add", f(2, 3), f(3, 4), f(4), 4)

with open(os.path.join(os.path.dirname(os.path.abspath(__file__)), "batchnorm.json"), "w") as out:
    out.write("[\n" + ",\n".join(json.dumps(c, separators=(",", ":")) for c in cases) + "\n]\n")
print(len(cases), "cases")
