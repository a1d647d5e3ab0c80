"""Runs what `fewbit tflite` writes in LiteRT beside ONNX Runtime.

Small graphs hold every operator that has a form, with every layout and padding that needs care, as float models and as
quantized ones; the float ones must agree to rounding, the quantized ones within codes. Two real graphs follow where they
have been made (make deps, make example-image).

    litert.py FEWBIT OUT_FOLDER [MODEL.onnx SAMPLES.npz]...
"""
import json
import pathlib
import subprocess
import sys

import numpy as np
import onnx
import onnxruntime
from ai_edge_litert.interpreter import Interpreter
from onnx import TensorProto, helper, numpy_helper
from onnxruntime import quantization

RNG = np.random.default_rng(7)
SAMPLES = 24  # to calibrate with
FLOAT_DB = 90.0  # both sum in FP32, in another order
# Kernels round half away from zero where ONNX Runtime rounds to even, and multiply by 32-bit fixed point: single codes
# differ by one. A wrong scale, order or padding leaves less than 15 dB.
INTEGER_DB = 28.0
WIDE_DB = 60.0  # codes are 256 times finer
HALF_MIN = 256  # elements from which a weight is stored as float16
failures = []


class Graph:
    """A small graph under construction."""

    def __init__(self, *dims, opset=17):
        self.nodes, self.inits, self.opset = [], [], opset
        self.input = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", *dims])
        self.dims = dims

    def const(self, array):
        name = f"c{len(self.inits)}"
        self.inits.append(numpy_helper.from_array(np.ascontiguousarray(array), name))
        return name

    def weight(self, *dims):
        return self.const((RNG.standard_normal(dims) / np.sqrt(np.prod(dims[1:]) or 1)).astype(np.float32))

    def op(self, kind, *inputs, **attributes):
        name = f"v{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, list(inputs), [name], name=f"{kind}{len(self.nodes)}", **attributes))
        return name

    def conv(self, x, cin, cout, k=3, bias=True, **attributes):
        group = attributes.get("group", 1)
        w = [self.weight(cout, cin // group, k, k)]
        if bias:
            w.append(self.const(RNG.standard_normal(cout).astype(np.float32) * 0.1))
        return self.op("Conv", x, *w, kernel_shape=[k, k], **attributes)

    def save(self, path, *outputs):
        values = [helper.make_empty_tensor_value_info(o) for o in outputs]
        graph = helper.make_graph(self.nodes, "g", [self.input], values, self.inits)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", self.opset)], ir_version=8)
        model = onnx.shape_inference.infer_shapes(model)
        onnx.checker.check_model(model)
        onnx.save(model, path)


def cases():
    """Yields (name, graph, outputs, types of operators that may stay float, True for any but one); what makes an output of the model stays float."""
    g = Graph(3, 15, 17)
    x = g.op("Relu", g.conv("x", 3, 8, pads=[1, 1, 1, 1], strides=[2, 2]))
    x = g.op("Clip", g.conv(x, 8, 8, group=8, pads=[0, 0, 1, 1], strides=[2, 2]), g.const(np.float32(0)), g.const(np.float32(6)))
    x = g.conv(x, 8, 12, k=1, bias=False)
    yield "strides and odd sizes", g, [g.op("Flatten", g.op("GlobalAveragePool", x))], True

    g = Graph(4, 12, 12)
    x = g.conv("x", 4, 8, pads=[2, 2, 2, 2], dilations=[2, 2])
    y = g.conv(x, 8, 16, group=8, pads=[1, 1, 1, 1])  # depth multiplier 2
    z = g.conv(y, 16, 8, group=4, k=1)  # in groups
    yield "dilations, multipliers and groups", g, [g.conv(g.op("Relu", g.op("Add", z, x)), 8, 2)], True

    g = Graph(3, 9, 9)
    x = g.conv("x", 3, 6, auto_pad="SAME_LOWER", strides=[2, 2])
    x = g.op("MaxPool", x, kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1])
    yield "pools with a border", g, [g.conv(g.conv(x, 6, 4, auto_pad="SAME_UPPER"), 4, 4, k=1)], True

    g = Graph(5, 11, 11)
    x = g.op("MaxPool", g.conv("x", 5, 6), kernel_shape=[2, 2], strides=[2, 2], ceil_mode=1)
    x = g.op("AveragePool", x, kernel_shape=[3, 3], strides=[1, 1], pads=[1, 1, 1, 1])
    yield "pools that round up, averages", g, [g.conv(x, 6, 4, k=1)], True

    g = Graph(4, 8, 8)
    x = g.op("AveragePool", g.conv("x", 4, 4, k=1), kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1], count_include_pad=1)
    x = g.op("Pad", x, g.const(np.array([0, 0, 1, 2, 0, 0, 0, 1], np.int64)))
    yield "borders", g, [g.conv(x, 4, 4)], True

    g = Graph(4, 6, 6)  # squeeze and excitation, as MobileNetV3 has it
    x = g.op("HardSwish", g.conv("x", 4, 8, k=1))
    s = g.op("ReduceMean", x, axes=[2, 3], keepdims=1)
    s = g.op("HardSigmoid", g.conv(g.op("Relu", g.conv(s, 8, 4, k=1)), 4, 8, k=1), alpha=1 / 6, beta=0.5)
    yield "squeeze and excitation", g, [g.conv(g.op("Mul", x, s), 8, 4, k=1)], ["Conv"]

    g = Graph(4, 6, 6)
    x = g.conv("x", 4, 8, k=1)
    x = g.op("Mul", x, g.op("Sigmoid", x))
    y = g.op("Tanh", g.conv(x, 8, 8, k=1))
    c = g.op("Concat", x, y, "x", axis=1)
    yield "swish, tanh and joined channels", g, [g.conv(c, 20, 4, k=1)], ["Conv"]

    g = Graph(4, 6, 5)  # a pyramid: resized by the nearest and between neighbours, halves that change places, a factor, a border
    x = g.conv("x", 4, 8, k=1)
    for mode, where, how in (("nearest", "asymmetric", "floor"), ("linear", "half_pixel", "floor"), ("nearest", "half_pixel", "round_prefer_floor"), ("linear", "align_corners", "floor")):
        y = g.conv(x, 8, 8, strides=[2, 2], pads=[1, 1, 1, 1])
        y = g.op("Resize", y, "", g.const(np.array([1, 1, 2, 2], np.float32)), mode=mode, coordinate_transformation_mode=where, nearest_mode=how)
        y = g.op("Slice", y, *(g.const(np.array([v], np.int64)) for v in (0, 5, 3)))  # 6 of 5 columns
        x = g.op("LeakyRelu", g.op("Add", x, g.op("Mul", y, g.const(np.float32(0.5)))), alpha=0.1)
    low = g.op("Split", x, axis=1)
    g.nodes[-1].output.append("high")
    x = g.op("Sub", g.op("Concat", "high", low, axis=1), g.const(np.full((8, 1, 1), 0.25, np.float32)))
    x = g.op("Pad", x, g.const(np.array([0, 0, 1, 0, 0, 0, 1, 0], np.int64)))
    yield "a pyramid", g, [g.conv(x, 8, 4, k=1)], ["Conv"]

    g = Graph(4, 6, 5)  # gates between products, a softmax between convolutions
    x = g.op("Softmax", g.op("Clip", g.conv("x", 4, 8, k=1), g.const(np.float32(-1)), g.const(np.float32(1.5))), axis=1)
    x = g.op("ReduceMean", g.conv(x, 8, 24, k=1), axes=[2, 3], keepdims=0)
    x = g.op("HardSwish", g.op("Gemm", x, g.weight(32, 24), g.weight(32), transB=1))
    yield "gates between products", g, [g.op("Gemm", x, g.weight(24, 32), transB=1)], ["Gemm"]

    g = Graph(4, 6, 5)  # channels lie elsewhere there: flattening must not notice
    x = g.op("Flatten", g.op("Relu", g.conv("x", 4, 6, k=1)))
    w, b = g.weight(10, 180), g.const(RNG.standard_normal(10).astype(np.float32))
    x = g.op("Gemm", x, w, b, transB=1)
    yield "flattened with its positions", g, [g.op("MatMul", g.op("Softmax", x, axis=-1), g.weight(10, 4))], True

    g = Graph(6, 4, 4)
    x = g.op("Reshape", g.conv("x", 6, 8, k=1), g.const(np.array([0, 2, 4, 16], np.int64)))
    x = g.op("Transpose", x, perm=[0, 2, 1, 3])
    x = g.op("Reshape", x, g.const(np.array([-1, 8, 4, 4], np.int64)))
    yield "shuffled channels", g, [g.conv(x, 8, 4, k=1)], True

    g = Graph(6, 4, 4)
    x = g.op("ReduceMean", g.conv("x", 6, 8, k=1), axes=[3], keepdims=0)
    x = g.op("Transpose", x, perm=[0, 2, 1])
    x = g.op("MatMul", g.op("Relu", g.op("MatMul", x, g.weight(8, 8))), g.weight(8, 5))
    y = g.op("Sub", g.op("Mul", x, g.const(np.float32(0.5))), g.const(np.linspace(-1, 1, 5, dtype=np.float32)))
    yield "rank 3", g, [g.op("Unsqueeze", g.op("Div", y, g.const(np.float32(1.5))), g.const(np.array([1], np.int64)))], True

    g = Graph(3, 6, 6)
    scale = g.const(RNG.standard_normal((3, 1, 1)).astype(np.float32))
    x = g.op("Add", g.op("Mul", "x", scale), g.const(RNG.standard_normal((1, 3, 1, 6)).astype(np.float32)))
    x = g.op("Clip", x, g.const(np.float32(-1.5)), g.const(np.float32(1)))
    yield "constants that are broadcast, a Clip of its own, two outputs", g, [g.conv(g.conv(x, 3, 4), 4, 4), x], True

    g = Graph(4, 6, 6)  # halves that go separate ways and are shuffled, as in ShuffleNet; a normalization that follows no convolution
    x = g.op("Relu", g.conv("x", 4, 8, k=1))
    low, high, channels = (g.const(np.array([v], np.int64)) for v in (0, 4, 1))
    a, b = g.op("Slice", x, low, high, channels), g.op("Slice", x, high, g.const(np.array([2 ** 31], np.int64)), channels)
    norm = [g.const(RNG.uniform(0.5, 1.5, 4).astype(np.float32)) for _ in range(4)]
    x = g.op("Concat", g.op("Relu", g.op("BatchNormalization", a, *norm)), g.op("Relu", g.conv(b, 4, 4, k=1)), axis=1)
    yield "halves and a lone normalization", g, [g.conv(x, 8, 4, k=1)], True

    g = Graph(3, 6, 6, opset=12)
    x = g.op("Squeeze", g.op("GlobalAveragePool", g.conv("x", 3, 5)), axes=[2, 3])
    yield "an older operator set", g, [g.op("Gemm", g.op("Relu", g.op("Gemm", x, g.weight(5, 7), g.weight(7))), g.weight(7, 3))], True


