#!/usr/bin/env python3
"""Builds BERT-base-uncased as ONNX, in the form a PyTorch export has.

    .deps/venv-peers/bin/python tools/models/bert.py [--random]

Reads the TensorFlow checkpoint in .deps/raw/bert-base.zip with numpy alone and
writes .deps/models/bert-base/model.onnx (opset 14, 109.5 M parameters): MatMul
and Add apart, LayerNormalization and GELU decomposed, attention as Reshape,
Transpose, MatMul, Softmax. Inputs input_ids, attention_mask, token_type_ids
int64 [batch,sequence]; outputs last_hidden_state [batch,sequence,768] and
pooler_output [batch,768]. --random fills the same graph with random weights
(speed, size and memory only) and writes .deps/models/bert-base-random.
"""
import argparse
import shutil
import zipfile
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

import tfcheckpoint

ROOT = Path(__file__).resolve().parents[2]
LAYERS, HIDDEN, HEADS, INNER, VOCAB, POSITIONS = 12, 768, 12, 3072, 30522, 512
MASKED = -10000.0


def checkpoint():
    with zipfile.ZipFile(str(ROOT / ".deps/raw/bert-base.zip")) as z:
        find = lambda end: z.read(next(n for n in z.namelist() if n.endswith(end)))
        raw = tfcheckpoint.load(find("variables.index"), find("variables.data-00000-of-00001"))
    return {k.replace("module/", ""): v for k, v in raw.items()}


def random_weights():
    r = np.random.default_rng(0)
    w = {}

    def dense(p, a, b):
        w[p + "/kernel"], w[p + "/bias"] = r.normal(0, 0.02, (a, b)).astype(np.float32), np.zeros(b, np.float32)

    def norm(p):
        w[p + "/gamma"], w[p + "/beta"] = np.ones(HIDDEN, np.float32), np.zeros(HIDDEN, np.float32)

    for name, n in (("word", VOCAB), ("position", POSITIONS), ("token_type", 2)):
        w["bert/embeddings/%s_embeddings" % name] = r.normal(0, 0.02, (n, HIDDEN)).astype(np.float32)
    norm("bert/embeddings/LayerNorm")
    for i in range(LAYERS):
        p = "bert/encoder/layer_%d/" % i
        for x in ("query", "key", "value"):
            dense(p + "attention/self/" + x, HIDDEN, HIDDEN)
        dense(p + "attention/output/dense", HIDDEN, HIDDEN)
        norm(p + "attention/output/LayerNorm")
        dense(p + "intermediate/dense", HIDDEN, INNER)
        dense(p + "output/dense", INNER, HIDDEN)
        norm(p + "output/LayerNorm")
    dense("bert/pooler/dense", HIDDEN, HIDDEN)
    return w


