#!/usr/bin/env python3
"""Builds CLIP models as ONNX, in the form a PyTorch export has.

    .deps/venv-clip/bin/python tools/models/clip.py [--random]

Writes .deps/models/clip-fashion/model.onnx (opset 17) from the weights of
clip_train.py, with receipt.json: what trained it and the SHA-256 of the file.
Inputs pixel_values [batch,1,28,28], the images of Fashion-MNIST normalized by
receipt.json's mean and std, and input_ids int64 [batch,texts,16], each image's
captions in CLIP's byte pair encoding. Outputs logits_per_image [batch,texts],
the scaled cosine plus the matching score; image_embeds [batch,96] and
text_embeds [batch,texts,96], of length 1.

--random writes .deps/models/clip-vit-b32-random instead: CLIP ViT-B/32 at its
full size (151 M parameters; Radford et al. 2021, table 20) with random weights,
for size, memory and speed only. It has no matching head.
"""
import argparse
import hashlib
import json
import math
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

ROOT = Path(__file__).resolve().parents[2]
DEPS = Path(os.environ.get("FEWBIT_DEPS") or ROOT / ".deps")
VOCAB, MASKED, EPSILON = 49408, -1e4, 1e-5


@dataclass
class Tower:
    width: int
    heads: int
    layers: int
    tokens: int


@dataclass
class Shape:
    name: str
    size: int  # of the image
    channels: int
    stem: tuple  # of convolutions with batch normalization: channels out, stride; () for one over patches
    patch: int
    image: Tower
    text: Tower
    embed: int
    match: bool


FASHION = Shape("clip-fashion", 28, 1, ((16, 1), (32, 2), (64, 2), (96, 2)), 0, Tower(96, 4, 2, 17), Tower(96, 4, 3, 16), 96, True)
VIT_B32 = Shape("clip-vit-b32-random", 224, 3, (), 32, Tower(768, 12, 12, 50), Tower(512, 8, 12, 77), 512, False)


class Random(dict):
    """Weights by name, made when they are asked for: normal with the deviation of a trained one."""

    def __init__(self):
        self.r = np.random.default_rng(0)

    def get(self, name, *dims):
        if name == "scale":
            return np.float32(math.log(100))
        if name.endswith(".b"):
            return np.zeros(dims, np.float32)
        if name.endswith(".g"):
            return np.ones(dims, np.float32)
        if name.endswith((".table", ".positions", ".class")):
            return (0.02 * self.r.standard_normal(dims, np.float32))
        return self.r.standard_normal(dims, np.float32) / np.float32(math.sqrt(np.prod(dims[:-1])))


class Trained(dict):
    """Weights of clip_train.py by name; left tells which had no place in the graph."""

    def __init__(self, path):
        super().__init__(np.load(str(path)))
        self.left = set(self)

    def get(self, name, *dims):
        w = self[name]
        self.left.discard(name)
        if w.size != np.prod(dims, dtype=int):
            raise ValueError("weight %s has the shape %s, expected %s" % (name, w.shape, dims))
        return np.asarray(w.reshape(dims), np.float32, order="C")