def channels_last(a):
    return np.ascontiguousarray(a.transpose(0, 2, 3, 1)) if a.ndim == 4 else a


def sqnr(want, got):
    noise = float(((want.astype(np.float64) - got) ** 2).sum())
    return 10 * np.log10(float((want.astype(np.float64) ** 2).sum()) / max(noise, 1e-30))


def fewbit(binary, *arguments):
    run = subprocess.run([binary, *map(str, arguments)], capture_output=True, text=True)
    if run.returncode:
        raise SystemExit(f"litert: fewbit {arguments[0]} ended with {run.returncode}: {run.stderr.strip()}")
    return run.stdout


def codes(a, port):
    """What a port takes for numbers, and numbers() the other way."""
    if port["dtype"] == np.float32:
        return a
    (scale, zero), kind = port["quantization"], np.iinfo(port["dtype"])
    return np.clip(np.rint(a / np.float32(scale)) + zero, kind.min, kind.max).astype(port["dtype"])


def numbers(a, port):
    if port["dtype"] == np.float32:
        return a
    scale, zero = port["quantization"]
    return (a.astype(np.float32) - zero) * np.float32(scale)


def run_lite(path, x, batch):
    it = Interpreter(str(path), num_threads=1)
    port = it.get_input_details()[0]
    it.resize_tensor_input(port["index"], [batch, *port["shape"][1:]], strict=True)
    it.allocate_tensors()
    outs = []
    for i in range(0, len(x), batch):
        it.set_tensor(port["index"], codes(channels_last(x[i:i + batch]), port))
        it.invoke()
        outs.append([numbers(it.get_tensor(o["index"]), o) for o in it.get_output_details()])
    return [np.concatenate(o) for o in zip(*outs)]


