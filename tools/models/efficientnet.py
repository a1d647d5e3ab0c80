#!/usr/bin/env python3
"""Builds EfficientNet-lite0 as ONNX from the fetched PyTorch weights.

    .deps/venv-peers/bin/python tools/models/efficientnet.py

Reads .deps/raw/efficientnet-lite0.pth with numpy alone and writes
.deps/models/efficientnet-lite0/model.onnx, opset 13, as an exporter leaves it:
Conv, BatchNormalization and Clip apart, TensorFlow's "SAME" padding (one more
at the end where it is odd) on the convolutions. Input [batch,3,224,224], RGB
scaled to -1..1; output logits [batch,1000].
Architecture: efficientnet_lite_builder.py (TensorFlow), efficientnet-lite-pytorch.
"""
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

import torchfile

ROOT = Path(__file__).resolve().parents[2]
OUT = ROOT / ".deps/models/efficientnet-lite0"
SIZE, EPSILON = 224, 1e-3
# repeats, kernel, stride, expansion, input and output channels of each stage
STAGES = ((1, 3, 1, 1, 32, 16), (2, 3, 2, 6, 16, 24), (2, 5, 2, 6, 24, 40), (3, 3, 2, 6, 40, 80),
          (3, 5, 1, 6, 80, 112), (4, 5, 2, 6, 112, 192), (1, 3, 1, 6, 192, 320))


class Builder:
    def __init__(self, weights):
        self.weights, self.nodes, self.inits, self.used = weights, [], {}, set()

    def init(self, name):
        self.used.add(name)
        self.inits[name] = numpy_helper.from_array(self.weights[name].astype(np.float32), name)
        return name

    def node(self, op, name, inputs, **attrs):
        self.nodes.append(helper.make_node(op, inputs, [name], name=name, **attrs))
        return name

    def conv(self, x, size, conv, bn, stride=1, groups=1, relu6=True):
        """Conv without bias, BatchNormalization and optionally ReLU6; returns its value and size."""
        kernel = self.weights[conv + ".weight"].shape[2]
        out = -(-size // stride)
        pad = max((out - 1) * stride + kernel - size, 0)
        a, b = pad // 2, pad - pad // 2
        x = self.node("Conv", conv, [x, self.init(conv + ".weight")], kernel_shape=[kernel, kernel], strides=[stride, stride],
                      pads=[a, a, b, b], group=groups, dilations=[1, 1])
        x = self.node("BatchNormalization", bn, [x] + [self.init(bn + "." + p) for p in ("weight", "bias", "running_mean", "running_var")], epsilon=EPSILON)
        if relu6:
            x = self.node("Clip", bn + ".relu6", [x, "zero", "six"])
        return x, out

    def block(self, x, size, p, stride, expand, cin, cout):
        y = x
        if expand != 1:
            y, _ = self.conv(y, size, p + "_expand_conv", p + "_bn0")
        y, out = self.conv(y, size, p + "_depthwise_conv", p + "_bn1", stride, cin * expand)
        y, _ = self.conv(y, out, p + "_project_conv", p + "_bn2", relu6=False)
        if stride == 1 and cin == cout:
            y = self.node("Add", p + "add", [y, x])
        return y, out


def build(weights):
    b = Builder(weights)
    b.inits["zero"] = numpy_helper.from_array(np.float32(0), "zero")
    b.inits["six"] = numpy_helper.from_array(np.float32(6), "six")
    x, size = b.conv("input", SIZE, "_conv_stem", "_bn0", 2)
    i = 0
    for repeats, _, stride, expand, cin, cout in STAGES:
        for r in range(repeats):
            x, size = b.block(x, size, "_blocks.%d." % i, stride if r == 0 else 1, expand, cin if r == 0 else cout, cout)
            i += 1
    x, _ = b.conv(x, size, "_conv_head", "_bn1")
    x = b.node("GlobalAveragePool", "pool", [x])
    x = b.node("Flatten", "flat", [x], axis=1)
    b.node("Gemm", "logits", [x, b.init("_fc.weight"), b.init("_fc.bias")], transB=1)
    left = {n for n in weights if not n.endswith("num_batches_tracked")} - b.used
    if left:
        raise ValueError("weights without a place in the graph: %s" % sorted(left))
    graph = helper.make_graph(b.nodes, "efficientnet-lite0",
                              [helper.make_tensor_value_info("input", TensorProto.FLOAT, ["batch", 3, SIZE, SIZE])],
                              [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 1000])], list(b.inits.values()))
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], producer_name="fewbit tools/models")
    model.ir_version = 8
    onnx.checker.check_model(model)
    return model


def main():
    OUT.mkdir(parents=True, exist_ok=True)
    tmp = OUT / "model.onnx.part"
    onnx.save(build(torchfile.load(ROOT / ".deps/raw/efficientnet-lite0.pth")), str(tmp))
    tmp.rename(OUT / "model.onnx")
    print("wrote", (OUT / "model.onnx").relative_to(ROOT), (OUT / "model.onnx").stat().st_size, "bytes")


if __name__ == "__main__":
    main()
