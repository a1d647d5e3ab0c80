"""Writes fold.json: operators on constants, and what ONNX Runtime computes for them.

    python gen_fold.py            (onnx 1.23, onnxruntime 1.32, numpy)

Each case is one node: {"op","opset","attrs","in","out"}; a tensor is
[type, dims, hex of the little-endian bytes]; an omitted input is null.
"""
import json, os
import numpy as np, onnx, onnxruntime as ort
from onnx import helper, numpy_helper, TensorProto as T

ort.set_default_logger_severity(4)
rng = np.random.default_rng(7)
cases = []


def pack(a, t=None):
    a = np.asarray(a)
    t = t or helper.np_dtype_to_tensor_dtype(a.dtype)
    return [int(t), list(a.shape), a.tobytes().hex()]


def case(op, ins, opset=17, **attrs):
    names = [f"i{k}" if a is not None else "" for k, a in enumerate(ins)]
    node = helper.make_node(op, names, ["y"], **attrs)
    inputs = [helper.make_tensor_value_info(n, helper.np_dtype_to_tensor_dtype(a.dtype), a.shape) for n, a in zip(names, ins) if n]
    g = helper.make_graph([node], "g", inputs, [helper.make_empty_tensor_value_info("y")])
    m = helper.make_model(g, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    so = ort.SessionOptions()
    so.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    y, = ort.InferenceSession(m.SerializeToString(), so, providers=["CPUExecutionProvider"]).run(None, {n: a for n, a in zip(names, ins) if n})
    cases.append({"op": op, "opset": opset, "attrs": [onnx_attr(a) for a in node.attribute],
                  "in": [None if a is None else pack(a) for a in ins], "out": pack(y)})


def onnx_attr(a):
    v = helper.get_attribute_value(a)
    if a.type == onnx.AttributeProto.TENSOR:
        return [a.name, "tensor", pack(numpy_helper.to_array(v))]
    return [a.name, {onnx.AttributeProto.INT: "int", onnx.AttributeProto.INTS: "ints", onnx.AttributeProto.FLOAT: "float"}[a.type],
            list(v) if isinstance(v, (list, tuple)) else v]


def f32(*s): return np.asarray(rng.standard_normal(s) * 3, np.float32)
def f64(*s): return np.asarray(rng.standard_normal(s) * 3)
def i64(*v): return np.array(v, np.int64)
def ints(t, *s, lo=-9, hi=10): return np.asarray(rng.integers(lo, hi, s), t)


def main():
    SHAPES = [((2, 3), (2, 3)), ((2, 3), (3,)), ((2, 1, 3), (4, 1)), ((), (2, 2)), ((3, 1), ()), ((0, 3), (1, 3))]
    for op in ["Add", "Sub", "Mul", "Div"]:
        for a, b in SHAPES:
            case(op, [f32(*a), f32(*b)])
        case(op, [f64(2, 3), f64(3)])
        case(op, [f32(5).astype(np.float16), f32(5).astype(np.float16)])
        for t in (np.int32, np.int64):
            case(op, [ints(t, 2, 3), ints(t, 3, lo=2, hi=5)])
    case("Div", [np.array([1, -1, 0, 5], np.float32), np.array([0, 0, 0, -0.0], np.float32)])
    for e in (2.0, 3.0, 0.5, -1.5, 0.0):
        case("Pow", [np.abs(f32(6)) + 0.25, np.array(e, np.float32)])
    case("Pow", [f32(4), ints(np.int64, 4, lo=0, hi=4)])
    case("Pow", [ints(np.int64, 4), np.array(2, np.int64)])
    for op in ["Min", "Max"]:
        case(op, [f32(2, 3), f32(3), f32(2, 1)])
        case(op, [ints(np.int64, 4), ints(np.int64, 4)])
        case(op, [f32(3)])
    for op in ["Equal", "Greater", "Less", "GreaterOrEqual", "LessOrEqual"]:
        case(op, [ints(np.int64, 2, 6, lo=0, hi=3), ints(np.int64, 6, lo=0, hi=3)])
        case(op, [np.array([1, np.nan, 2], np.float32), np.array([1, np.nan, 3], np.float32)])
    case("Equal", [rng.random(6) > .5, rng.random(6) > .5])
    for op in ["And", "Or", "Xor"]:
        case(op, [rng.random((2, 6)) > .5, rng.random(6) > .5])
    case("Not", [rng.random(6) > .5])
    for op in ["Neg", "Abs", "Sqrt", "Reciprocal", "Floor", "Ceil"]:
        x = f32(2, 5)
        case(op, [np.abs(x) if op == "Sqrt" else x])
        case(op, [np.abs(f64(7)) if op == "Sqrt" else f64(7)])
    case("Neg", [ints(np.int64, 4)])
    case("Abs", [ints(np.int32, 4)])
    for a, b, c in [((2, 3), (2, 3), (2, 3)), ((3,), (2, 1), ()), ((2, 1), (1, 3), (2, 3)), ((), (2,), (2,))]:
        case("Where", [np.asarray(rng.random(a) > .5), f32(*b), f32(*c)])
    case("Where", [rng.random(4) > .5, ints(np.int64, 4), ints(np.int64, 1)])

    TYPES = [np.float32, np.float64, np.float16, np.int8, np.uint8, np.int32, np.int64, np.bool_]
    for s in TYPES:
        for d in TYPES:
            x = np.array([0, 1, 2.6, 100.9, 3, 0.49], np.float64).astype(s)
            if s not in (np.uint8, np.bool_) and d != np.uint8:
                x = np.concatenate([x, np.array([-1, -2.7, -0.3]).astype(s)])
            case("Cast", [x], to=int(helper.np_dtype_to_tensor_dtype(np.dtype(d))))
    case("Cast", [np.array([65504, 65520, 1e-8, 6e-8, 1e9, -1e9, 2049, 2051], np.float32)], to=int(T.FLOAT16))
    case("Cast", [np.array([70000, -70000, 300, 2**40 + 5], np.int64)], to=int(T.INT32))
    case("Cast", [np.array([2**24 + 1, 2**53 + 1, -7], np.int64)], to=int(T.FLOAT))
    case("Cast", [np.array([0.1, 1e300, np.inf, np.nan, 1e-46], np.float64)], to=int(T.FLOAT))

    case("Identity", [f32(2, 2)])
    for s in [(6,), (3, -1), (0, -1), (1, 2, 3), (2, 3, 1, 1)]:
        case("Reshape", [f32(2, 3), i64(*s)])
    case("Reshape", [f32(0, 3), i64(3, 0)], allowzero=1)
    case("Reshape", [f32(), i64(1, 1)])
    for a in (0, 1, 2, 3, -1):
        case("Flatten", [f32(2, 3, 4)], axis=a)
    case("Squeeze", [f32(1, 2, 1), i64(0)])
    case("Squeeze", [f32(1, 2, 1), i64(-1, 0)])
    case("Squeeze", [f32(1, 2, 1)])
    case("Squeeze", [f32(1, 2, 1)], opset=11, axes=[2])
    case("Squeeze", [f32(1, 2, 1)], opset=12)
    case("Unsqueeze", [f32(2), i64(0, -1)])
    case("Unsqueeze", [f32(), i64(0)])
    case("Unsqueeze", [f32(2, 3)], opset=12, axes=[1, 3])
    for t in (np.float32, np.float64, np.int8, np.float16):
        case("Transpose", [ints(t, 3, 5)])
        case("Transpose", [ints(t, 3, 5)], perm=[1, 0])
    case("Transpose", [f32(2, 3, 4)], perm=[2, 0, 1])
    case("Transpose", [f32(2, 3, 4, 5)], perm=[0, 2, 1, 3])
    case("Transpose", [f32(2, 3, 4, 2, 2)], perm=[4, 2, 0, 1, 3])
    case("Transpose", [f32(3, 1, 1, 2)], perm=[3, 2, 0, 1])
    case("Transpose", [f32(0, 2)])
    case("Concat", [f32(2, 3), f32(2, 1)], axis=1)
    case("Concat", [f32(2, 3), f32(1, 3), f32(0, 3)], axis=-2)
    case("Concat", [i64(1), i64(2, 3)], axis=0)
    case("Concat", [f32(2, 2, 2), f32(2, 2, 2)], axis=1)
    case("Gather", [f32(3, 2), i64(0, 2, -1)])
    case("Gather", [f32(3, 2), np.array(1, np.int64)], axis=1)
    case("Gather", [f32(3, 4, 2), ints(np.int32, 2, 2, lo=-4, hi=4)], axis=1)
    case("Gather", [i64(5, 6, 7), np.array(-2, np.int64)])
    BIG = 2**63 - 1
    for st, en, ax, sp in [([1], [3], [0], None), ([0, 1], [BIG, 3], None, None), ([-2], [-1], [1], None), ([3], [-BIG], [0], [-1]),
                           ([0], [BIG], [1], [2]), ([-1], [-BIG - 1], [1], [-2]), ([5], [9], [0], None), ([2], [1], [0], None),
                           ([0], [BIG], [0], [BIG]), ([3], [0], [-1], [-BIG - 1]), ([1, 0, 1], [4, 1, 2], [0, 2, 1], [2, 1, 1])]:
        case("Slice", [f32(4, 5, 2), i64(*st), i64(*en), None if ax is None else i64(*ax)] + ([] if sp is None else [i64(*sp)]))
    case("Slice", [f32(4, 5)], opset=9, starts=[1, -3], ends=[3, 5], axes=[0, 1])
    case("Slice", [f32(4, 5)], opset=9, starts=[1], ends=[100])
    case("ConstantOfShape", [i64(2, 3)])
    case("ConstantOfShape", [i64()], value=numpy_helper.from_array(i64(7)))
    case("ConstantOfShape", [i64(4)], value=numpy_helper.from_array(np.array([True])))
    case("ConstantOfShape", [i64(0)], value=numpy_helper.from_array(np.array([2.5], np.float64)))
    case("Expand", [f32(3, 1), i64(2, 1, 4)])
    case("Expand", [f32(3, 1), i64(1)])
    case("Expand", [i64(5), i64(2, 3)])
    for a in [(0, 5, 1), (5, 0, -2), (3, 3, 1), (0, 7, 3)]:
        case("Range", [np.array(v, np.int64) for v in a])
        case("Range", [np.array(v, np.int32) for v in a])
        case("Range", [np.array(v, np.float32) for v in a])
    case("Range", [np.array(v, np.float32) for v in (0, 2, 0.25)])
    case("Shape", [f32(2, 3, 4)])
    case("Shape", [f32(2, 3, 4)], start=-2)
    case("Shape", [f32(2, 3, 4)], start=1, end=2)
    case("Shape", [f32()])
    case("Size", [f32(2, 3, 4)])
    for t in (np.int32, np.int64):
        case("Mod", [ints(t, 2, 3, lo=0), ints(t, 3, lo=1, hi=5)])
        case("Mod", [ints(t, 2, 3, lo=0), ints(t, 3, lo=1, hi=5)], fmod=1)

    with open(os.path.join(os.path.dirname(os.path.abspath(__file__)), "fold.json"), "w") as f:
        f.write("[\n" + ",\n".join(json.dumps(c, separators=(",", ":")) for c in cases) + "\n]\n")
    print(len(cases), "cases")


if __name__ == "__main__":
    main()