def judge(name, onnx_path, lite_path, x, least, batch=1):
    session = onnxruntime.InferenceSession(str(onnx_path), providers=["CPUExecutionProvider"])
    wants = [np.concatenate(o) for o in zip(*[session.run(None, {session.get_inputs()[0].name: x[i:i + batch]}) for i in range(0, len(x), batch)])]
    worst = np.inf
    for want, got in zip(wants, run_lite(lite_path, x, batch), strict=True):
        want = channels_last(want)
        if want.shape != got.shape:
            failures.append(f"{name}: shape {got.shape}, expected {want.shape}")
            return None
        worst = min(worst, sqnr(want, got))
    if worst < least:
        failures.append(f"{name}: {worst:.1f} dB from ONNX Runtime's result, expected {least} or more")
    return worst


class Reader(quantization.CalibrationDataReader):
    def __init__(self, x):
        self.rows = iter(x)

    def get_next(self):
        row = next(self.rows, None)
        return None if row is None else {"x": row[None]}


def by_onnxruntime(path, out, x, opset):
    """Quantizes as ONNX Runtime's own tool does: it takes in operators that fewbit leaves float. Scales by channel came with opset 13."""
    quantization.quantize_static(str(path), str(out), Reader(x), quant_format=quantization.QuantFormat.QDQ, per_channel=opset >= 13,
                                 activation_type=quantization.QuantType.QInt8, weight_type=quantization.QuantType.QInt8)


