"""Runs in the environment of AI Edge Quantizer: "MODEL.tflite IMAGES.npz OUT.tflite" quantizes a float file with its recipe
for INT8 weights and activations. Images come in ONNX's layout."""
import sys

import numpy as np
from ai_edge_litert.interpreter import Interpreter
from ai_edge_quantizer import quantizer, recipe

model, images, out = sys.argv[1:]
signatures = Interpreter(model).get_signature_list()
name, io = next(iter(signatures.items()))
feeds = [{io["inputs"][0]: np.ascontiguousarray(x.transpose(1, 2, 0))[None]} for x in np.load(images)["input"]]
q = quantizer.Quantizer(model, recipe.static_wi8_ai8())
q.quantize(q.calibrate({name: feeds})).export_model(out, overwrite=True)
