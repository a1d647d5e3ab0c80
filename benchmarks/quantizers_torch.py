"""PyTorch's quantizers, run by quantizers_worker.py in their own environment: PT2E with the settings of its x86 backend,
and torchao's quantize_. Each gets the model as PyTorch's users have it, a module of nn.Linear, nn.LayerNorm and so on,
which is made here of the weights in the ONNX file; the judge runs what was saved in eager mode, where PT2E's integers
are simulated exactly.
"""
import math

import numpy as np
import onnx
import torch
from onnx import numpy_helper
from torch import nn
from torch.nn import functional as F

torch.set_grad_enabled(False)


class Layer(nn.Module):
    def __init__(self, width, inner, heads, eps):
        super().__init__()
        self.heads = heads
        self.q, self.k, self.v, self.o = (nn.Linear(width, width) for _ in range(4))
        self.up, self.down = nn.Linear(width, inner), nn.Linear(inner, width)
        self.first, self.second = nn.LayerNorm(width, eps), nn.LayerNorm(width, eps)

    def forward(self, x):
        split = lambda y: y.unflatten(-1, (self.heads, -1)).transpose(1, 2)
        y = F.scaled_dot_product_attention(split(self.q(x)), split(self.k(x)), split(self.v(x)))
        x = self.first(x + self.o(y.transpose(1, 2).flatten(2)))
        return self.second(x + self.down(F.gelu(self.up(x))))