def main():
    binary, out = sys.argv[1], pathlib.Path(sys.argv[2])
    for i, (name, graph, outputs, integer) in enumerate(cases()):
        x = RNG.standard_normal((SAMPLES, *graph.dims)).astype(np.float32)
        path, small = out / f"{i}.onnx", out / f"{i}.int8.onnx"
        graph.save(path, *outputs)
        np.savez(out / f"{i}.npz", x=x)
        fewbit(binary, "tflite", path, "-o", out / f"{i}.tflite")
        float_db = judge(name + ", float", path, out / f"{i}.tflite", x[:4], FLOAT_DB, batch=2)
        fewbit(binary, "quantize", path, "-o", small, "--calib", out / f"{i}.npz", "--target", "qdq", "--no-latency", "--force")
        made = json.loads(fewbit(binary, "tflite", small, "-o", out / f"{i}.int8.tflite", "--json"))
        integer_db = judge(name + ", int8", small, out / f"{i}.int8.tflite", x[:6], INTEGER_DB, batch=3)
        more = [o for o in made["float_operator_names"] if integer is not True and o.split()[0] not in integer]
        if not made["integer_operators"] or more:
            failures.append(f"{name}: {made['integer_operators']} operators on int8, on float {made['float_operator_names']}")
        whole_db = None
        if integer is not True:  # nothing in float, its ends neither
            whole, lite = out / f"{i}.io.onnx", out / f"{i}.io.tflite"
            fewbit(binary, "quantize", path, "-o", whole, "--calib", out / f"{i}.npz", "--target", "qdq", "--io", "int8", "--no-latency", "--force")
            all_codes = json.loads(fewbit(binary, "tflite", whole, "-o", lite, "--io", "int8", "--json"))
            if all_codes["float_operators"] or {p["type"] for p in all_codes["inputs"] + all_codes["outputs"]} != {"int8"}:
                failures.append(f"{name}: --io int8 left {all_codes['float_operator_names']} in float, ports {all_codes['inputs']}, {all_codes['outputs']}")
            whole_db = judge(name + ", int8 to its ends", whole, lite, x[:6], INTEGER_DB, batch=2)
        wide = out / f"{i}.wide.onnx"
        fewbit(binary, "quantize", path, "-o", wide, "--calib", out / f"{i}.npz", "--scheme", "a16w8", "--symmetric", "--no-latency", "--force")
        made16 = json.loads(fewbit(binary, "tflite", wide, "-o", out / f"{i}.wide.tflite", "--json"))
        wide_db = judge(name + ", int16 activations", wide, out / f"{i}.wide.tflite", x[:6], WIDE_DB, batch=3)
        if not made16["integer_operators"]:
            failures.append(f"{name}: no operator on int16: {made16['float_operator_names']}")
        half_db = None
        if max(int(np.prod(t.dims)) for t in graph.inits) >= HALF_MIN:
            half, lite = out / f"{i}.half.onnx", out / f"{i}.half.tflite"
            fewbit(binary, "quantize", path, "-o", half, "--scheme", "fp16", "--no-latency", "--force")
            fewbit(binary, "tflite", half, "-o", lite)
            half_db = judge(name + ", float16 weights", half, lite, x[:4], FLOAT_DB, batch=2)
            if lite.stat().st_size >= (out / f"{i}.tflite").stat().st_size:
                failures.append(f"{name}: float16 weights take {lite.stat().st_size} bytes, float {(out / f'{i}.tflite').stat().st_size}")
        peer = out / f"{i}.ort.onnx"
        by_onnxruntime(path, peer, x, graph.opset)
        theirs = json.loads(fewbit(binary, "tflite", peer, "-o", out / f"{i}.ort.tflite", "--json"))
        their_db = judge(name + ", int8 by ONNX Runtime", peer, out / f"{i}.ort.tflite", x[:6], INTEGER_DB, batch=1)
        print(f"litert: {name}: {float_db or 0:.0f} dB in float; {integer_db or 0:.1f} dB with {made['integer_operators']} of "
              f"{made['integer_operators'] + made['float_operators']} operators on int8, by ONNX Runtime's tool {their_db or 0:.1f} dB with {theirs['integer_operators']}"
              f"; {wide_db or 0:.1f} dB with {made16['integer_operators']} on int16{'' if half_db is None else f'; {half_db:.0f} dB with float16 weights'}"
              f"{'' if whole_db is None else f'; {whole_db:.1f} dB with int8 at both ends'}"
              f" (float: {', '.join(theirs['float_operator_names']) or 'none'})")
    for model, samples in zip(sys.argv[3::2], sys.argv[4::2]):
        with np.load(samples) as z:
            key = next(k for k in z.files if k != "label")
            x = z[key][:40].astype(np.float32)
        small, lite = out / "real.onnx", out / "real.tflite"
        np.savez(out / "real.npz", **{key: x[:32]})
        fewbit(binary, "quantize", model, "-o", small, "--calib", out / "real.npz", "--target", "qdq", "--no-latency", "--force")
        made = json.loads(fewbit(binary, "tflite", small, "-o", lite, "--json"))
        db = judge(model, small, lite, x[32:], INTEGER_DB)
        print(f"litert: {pathlib.Path(model).parent.name}: {db or 0:.1f} dB from ONNX Runtime's int8, {made['integer_operators']} operators on int8, {made['float_operators']} on float, {made['bytes'] / 1e6:.1f} MB")
    if failures:
        raise SystemExit("litert: " + "\nlitert: ".join(failures))
    print("litert: every result agrees with ONNX Runtime's")


main()
