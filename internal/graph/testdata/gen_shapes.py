"""Writes shapes.json: what onnx.shape_inference says of single operators.

    python gen_shapes.py

A case is {"op","domain","opset","attrs","in":[{"type","dims"} or {"const"} or
null],"out":[[type, dims] ...]}; a dimension is a number, a name, or "?".
Operators of com.microsoft are checked against shapes that ONNX Runtime
produced when it ran them.
"""
import json, os
import numpy as np, onnx, onnxruntime as ort
from onnx import helper as h, numpy_helper as nh, shape_inference, TensorProto as T
from gen_fold import pack, onnx_attr as number_attr

ort.set_default_logger_severity(4)
cases = []


def attr(a):
    if a.type == onnx.AttributeProto.STRING:
        return [a.name, "string", a.s.decode()]
    return number_attr(a)


def i64(*v): return np.array(v, np.int64)
def x(*dims, t=T.FLOAT): return (t, list(dims))


def dims_of(tt):
    return [d.dim_value if d.HasField("dim_value") else ("?" if not d.dim_param or d.dim_param.startswith("unk__") else d.dim_param) for d in tt.shape.dim]


def case(op, ins, outs=1, opset=17, **attrs):
    names = ["" if a is None else f"i{k}" for k, a in enumerate(ins)]
    outputs = [f"o{k}" for k in range(outs)]
    node = h.make_node(op, names, outputs, **attrs)
    inputs = [h.make_tensor_value_info(n, a[0], a[1]) for n, a in zip(names, ins) if isinstance(a, tuple)]
    inits = [nh.from_array(a, n) for n, a in zip(names, ins) if isinstance(a, np.ndarray)]
    g = h.make_graph([node], "g", inputs, [h.make_empty_tensor_value_info(o) for o in outputs], inits)
    m = h.make_model(g, opset_imports=[h.make_opsetid("", opset)], ir_version=10)
    m = shape_inference.infer_shapes(m, strict_mode=True, data_prop=True)
    got = {v.name: v.type.tensor_type for v in list(m.graph.value_info) + list(m.graph.output)}
    add(op, "", opset, node, ins, [[got[o].elem_type, dims_of(got[o]) if got[o].HasField("shape") else None] for o in outputs])


def ran(op, ins, outs=1, domain="com.microsoft", opset=17, **attrs):
    """A shape that ONNX Runtime produced: all inputs are given as arrays or fixed shapes."""
    names = ["" if a is None else f"i{k}" for k, a in enumerate(ins)]
    outputs = [f"o{k}" for k in range(outs)]
    node = h.make_node(op, names, outputs, domain=domain, **attrs)
    arrays = {n: (a if isinstance(a, np.ndarray) else np.zeros(a[1], h.tensor_dtype_to_np_dtype(a[0]))) for n, a in zip(names, ins) if n}
    g = h.make_graph([node], "g", [h.make_tensor_value_info(n, h.np_dtype_to_tensor_dtype(a.dtype), a.shape) for n, a in arrays.items()],
                     [h.make_empty_tensor_value_info(o) for o in outputs])
    m = h.make_model(g, opset_imports=[h.make_opsetid("", opset), h.make_opsetid("com.microsoft", 1)], ir_version=10)
    r = ort.InferenceSession(m.SerializeToString(), providers=["CPUExecutionProvider"]).run(None, arrays)
    add(op, domain, opset, node, ins, [[int(h.np_dtype_to_tensor_dtype(y.dtype)), list(y.shape)] for y in r])


def add(op, domain, opset, node, ins, outs):
    enc = [None if a is None else {"const": pack(a)} if isinstance(a, np.ndarray) else {"type": int(a[0]), "dims": a[1]} for a in ins]
    cases.append({"op": op, "domain": domain, "opset": opset, "attrs": [attr(a) for a in node.attribute], "in": enc, "out": outs})


X = x("n", "s", 8)
IMG = x("n", 3, 32, 30)