class Builder:
    def __init__(self, shape, weights):
        self.s, self.w, self.nodes, self.inits = shape, weights, [], {}

    def node(self, op, name, *inputs, **attrs):
        self.nodes.append(helper.make_node(op, list(inputs), [name], name=name, **attrs))
        return name

    def put(self, name, array):
        self.inits[name] = numpy_helper.from_array(np.asarray(array, order="C"), name)
        return name

    def weight(self, name, *dims):
        return name if name in self.inits else self.put(name, self.w.get(name, *dims))

    def const(self, value, dtype=np.int64):
        a = np.asarray(value, dtype)
        return self.put("const_%s%dd_%s" % (a.dtype.name, a.ndim, "_".join(str(v) for v in a.reshape(-1))), a)

    def dense(self, x, name, a, b):
        y = self.node("MatMul", name, x, self.weight(name + ".w", a, b))
        return self.node("Add", name + "/bias", self.weight(name + ".b", b), y)

    def norm(self, x, name, n):
        return self.node("LayerNormalization", name, x, self.weight(name + ".g", n), self.weight(name + ".b", n), axis=-1, epsilon=EPSILON)

    def attention(self, x, y, name, t, tokens, others, mask=None):
        """x [n,tokens,d] attends to y [n,others,d]."""
        d, part = t.width, t.width // t.heads

        def heads(of, which, length, perm):
            z = self.dense(of, name + "." + which, d, d)
            return self.node("Transpose", "%s.%s/heads" % (name, which), self.node("Reshape", "%s.%s/split" % (name, which), z, self.const([-1, length, t.heads, part])), perm=perm)
        q, k, v = heads(x, "q", tokens, [0, 2, 1, 3]), heads(y, "k", others, [0, 2, 3, 1]), heads(y, "v", others, [0, 2, 1, 3])
        a = self.node("Mul", name + "/scaled", self.node("MatMul", name + "/scores", q, k), self.const(part ** -0.5, np.float32))
        if mask is not None:
            a = self.node("Add", name + "/masked", a, mask)
        a = self.node("Softmax", name + "/softmax", a, axis=-1)
        a = self.node("Transpose", name + "/joined", self.node("MatMul", name + "/context", a, v), perm=[0, 2, 1, 3])
        return self.dense(self.node("Reshape", name + "/flat", a, self.const([-1, tokens, d])), name + ".o", d, d)

    def block(self, x, name, t, mask=None):
        d = t.width
        y = self.norm(x, name + ".ln1", d)
        x = self.node("Add", name + ".attn/residual", x, self.attention(y, y, name + ".attn", t, t.tokens, t.tokens, mask))
        y = self.dense(self.norm(x, name + ".ln2", d), name + ".up", d, 4 * d)
        g = self.node("Sigmoid", name + ".gelu/sigmoid", self.node("Mul", name + ".gelu/scaled", y, self.const(1.702, np.float32)))
        y = self.dense(self.node("Mul", name + ".gelu", y, g), name + ".down", 4 * d, d)
        return self.node("Add", name + "/residual", x, y)

    def unit(self, x, name, out):
        n = self.node("ReduceL2", name + "/norm", x, axes=[-1], keepdims=1)
        return self.node("Div", out, x, n)

    def image(self):
        s, t = self.s, self.s.image
        x, last = "pixel_values", s.channels
        for i, (out, stride) in enumerate(s.stem):
            n = "image.stem%d" % i
            w = self.w.get(n + ".w", 3, 3, last, out).transpose(3, 2, 0, 1)
            x = self.node("Conv", n, x, self.put(n + ".w", w), kernel_shape=[3, 3], strides=[stride, stride], pads=[1, 1, 1, 1])
            x = self.node("BatchNormalization", n + "/bn", x, *[self.weight(n + p, out) for p in (".g", ".b", ".mean", ".var")], epsilon=EPSILON)
            x, last = self.node("Relu", n + "/relu", x), out
        if not s.stem:
            w = self.w.get("image.patch", t.width, s.channels, s.patch, s.patch)
            x = self.node("Conv", "image.patch", x, self.put("image.patch.w", w), kernel_shape=[s.patch] * 2, strides=[s.patch] * 2)
        x = self.node("Reshape", "image/flat", x, self.const([0, t.width, -1]))
        x = self.node("Transpose", "image/tokens", x, perm=[0, 2, 1])
        batch = self.node("Slice", "image/batch", self.node("Shape", "image/shape", x), self.const([0]), self.const([1]))
        c = self.put("image.class", self.w.get("image.class", 1, 1, t.width))
        c = self.node("Expand", "image/class", c, self.node("Concat", "image/class_shape", batch, self.const([1, t.width]), axis=0))
        x = self.node("Add", "image/placed", self.node("Concat", "image/joined", c, x, axis=1), self.weight("image.positions", t.tokens, t.width))
        if not s.stem:
            x = self.norm(x, "image.pre", t.width)
        for i in range(t.layers):
            x = self.block(x, "image.%d" % i, t)
        x = self.norm(x, "image.ln", t.width)
        first = self.node("Gather", "image/first", x, self.const(0), axis=1)
        e = self.node("MatMul", "image.projection", first, self.weight("image.proj", t.width, s.embed))
        return x, self.unit(e, "image", "image_embeds")

    def text(self):
        s, t = self.s, self.s.text
        ids = self.node("Reshape", "text/ids", "input_ids", self.const([-1, t.tokens]))
        # The end token has the largest id.
        end = self.node("Unsqueeze", "text/end", self.node("ArgMax", "text/last", ids, axis=1, keepdims=0), self.const([1]))
        x = self.node("Gather", "text.embedding", self.weight("text.table", VOCAB, t.width), ids)
        x = self.node("Add", "text/placed", x, self.weight("text.positions", t.tokens, t.width))
        mask = self.put("causal_mask", np.triu(np.full((t.tokens, t.tokens), MASKED, np.float32), 1))
        for i in range(t.layers):
            x = self.block(x, "text.%d" % i, t, mask)
        x = self.norm(x, "text.ln", t.width)
        e = self.node("GatherND", "text/at_end", x, end, batch_dims=1)
        e = self.node("MatMul", "text.projection", e, self.weight("text.proj", t.width, s.embed))
        shape = self.node("Slice", "text/shape", self.node("Shape", "text/shape_ids", "input_ids"), self.const([0]), self.const([2]))
        e = self.node("Reshape", "text/embeds", e, self.node("Concat", "text/embeds_shape", shape, self.const([s.embed]), axis=0))
        return x, end, mask, shape, self.unit(e, "text", "text_embeds")

    def match(self, image, text, end, mask, shape):
        """The text's tokens attend to the image's; the score is read at the end token."""
        t, d = self.s.text, self.s.text.width
        batch = self.node("Slice", "match/batch", shape, self.const([0]), self.const([1]))
        x = self.node("Reshape", "match/tokens", text, self.node("Concat", "match/shape", batch, self.const([-1, d]), axis=0))
        y = self.norm(x, "match.lnc", d)
        # Each image has texts * tokens queries: that number is not fixed, so split and join keep it.
        name = "match.cross"

        def heads(of, which, perm):
            z = self.dense(of, "%s.%s" % (name, which), d, d)
            return self.node("Transpose", "%s.%s/heads" % (name, which), self.node("Reshape", "%s.%s/split" % (name, which), z, self.const([0, -1, t.heads, d // t.heads])), perm=perm)
        q, k, v = heads(y, "q", [0, 2, 1, 3]), heads(image, "k", [0, 2, 3, 1]), heads(image, "v", [0, 2, 1, 3])
        a = self.node("Mul", name + "/scaled", self.node("MatMul", name + "/scores", q, k), self.const((d // t.heads) ** -0.5, np.float32))
        a = self.node("Softmax", name + "/softmax", a, axis=-1)
        a = self.node("Transpose", name + "/joined", self.node("MatMul", name + "/context", a, v), perm=[0, 2, 1, 3])
        a = self.dense(self.node("Reshape", name + "/flat", a, self.const([0, -1, d])), name + ".o", d, d)
        x = self.node("Reshape", "match/each", self.node("Add", name + "/residual", x, a), self.const([-1, t.tokens, d]))
        x = self.block(x, "match.0", t, mask)
        x = self.norm(self.node("GatherND", "match/at_end", x, end, batch_dims=1), "match.ln", d)
        return self.node("Reshape", "match/score", self.dense(x, "match.head", d, 1), shape)

    def build(self):
        s = self.s
        image, ie = self.image()
        text, end, mask, shape, te = self.text()
        e = self.node("Unsqueeze", "logits/image", ie, self.const([2]))
        c = self.node("Squeeze", "logits/cosine", self.node("MatMul", "logits/product", te, e), self.const([2]))
        scale = self.put("logit_scale", np.exp(self.w.get("scale")))
        if s.match:
            c = self.node("Mul", "logits/scaled", c, scale)
            self.node("Add", "logits_per_image", c, self.match(image, text, end, mask, shape))
        else:
            self.node("Mul", "logits_per_image", c, scale)
        inputs = [helper.make_tensor_value_info("pixel_values", TensorProto.FLOAT, ["batch", s.channels, s.size, s.size]),
                  helper.make_tensor_value_info("input_ids", TensorProto.INT64, ["batch", "texts", s.text.tokens])]
        outputs = [helper.make_tensor_value_info("logits_per_image", TensorProto.FLOAT, ["batch", "texts"]),
                   helper.make_tensor_value_info("image_embeds", TensorProto.FLOAT, ["batch", s.embed]),
                   helper.make_tensor_value_info("text_embeds", TensorProto.FLOAT, ["batch", "texts", s.embed])]
        graph = helper.make_graph(self.nodes, s.name, inputs, outputs, list(self.inits.values()))
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], producer_name="fewbit tools/models")
        model.ir_version = 8
        onnx.checker.check_model(model, full_check=True)
        return model


def main():
    ap = argparse.ArgumentParser()
    ap.add_argument("--random", action="store_true", help="ViT-B/32 with random weights, for speed, size and memory only")
    shape = VIT_B32 if ap.parse_args().random else FASHION
    out = DEPS / "models" / shape.name
    out.mkdir(parents=True, exist_ok=True)
    weights = Random() if shape is VIT_B32 else Trained(out / "weights.npz")
    model = Builder(shape, weights).build()
    if shape is FASHION and weights.left:
        raise ValueError("weights without a place in the graph: %s" % sorted(weights.left))
    tmp = out / "model.onnx.part"
    onnx.save(model, str(tmp))
    if shape is FASHION:
        facts = json.loads((out / "train.json").read_text())
        facts["sha256"] = hashlib.sha256(tmp.read_bytes()).hexdigest()
        (out / "receipt.json").write_text(json.dumps(facts, indent=1) + "\n")
    tmp.rename(out / "model.onnx")
    print("wrote", "%s/model.onnx," % shape.name, (out / "model.onnx").stat().st_size, "bytes")


if __name__ == "__main__":
    main()