class Encoder(nn.Module):
    """BERT without its pooler; a text is alone and unpadded, so that there is no mask."""

    def __init__(self, weights):
        super().__init__()
        w = iter(weights)
        take = lambda: nn.Parameter(torch.from_numpy(next(w).copy()), requires_grad=False)

        def linear(m):
            m.weight, m.bias = nn.Parameter(take().T.contiguous(), requires_grad=False), take()

        def norm(m):
            m.weight, m.bias = take(), take()

        words, kinds, places = take(), take(), take()
        width = words.shape[1]
        self.words, self.places = (nn.Embedding.from_pretrained(t) for t in (words, places))
        self.kind = kinds[:1]
        self.norm = nn.LayerNorm(width, 1e-12)
        norm(self.norm)
        self.layers = nn.ModuleList()
        for _ in range((len(weights) - 5) // 16):
            layer = Layer(width, 4 * width, width // (32 if width == 384 else 64), 1e-12)
            for m in (layer.q, layer.k, layer.v, layer.o):
                linear(m)
            norm(layer.first)
            linear(layer.up)
            linear(layer.down)
            norm(layer.second)
            self.layers.append(layer)

    def forward(self, ids):
        x = self.norm(self.words(ids) + self.kind + self.places(torch.arange(ids.shape[1])))
        for layer in self.layers:
            x = layer(x)
        return x


def in_order(graph):
    """The weights in the order in which the graph reads them."""
    have, seen = {t.name: t for t in graph.initializer}, []
    for n in graph.node:
        for name in n.input:
            t = have.get(name)
            if t is not None and t.data_type == onnx.TensorProto.FLOAT and math.prod(t.dims) > 1 and name not in seen:
                seen.append(name)
    return [numpy_helper.to_array(have[name]) for name in seen]


class Convolutions(nn.Module):
    """A network of Conv, BatchNormalization, Clip to 0..6, Add, pooling and one Gemm: EfficientNet-lite0."""

    def __init__(self, graph):
        super().__init__()
        have = {t.name: torch.from_numpy(numpy_helper.to_array(t).copy()) for t in graph.initializer}
        keep = lambda t: nn.Parameter(t, requires_grad=False)
        self.steps, self.parts, self.entry, self.exit = [], nn.ModuleList(), graph.input[0].name, graph.output[0].name
        for n in graph.node:
            a = {x.name: onnx.helper.get_attribute_value(x) for x in n.attribute}
            if n.op_type == "Conv":
                w = have[n.input[1]]
                pads = a.get("pads", [0, 0, 0, 0])
                m = nn.Conv2d(w.shape[1] * a.get("group", 1), w.shape[0], tuple(w.shape[2:]), tuple(a["strides"]), 0 if pads[:2] != pads[2:] else tuple(pads[:2]), groups=a.get("group", 1), bias=len(n.input) > 2)
                m.weight = keep(w)
                if len(n.input) > 2:
                    m.bias = keep(have[n.input[2]])
                if pads[:2] != pads[2:]:
                    m = nn.Sequential(nn.ZeroPad2d((pads[1], pads[3], pads[0], pads[2])), m)
            elif n.op_type == "BatchNormalization":
                scale, bias, mean, var = (have[x] for x in n.input[1:5])
                m = nn.BatchNorm2d(len(scale), a.get("epsilon", 1e-5))
                m.weight, m.bias, m.running_mean, m.running_var = keep(scale), keep(bias), mean, var
            elif n.op_type == "Gemm":
                w = have[n.input[1]]
                w = w if a.get("transB") else w.T.contiguous()
                m = nn.Linear(w.shape[1], w.shape[0])
                m.weight, m.bias = keep(w), keep(have[n.input[2]])
            else:
                m = {"Clip": nn.ReLU6, "GlobalAveragePool": lambda: nn.AdaptiveAvgPool2d(1), "Flatten": nn.Flatten, "Add": nn.Identity}[n.op_type]()
            self.parts.append(m)
            self.steps.append((n.op_type == "Add", [x for x in n.input if x not in have], n.output[0]))

    def forward(self, x):
        v = {self.entry: x}
        for part, (add, takes, gives) in zip(self.parts, self.steps):
            v[gives] = v[takes[0]] + v[takes[1]] if add else part(v[takes[0]])
        return v[self.exit]


def module(path):
    """The module, and how its input may vary."""
    graph = onnx.load(path).graph
    if any(n.op_type == "Conv" for n in graph.node):
        return Convolutions(graph).eval(), {"x": {}}
    weights = in_order(graph)
    weights = weights[:5 + (len(weights) - 5) // 16 * 16]  # the pooler is left out
    return Encoder(weights).eval(), {"ids": {1: torch.export.Dim("tokens", min=2, max=512)}}


def inputs(feeds):
    return [torch.from_numpy(next(iter(f.values()))) for f in feeds]


def save(model, example, shapes, out):
    torch.export.save(torch.export.export(model, (example,), dynamic_shapes=tuple(shapes.values())), out)


def pt2e(model, feeds, out):
    """Static INT8 as PyTorch's guide for x86 has it: histograms of activations, one scale a channel for weights."""
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e
    from torchao.quantization.pt2e.quantizer.x86_inductor_quantizer import X86InductorQuantizer, get_default_x86_inductor_quantization_config
    m, shapes = module(model)
    x = inputs(feeds)
    longest = max(x, key=lambda t: t.shape[1])
    graph = torch.export.export(m, (longest,), dynamic_shapes=tuple(shapes.values())).module()
    ready = prepare_pt2e(graph, X86InductorQuantizer().set_global(get_default_x86_inductor_quantization_config()))
    for t in x:
        ready(t)
    save(convert_pt2e(ready), longest, shapes, out)


def ao(config):
    def make(model, feeds, out):
        from torchao.quantization import quantize_
        m, shapes = module(model)
        quantize_(m, config())
        torch.save({"of": model, "state": m.state_dict()}, out)
    return make


def smooth(model, feeds, out):
    """SmoothQuant before scales by row, alpha 0.5 as by default, with the observer that takes texts of unlike lengths."""
    from torchao.prototype.smoothquant import SmoothQuantConfig
    from torchao.quantization import quantize_
    m, _ = module(model)
    step = lambda name: quantize_(m, SmoothQuantConfig(per_row(), name, use_running_absmax=True))
    step("prepare")
    for t in inputs(feeds):
        m(t)
    step("prepare_for_smoothquant_smoothing_factor")
    step("convert")
    torch.save({"of": model, "state": m.state_dict()}, out)


def per_row():
    from torchao.quantization import Int8DynamicActivationInt8WeightConfig
    return Int8DynamicActivationInt8WeightConfig()


def four_bits(algorithm):
    def config():
        from torchao.quantization import IntxWeightOnlyConfig
        from torchao.quantization.granularity import PerGroup
        return IntxWeightOnlyConfig(torch.int4, PerGroup(32), intx_choose_qparams_algorithm=algorithm)
    return config


def judge(model, feeds, out):
    if out.endswith("-static.npy"):
        import torchao.quantization.pt2e.quantize_pt2e  # noqa: F401, its operators
        m = torch.export.load(model).module()
    else:
        saved = torch.load(model, weights_only=False)
        m, _ = module(saved["of"])
        m.load_state_dict(saved["state"], assign=True)
    y = [m(t)[0].numpy() for t in inputs(feeds)]
    np.save(out, np.stack([v if v.ndim == 1 else v.mean(0) for v in y]))


MAKE = {"torch-static": pt2e, "torch-row": ao(per_row), "torch-smooth": smooth, "torch-int4": ao(four_bits("affine")), "torch-hqq": ao(four_bits("hqq_scale_only"))}
