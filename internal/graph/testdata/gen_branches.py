"""Writes branches11.onnx and branches24.onnx: If in If and Loop, whose bodies
capture a folded weight, a lifted constant and an Identity's output.

    python gen_branches.py
"""
import os
import numpy as np, onnx
from onnx import helper as h, numpy_helper as nh, TensorProto as T

rng = np.random.default_rng(1)


def vi(n, t, s): return h.make_tensor_value_info(n, t, s)


w = nh.from_array(rng.standard_normal((4, 4)).astype(np.float32), "w")
for opset in (11, 24):
    inner_then = h.make_graph([h.make_node("MatMul", ["h", "wT"], ["it"])], "it", [], [vi("it", T.FLOAT, None)])
    inner_else = h.make_graph([h.make_node("Constant", [], ["k2"], value=nh.from_array(np.float32([2]))),
                               h.make_node("Mul", ["h", "k2"], ["ie"])], "ie", [], [vi("ie", T.FLOAT, None)])
    then = h.make_graph([h.make_node("If", ["flag"], ["nested"], then_branch=inner_then, else_branch=inner_else),
                         h.make_node("Identity", ["nested"], ["t_out"])], "then", [], [vi("t_out", T.FLOAT, None)])
    els = h.make_graph([h.make_node("Add", ["hid", "k"], ["e_out"])], "else", [], [vi("e_out", T.FLOAT, None)])
    body = h.make_graph([h.make_node("Identity", ["cond_in"], ["cond_out"]), h.make_node("MatMul", ["s_in", "wT"], ["mm"]),
                         h.make_node("Tanh", ["mm"], ["s_out"]), h.make_node("Identity", ["s_out"], ["scan"])], "body",
                        [vi("it_num", T.INT64, []), vi("cond_in", T.BOOL, []), vi("s_in", T.FLOAT, None)],
                        [vi("cond_out", T.BOOL, []), vi("s_out", T.FLOAT, None), vi("scan", T.FLOAT, None)])
    nodes = [h.make_node("Constant", [], ["k"], value=nh.from_array(np.float32([1.5]))),
             h.make_node("Constant", [], ["flag"], value=nh.from_array(np.array(True))),
             h.make_node("Constant", [], ["trip"], value=nh.from_array(np.array(3, np.int64))),
             h.make_node("Transpose", ["w"], ["wT"], perm=[1, 0]),
             h.make_node("MatMul", ["x", "wT"], ["h"]),
             h.make_node("Identity", ["h"], ["hid"]),
             h.make_node("If", ["cond"], ["b"], then_branch=then, else_branch=els),
             h.make_node("Loop", ["trip", "flag", "b"], ["s", "scans"], body=body),
             h.make_node("Identity", ["s"], ["y"])]
    g = h.make_graph(nodes, "g", [vi("x", T.FLOAT, ["n", 4]), vi("cond", T.BOOL, [])], [vi("y", T.FLOAT, None), vi("scans", T.FLOAT, None)], [w])
    m = h.make_model(g, opset_imports=[h.make_opsetid("", opset)], ir_version=6 if opset < 13 else 10)
    onnx.save(m, os.path.join(os.path.dirname(os.path.abspath(__file__)), f"branches{opset}.onnx"))
