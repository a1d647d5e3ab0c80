#!/usr/bin/env python3
"""Writes the graph of ResNet-50 with random weights, for size, speed and memory.

    .deps/venv-peers/bin/python tools/models/resnet50.py

Writes .deps/models/resnet50-random/model.onnx, opset 13, 25.6 M parameters, as
an exporter leaves it: Conv, BatchNormalization, Relu apart. Input
[batch,3,224,224], output logits [batch,1000]. No weights that may be changed
and passed on were found, so nothing here says anything about accuracy.
Architecture: He et al. 2015, table 1, with the stride in the 3x3 convolution
(torchvision's "v1.5"). Weights: He's normal distribution, so that activations
keep their size; the last BatchNormalization of each block has a quarter of the
gain, as a trained one has less than the shortcut.
"""
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

ROOT = Path(__file__).resolve().parents[2]
OUT = ROOT / ".deps/models/resnet50-random"
SIZE, CLASSES, EXPANSION, EPSILON = 224, 1000, 4, 1e-5
STAGES = ((3, 64, 1), (4, 128, 2), (6, 256, 2), (3, 512, 2))  # blocks, width, stride of the first


class Builder:
    def __init__(self, seed=0):
        self.random, self.nodes, self.inits, self.parameters = np.random.default_rng(seed), [], [], 0

    def init(self, name, array):
        array = np.ascontiguousarray(array, np.float32)
        self.inits.append(numpy_helper.from_array(array, name))
        self.parameters += array.size
        return name

    def node(self, op, name, *inputs, **attrs):
        self.nodes.append(helper.make_node(op, list(inputs), [name], name=name, **attrs))
        return name

    def conv(self, x, name, cin, cout, kernel, stride=1, gain=1.0, relu=True):
        """Conv without bias, BatchNormalization and optionally Relu."""
        r = self.random
        w = self.init(name + ".weight", r.normal(0, np.sqrt(2 / (cin * kernel * kernel)), (cout, cin, kernel, kernel)))
        y = self.node("Conv", name, x, w, kernel_shape=[kernel] * 2, strides=[stride] * 2, pads=[kernel // 2] * 4)
        bn = [self.init("%s.bn.%s" % (name, part), value) for part, value in (
            ("weight", gain * r.uniform(0.8, 1.2, cout)), ("bias", r.normal(0, 0.1, cout)), ("mean", r.normal(0, 0.1, cout)), ("var", r.uniform(0.8, 1.2, cout)))]
        y = self.node("BatchNormalization", name + "/bn", y, *bn, epsilon=EPSILON)
        return self.node("Relu", name + "/relu", y) if relu else y

    def block(self, x, name, cin, width, stride):
        cout = width * EXPANSION
        y = self.conv(x, name + ".conv1", cin, width, 1)
        y = self.conv(y, name + ".conv2", width, width, 3, stride)
        y = self.conv(y, name + ".conv3", width, cout, 1, gain=0.25, relu=False)
        if cin != cout:
            x = self.conv(x, name + ".downsample", cin, cout, 1, stride, relu=False)
        return self.node("Relu", name + "/relu", self.node("Add", name + "/add", y, x)), cout


def build():
    b = Builder()
    x, channels = b.conv("input", "conv1", 3, 64, 7, 2), 64
    x = b.node("MaxPool", "pool", x, kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1])
    for i, (blocks, width, stride) in enumerate(STAGES, 1):
        for k in range(blocks):
            x, channels = b.block(x, "layer%d.%d" % (i, k), channels, width, stride if k == 0 else 1)
    x = b.node("Flatten", "flat", b.node("GlobalAveragePool", "mean", x), axis=1)
    b.node("Gemm", "logits", x, b.init("fc.weight", b.random.normal(0, 0.01, (CLASSES, channels))), b.init("fc.bias", np.zeros(CLASSES)), transB=1)
    graph = helper.make_graph(b.nodes, "resnet50", [helper.make_tensor_value_info("input", TensorProto.FLOAT, ["batch", 3, SIZE, SIZE])],
                              [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", CLASSES])], b.inits)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], producer_name="fewbit tools/models")
    model.ir_version = 8
    onnx.checker.check_model(model)
    return model, b.parameters


def main():
    OUT.mkdir(parents=True, exist_ok=True)
    model, parameters = build()
    tmp = OUT / "model.onnx.part"
    onnx.save(model, str(tmp))
    tmp.rename(OUT / "model.onnx")
    print("wrote", (OUT / "model.onnx").relative_to(ROOT), (OUT / "model.onnx").stat().st_size, "bytes,", parameters, "numbers")


if __name__ == "__main__":
    main()