class Builder:
    def __init__(self, weights):
        self.w, self.nodes, self.inits = weights, [], {}

    def const(self, value, dtype):
        a = np.asarray(value, dtype)
        name = "const_%s%dd_%s" % (a.dtype.name, a.ndim, "_".join(str(v) for v in a.reshape(-1)))
        self.inits.setdefault(name, numpy_helper.from_array(a, name))
        return name

    def weight(self, name):
        self.inits.setdefault(name, numpy_helper.from_array(np.ascontiguousarray(self.w[name]), name))
        return name

    def node(self, op, name, *inputs, **attrs):
        self.nodes.append(helper.make_node(op, list(inputs), [name], name=name, **attrs))
        return name

    def dense(self, x, p, out=None):
        y = self.node("MatMul", p + "/MatMul", x, self.weight(p + "/kernel"))
        return self.node("Add", out or p + "/Add", self.weight(p + "/bias"), y)

    def norm(self, x, p, out=None):
        f = np.float32
        mean = self.node("ReduceMean", p + "/mean", x, axes=[-1])
        d = self.node("Sub", p + "/sub", x, mean)
        var = self.node("ReduceMean", p + "/var", self.node("Pow", p + "/pow", d, self.const(2, f)), axes=[-1])
        sd = self.node("Sqrt", p + "/sqrt", self.node("Add", p + "/eps", var, self.const(1e-12, f)))
        y = self.node("Mul", p + "/scaled", self.node("Div", p + "/div", d, sd), self.weight(p + "/gamma"))
        return self.node("Add", out or p + "/Add", y, self.weight(p + "/beta"))

    def gelu(self, x, p):
        f = np.float32
        e = self.node("Erf", p + "/erf", self.node("Div", p + "/div", x, self.const(np.sqrt(2), f)))
        y = self.node("Mul", p + "/mul", x, self.node("Add", p + "/add", e, self.const(1, f)))
        return self.node("Mul", p + "/half", y, self.const(0.5, f))

    def heads(self, x, p, perm):
        """[batch,sequence,768] -> the permuted [batch,sequence,12,64]."""
        y = self.node("Reshape", p + "/split", x, self.split_shape)
        return self.node("Transpose", p + "/heads", y, perm=perm)

    def layer(self, h, mask, i, out):
        p, f = "bert/encoder/layer_%d/" % i, np.float32
        q, k, v = (self.dense(h, p + "attention/self/" + x) for x in ("query", "key", "value"))
        q = self.heads(q, p + "attention/self/query", [0, 2, 1, 3])
        v = self.heads(v, p + "attention/self/value", [0, 2, 1, 3])
        k = self.heads(k, p + "attention/self/key", [0, 2, 3, 1])
        s = self.node("Div", p + "attention/scaled", self.node("MatMul", p + "attention/scores", q, k), self.const(np.sqrt(HIDDEN // HEADS), f))
        s = self.node("Softmax", p + "attention/softmax", self.node("Add", p + "attention/masked", s, mask), axis=-1)
        c = self.node("Transpose", p + "attention/joined", self.node("MatMul", p + "attention/context", s, v), perm=[0, 2, 1, 3])
        c = self.node("Reshape", p + "attention/flat", c, self.joined_shape)
        a = self.node("Add", p + "attention/residual", self.dense(c, p + "attention/output/dense"), h)
        a = self.norm(a, p + "attention/output/LayerNorm")
        m = self.gelu(self.dense(a, p + "intermediate/dense"), p + "intermediate/gelu")
        m = self.node("Add", p + "output/residual", self.dense(m, p + "output/dense"), a)
        return self.norm(m, p + "output/LayerNorm", out)

    def shapes(self):
        """Shape values that the exporter computes from input_ids."""
        i64 = np.int64
        shape = self.node("Shape", "shape", "input_ids")
        dims = [self.node("Unsqueeze", n + "_1", self.node("Gather", n, shape, self.const(k, i64), axis=0), self.const([0], i64))
                for k, n in enumerate(("batch", "sequence"))]
        self.split_shape = self.node("Concat", "split_shape", *dims, self.const([HEADS], i64), self.const([HIDDEN // HEADS], i64), axis=0)
        self.joined_shape = self.node("Concat", "joined_shape", *dims, self.const([HIDDEN], i64), axis=0)
        return dims[1]


def build(weights, name):
    b = Builder(weights)
    i64, f = np.int64, np.float32
    sequence = b.shapes()
    b.inits["position_ids"] = numpy_helper.from_array(np.arange(POSITIONS, dtype=i64)[None], "position_ids")
    positions = b.node("Slice", "positions", "position_ids", b.const([0], i64), sequence, b.const([1], i64), b.const([1], i64))
    e = "bert/embeddings/"
    h = b.node("Add", "embedded", b.node("Gather", "words", b.weight(e + "word_embeddings"), "input_ids"),
               b.node("Gather", "types", b.weight(e + "token_type_embeddings"), "token_type_ids"))
    h = b.node("Add", "placed", h, b.node("Gather", "places", b.weight(e + "position_embeddings"), positions))
    h = b.norm(h, e + "LayerNorm")
    m = b.node("Cast", "mask_float", b.node("Unsqueeze", "mask4", "attention_mask", b.const([1, 2], i64)), to=TensorProto.FLOAT)
    m = b.node("Mul", "mask_bias", b.node("Sub", "mask_off", b.const(1, f), m), b.const(MASKED, f))
    for i in range(LAYERS):
        h = b.layer(h, m, i, "last_hidden_state" if i == LAYERS - 1 else None)
    first = b.node("Gather", "first_token", h, b.const(0, i64), axis=1)
    y = b.node("Gemm", "bert/pooler/dense", first, b.weight("bert/pooler/dense/kernel"), b.weight("bert/pooler/dense/bias"))
    b.node("Tanh", "pooler_output", y)
    ids = [helper.make_tensor_value_info(n, TensorProto.INT64, ["batch", "sequence"]) for n in ("input_ids", "attention_mask", "token_type_ids")]
    outs = [helper.make_tensor_value_info("last_hidden_state", TensorProto.FLOAT, ["batch", "sequence", HIDDEN]),
            helper.make_tensor_value_info("pooler_output", TensorProto.FLOAT, ["batch", HIDDEN])]
    model = helper.make_model(helper.make_graph(b.nodes, name, ids, outs, list(b.inits.values())),
                              opset_imports=[helper.make_opsetid("", 14)], producer_name="fewbit tools/models")
    model.ir_version = 8
    onnx.checker.check_model(model)
    return model


def main():
    ap = argparse.ArgumentParser()
    ap.add_argument("--random", action="store_true", help="random weights, for speed, size and memory only")
    args = ap.parse_args()
    name = "bert-base-random" if args.random else "bert-base"
    out = ROOT / ".deps/models" / name
    out.mkdir(parents=True, exist_ok=True)
    tmp = out / "model.onnx.part"
    onnx.save(build(random_weights() if args.random else checkpoint(), name), str(tmp))
    # The encoder fetched for the demonstration has the same vocabulary.
    shutil.copyfile(str(ROOT / ".deps/models/minilm-fused/tokenizer.json"), str(out / "tokenizer.json"))
    tmp.rename(out / "model.onnx")
    print("wrote", (out / "model.onnx").relative_to(ROOT), (out / "model.onnx").stat().st_size, "bytes")


if __name__ == "__main__":
    main()