def main():
    for op in ["Relu", "Clip", "Erf", "Sigmoid", "Softmax", "Tanh", "Sqrt", "Identity", "Neg"]:
        case(op, [X])
    for op in ["Add", "Mul", "Sub", "Div", "Pow", "Max", "Min"]:
        case(op, [X, x(8)])
        case(op, [X, x("n", 1, 1)])
        case(op, [x("n", 4), x("n", 1)])
    case("Add", [x("a", 1, 5), x(1, 7, 1)])
    case("Sum", [x(2, 1), x(3), x(1, 1)])
    case("Equal", [X, x(8)])
    case("Where", [x("n", 1, t=T.BOOL), x("n", 4), x(4)])
    case("Cast", [X], to=int(T.INT64))
    case("Not", [x("n", t=T.BOOL)])
    case("Dropout", [X], outs=2)
    case("LayerNormalization", [X, x(8), x(8)], outs=3, axis=-1)
    case("LayerNormalization", [X, x("s", 8), x("s", 8)], axis=1)
    case("BatchNormalization", [IMG, x(3), x(3), x(3), x(3)])
    case("MatMul", [X, x(8, 5)])
    case("MatMul", [x("n", 4, "s", 8), x("n", 4, 8, "t")])
    case("MatMul", [x(8), x("n", 8, 5)])
    case("MatMul", [x("n", 3, 8), x(8)])
    case("MatMul", [x(8), x(8)])
    case("MatMul", [x(2, 1, 3, 4), x(5, 4, 6)])
    for ta in (0, 1):
        for tb in (0, 1):
            case("Gemm", [x(*([8, "n"] if ta else ["n", 8])), x(*([5, 8] if tb else [8, 5])), x(5)], transA=ta, transB=tb)
    for to in [(0, 0, 2, 4), (-1, 8), (0, -1), (0, 0, -1, 2), (2, -1, 8)]:
        case("Reshape", [X, i64(*to)])
    case("Reshape", [x(2, 6), i64(3, 4)])
    case("Reshape", [x(0, 6), i64(0, 3)], allowzero=1)
    case("Reshape", [X, x(3, t=T.INT64)])
    case("Transpose", [X])
    case("Transpose", [x("a", "b", 3, 4)], perm=[0, 2, 1, 3])
    for a in (0, 1, 2, -1):
        case("Flatten", [x("n", 3, 4)], axis=a)
    case("Concat", [X, X], axis=1)
    case("Concat", [X, X], axis=-1)
    case("Concat", [x("n", 2), x("n", 3)], axis=1)
    case("Gather", [x(100, 16), x("n", "s", t=T.INT64)])
    case("Gather", [X, np.array(0, np.int64)], axis=1)
    case("Gather", [X, i64(0, 1)], axis=-1)
    case("GatherElements", [x(3, 4), x(3, 2, t=T.INT64)], axis=1)
    case("GatherND", [x(3, 4, 5), x("n", 2, t=T.INT64)])
    case("GatherND", [x(2, 4, 5), x(2, 7, 1, t=T.INT64)], batch_dims=1)
    case("Slice", [X, i64(1), i64(5), i64(2)])
    case("Slice", [X, i64(0), i64(2**63 - 1), i64(1)])
    case("Slice", [X, i64(-3), i64(2**63 - 1), i64(-1)])
    case("Slice", [x(10, 20), i64(8, 1), i64(-100, 20), i64(0, 1), i64(-3, 4)])
    case("Slice", [X, x(1, t=T.INT64), x(1, t=T.INT64), i64(1)])
    case("Slice", [x(10, 20)], opset=9, starts=[2], ends=[-1], axes=[1])
    case("Split", [x("n", 9), i64(2, 3, 4)], outs=3, axis=1)
    case("Split", [x("n", 9)], outs=3, axis=-1)
    case("Split", [x(10)], outs=3, opset=18, num_outputs=3)
    case("Split", [x("n", 9)], outs=2, opset=11, axis=1, split=[4, 5])
    case("Squeeze", [x("n", 1, 4, 1), i64(1, -1)])
    case("Squeeze", [x(2, 1, 4, 1)])
    case("Squeeze", [x("n", 1)], opset=11, axes=[1])
    case("Unsqueeze", [X, i64(0, -1)])
    case("Unsqueeze", [X], opset=11, axes=[1, 2])
    case("Expand", [x("n", 1, 4), i64(2, 1, 5, 1)])
    case("Expand", [x(3, 1), x(4, t=T.INT64)])
    case("Tile", [x("n", 3), i64(1, 4)])
    case("Pad", [IMG, i64(0, 0, 1, 2, 0, 0, 1, 3)])
    case("Pad", [IMG], opset=10, pads=[0, 0, 1, 2, 0, 0, 1, 3])
    case("Pad", [IMG, i64(1, 2, 3, 4), None, i64(2, 3)], opset=18)
    case("Shape", [X])
    case("Shape", [X], start=1, end=-1)
    case("Size", [X])
    case("ConstantOfShape", [i64(2, 3)], value=nh.from_array(i64(1)))
    case("ConstantOfShape", [x(2, t=T.INT64)])
    case("Range", [np.array(0, np.int64), np.array(7, np.int64), np.array(2, np.int64)])
    for op in ["ReduceMean", "ReduceMax"]:
        case(op, [X], axes=[-1])
        case(op, [X], axes=[0, 2], keepdims=0)
        case(op, [X], keepdims=0)
        case(op, [X, i64(1)], opset=18)
    case("ReduceSum", [X, i64(1)], keepdims=0)
    case("ReduceSum", [X], noop_with_empty_axes=1)
    case("ReduceSum", [X, x("k", t=T.INT64)])
    case("ArgMax", [X], axis=-1, keepdims=0)
    case("ArgMax", [X], axis=1)
    case("TopK", [x("n", 10), i64(3)], outs=2)
    case("OneHot", [x("n", 4, t=T.INT64), np.array(7, np.int64), x(2)])
    case("NonZero", [X])
    W = x(16, 3, 3, 3)
    case("Conv", [IMG, W])
    case("Conv", [IMG, W, x(16)], pads=[1, 1, 1, 1], strides=[2, 2])
    case("Conv", [IMG, W], dilations=[2, 3], pads=[2, 3, 2, 3])
    case("Conv", [IMG, W], auto_pad="SAME_UPPER", strides=[2, 2])
    case("Conv", [IMG, W], auto_pad="VALID", strides=[3, 1])
    case("Conv", [x("n", 4, 20), x(8, 1, 5)], group=4)
    case("Conv", [x("n", 3, "h", "w"), W])
    case("Conv", [x(1, 1, 6, 6, 6), x(2, 1, 2, 3, 4)])
    D = x(3, 8, 4, 4)
    case("ConvTranspose", [IMG, D], strides=[2, 2])
    case("ConvTranspose", [IMG, D], strides=[2, 2], pads=[1, 1, 1, 1], output_padding=[1, 0], group=1)
    case("ConvTranspose", [IMG, D], strides=[2, 2], output_shape=[64, 60])
    case("ConvTranspose", [IMG, D], strides=[2, 2], auto_pad="SAME_UPPER")
    for op in ["MaxPool", "AveragePool"]:
        case(op, [IMG], kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1])
        case(op, [IMG], kernel_shape=[3, 3], strides=[2, 2], ceil_mode=1)
        # before opset 22 onnx.shape_inference counts a window that lies in the padding; ONNX Runtime never did
        case(op, [IMG], opset=22, kernel_shape=[2, 2], strides=[4, 4], pads=[1, 1, 1, 1], ceil_mode=1)
        case(op, [IMG], kernel_shape=[2, 2], auto_pad="SAME_LOWER", strides=[2, 2])
    case("MaxPool", [IMG], outs=2, kernel_shape=[2, 2])
    case("GlobalAveragePool", [x("n", 16, "h", "w")])
    case("Resize", [IMG, None, np.array([1, 1, 2, .5], np.float32)])
    case("Resize", [IMG, None, None, i64(1, 3, 64, 64)])
    case("DepthToSpace", [x("n", 16, 5, 6)], blocksize=2)
    case("SpaceToDepth", [x("n", 3, 8, 6)], blocksize=2)
    case("LSTM", [x("t", "n", 10), x(2, 80, 10), x(2, 80, 20)], outs=3, hidden_size=20, direction="bidirectional")
    case("GRU", [x(5, "n", 10), x(1, 60, 10), x(1, 60, 20)], outs=2, hidden_size=20)
    u8, s8 = T.UINT8, T.INT8
    case("QuantizeLinear", [X, x(), x(t=u8)])
    case("DequantizeLinear", [x("n", 8, t=u8), x(), x(t=u8)])
    case("DynamicQuantizeLinear", [X], outs=3)
    case("MatMulInteger", [x("n", "s", 8, t=u8), x(8, 5, t=s8)])
    case("QLinearMatMul", [x("n", 8, t=u8), x(), x(t=u8), x(8, 5, t=s8), x(), x(t=s8), x(), x(t=u8)])
    case("ConvInteger", [x("n", 3, 32, 30, t=u8), x(16, 3, 3, 3, t=u8)])
    case("QLinearConv", [x("n", 3, 32, 30, t=u8), x(), x(t=u8), x(16, 3, 3, 3, t=s8), x(), x(t=s8), x(), x(t=u8)], strides=[2, 2])
    case("Gelu", [X], opset=20)
    case("Attention", [x("n", 4, "s", 8), x("n", 4, "t", 8), x("n", 4, "t", 16)], opset=23)
    case("Attention", [x(1, "s", 32), x(1, "t", 32), x(1, "t", 64)], opset=23, q_num_heads=4, kv_num_heads=4)
    F = lambda *s: x(*s)
    for op in ["Gelu", "FastGelu", "QuickGelu"]:
        ran(op, [F(2, 3, 8)])
    ran("BiasGelu", [F(2, 3, 8), F(8)])
    ran("SkipLayerNormalization", [F(2, 3, 8), F(2, 3, 8), F(8), F(8)], outs=1)
    for ta, tb in [(0, 0), (0, 1), (1, 0)]:
        ran("FusedMatMul", [F(2, 4, 4), F(2, 4, 4)], transA=ta, transB=tb, alpha=.5)
    ran("FusedMatMul", [F(5, 2, 3), F(2, 3, 4)], transBatchA=1)
    ran("FusedMatMul", [F(2, 7, 3), F(2, 5, 3)], transB=1)
    ran("MultiHeadAttention", [F(2, 3, 8), F(2, 5, 8), F(2, 5, 12)], num_heads=4)
    ran("MultiHeadAttention", [F(2, 3, 8), F(2, 4, 5, 2), F(2, 4, 5, 2)], num_heads=4)
    ran("MultiHeadAttention", [F(2, 3, 8), F(2, 3, 8), F(2, 3, 8)], outs=3, num_heads=4)
    ran("Attention", [F(2, 3, 6), F(6, 24), F(24)], num_heads=4)
    ran("Attention", [F(2, 3, 6), F(6, 20), F(20)], num_heads=4, qkv_hidden_sizes=[8, 8, 4])
    ran("EmbedLayerNormalization", [np.zeros((2, 3), np.int32), np.zeros((2, 3), np.int32), F(9, 4), F(5, 4), F(2, 4), F(4), F(4)], outs=2)
    ran("MatMulIntegerToFloat", [x(2, 3, 8, t=u8), x(8, 5, t=s8), F(), F()])
    ran("DynamicQuantizeMatMul", [F(2, 3, 8), x(8, 5, t=s8), F()])
    ran("MatMulNBits", [F(2, 3, 32), np.zeros((5, 2, 8), np.uint8), F(10)], K=32, N=5, bits=4, block_size=16)
    ran("QGemm", [x(2, 8, t=u8), F(), np.zeros((), np.uint8), x(5, 8, t=s8), F(), np.zeros((), np.int8), None], transB=1)
    ran("QLinearAdd", [x(2, 8, t=u8), F(), np.zeros((), np.uint8), x(8, t=u8), F(), np.zeros((), np.uint8), np.float32([1]).reshape(()), np.zeros((), np.uint8)])
    with open(os.path.join(os.path.dirname(os.path.abspath(__file__)), "shapes.json"), "w") as f:
        f.write("[\n" + ",\n".join(json.dumps(c, separators=(",", ":")) for c in cases) + "\n]\n")
    print(len(cases), "cases")


if __name__ == "__main__":
    main()
