"""Runs in the environment of a quantizer: makes a file, or judges one that only its own runtime reads.

    quantizers_worker.py make METHOD MODEL SAMPLES OUT
    quantizers_worker.py judge METHOD MODEL SAMPLES OUT.npy

SAMPLES is a JSON list of token ids, or an .npz of images under "input"; OUT.npy gets the averaged token vectors or the
logits. Settings are those that each tool documents for such a model.
"""
import json
import sys

import numpy as np


def feeds(samples, names):
    """One unpadded text or one image at a time, under the model's own names."""
    if samples.endswith(".npz"):
        for image in np.load(samples)["input"]:
            yield {names[0]: image[None]}
        return
    order = [next(n for n in names if key in n) for key in ("input_ids", "mask", "type")]
    for ids in json.load(open(samples)):
        a = np.asarray(ids, np.int64)[None]
        yield dict(zip(order, (a, np.ones_like(a), np.zeros_like(a))))


def onnx_names(model):
    import onnxruntime as ort
    return [i.name for i in ort.InferenceSession(model, providers=["CPUExecutionProvider"]).get_inputs()]


def reader(base, samples, names):
    class Reader(base):
        def __init__(self):
            self.rewind()

        def rewind(self):
            self.it = feeds(samples, names)

        def get_next(self):
            return next(self.it, None)

    return Reader()


def prepared(model, out):
    """onnxruntime's own pre-processing, which its guide asks for."""
    from onnxruntime.quantization.shape_inference import quant_pre_process
    quant_pre_process(model, out + ".prepared", skip_symbolic_shape=True)
    return out + ".prepared"


def ort_static(model, samples, out):
    from onnxruntime.quantization import CalibrationDataReader, CalibrationMethod, QuantType, quantize_static
    ready = prepared(model, out)
    quantize_static(ready, out, reader(CalibrationDataReader, samples, onnx_names(model)), per_channel=True, calibrate_method=CalibrationMethod.MinMax,
                    activation_type=QuantType.QUInt8, weight_type=QuantType.QInt8)


def ort_dynamic(model, samples, out):
    from onnxruntime.quantization import QuantType, quantize_dynamic
    quantize_dynamic(prepared(model, out), out, per_channel=True, weight_type=QuantType.QInt8)


def onc_static(model, samples, out):
    from onnx_neural_compressor import data_reader
    from onnx_neural_compressor.quantization import config, quantize
    n = sum(1 for _ in feeds(samples, ["input_ids", "attention_mask", "token_type_ids"]))
    quantize(model, out, config.StaticQuantConfig(reader(data_reader.CalibrationDataReader, samples, onnx_names(model)), per_channel=True, calibration_sampling_size=n,
                                                  execution_provider="CPUExecutionProvider"))


def onc_weights(algorithm):
    def make(model, samples, out):
        from onnx_neural_compressor import data_reader
        from onnx_neural_compressor.quantization import matmul_nbits_quantizer as m
        r = reader(data_reader.CalibrationDataReader, samples, onnx_names(model))
        settings = {"rtn": lambda: m.RTNWeightOnlyQuantConfig(), "gptq": lambda: m.GPTQWeightOnlyQuantConfig(calibration_data_reader=r)}
        q = m.MatMulNBitsQuantizer(model, block_size=32, is_symmetric=False, algo_config=settings[algorithm](), n_bits=4)
        q.process()
        import onnx
        onnx.save(q.model if isinstance(q.model, onnx.ModelProto) else q.model.model, out)
    return make


def nncf(model, samples, out):
    import nncf
    import openvino as ov
    m = ov.Core().read_model(model)
    every = list(feeds(samples, [i.any_name for i in m.inputs]))
    # For images the slower correction of biases and asymmetric activations, NNCF's advice where the default loses too much.
    settings = {"preset": nncf.QuantizationPreset.MIXED, "fast_bias_correction": False} if samples.endswith(".npz") else {"model_type": nncf.ModelType.TRANSFORMER}
    ov.save_model(nncf.quantize(m, nncf.Dataset(every), subset_size=len(every), **settings), out, compress_to_fp16=False)


def nncf_judge(model, samples, out):
    import openvino as ov
    compiled = ov.Core().compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    first = compiled.outputs[0]
    y = [compiled(f)[first][0] for f in feeds(samples, [i.any_name for i in compiled.inputs])]
    np.save(out, np.stack([v if v.ndim == 1 else v.mean(0) for v in y]))


MAKE = {"ort-static": ort_static, "ort-dynamic": ort_dynamic, "onc-static": onc_static, "onc-rtn": onc_weights("rtn"), "onc-gptq": onc_weights("gptq"),
        "nncf": nncf}
JUDGE = {"nncf": nncf_judge}



def torch(what, method):
    import quantizers_torch as q
    run = q.MAKE[method] if what == "make" else q.judge
    return lambda model, samples, out: run(model, feeds(samples, ["input_ids", "attention_mask", "token_type_ids"]), out)


if __name__ == "__main__":
    what, method = sys.argv[1:3]
    (torch(what, method) if method.startswith("torch") else {"make": MAKE, "judge": JUDGE}[what][method])(*sys.argv[3:6])
