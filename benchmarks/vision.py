"""EfficientNet-lite0: top-1 agreement with FP32 on images that calibration never saw.

128 stamps calibrate, all other unlabelled ones are compared, and the labelled
photos give an accuracy (their interval is wide: one photo is 0.7 points). Peer:
onnxruntime.quantization after its own pre-processing, Min-Max, per channel, the
better of its default types (INT8 activations) and UINT8 activations. All files
run in onnxruntime. With recipe cv the operators that harm most stay in FP32; its
latency and that of the default against FP32 are of one image, in turn.
"""
import numpy as np

import common as c

BATCH = 16


def scores(path, images):
    s = c.session(path)
    name = s.get_inputs()[0].name
    return np.concatenate([s.run(None, {name: images[i:i + BATCH]})[0] for i in range(0, len(images), BATCH)])


def peer(out, activations):
    from onnxruntime.quantization import CalibrationDataReader, CalibrationMethod, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process
    images = np.load(c.STAMPS / "calib.npz")["input"]

    class Reader(CalibrationDataReader):
        def __init__(self):
            self.it = iter(range(len(images)))

        def get_next(self):
            i = next(self.it, None)
            return None if i is None else {"input": images[i:i + 1]}

    prepared = c.WORK / "efficientnet-prepared.onnx"
    quant_pre_process(str(c.EFFICIENTNET / "model.onnx"), str(prepared))
    quantize_static(str(prepared), str(out), Reader(), per_channel=True, calibrate_method=CalibrationMethod.MinMax,
                    activation_type=getattr(QuantType, activations), weight_type=QuantType.QInt8)


def judge(path, reference, unseen, labelled):
    y = scores(path, unseen)
    agree = int((y.argmax(1) == reference.argmax(1)).sum())
    noise = ((y - reference) ** 2).sum()
    right = int((scores(path, labelled["input"]).argmax(1)[:, None] == labelled["accepted"]).any(1).sum())
    return {"agree": agree, "n": len(y), "agreement": agree / len(y), "interval95": c.wilson(agree, len(y)), "sqnr_db": float(10 * np.log10((reference ** 2).sum() / noise)),
            "labelled_right": right, "labelled": len(labelled["input"])}


ROUNDS = 200


def latency(*paths):
    """Medians in ms of one image, the models in turn, and the medians of each round's ratio to the first with their intervals."""
    x = np.load(c.STAMPS / "calib.npz")["input"][:1]
    sessions = [c.session(p) for p in paths]
    ms = c.interleaved([lambda s=s: s.run(None, {s.get_inputs()[0].name: x}) for s in sessions], ROUNDS if c.FULL else 40)
    return [float(np.median(m)) for m in ms], [c.median_interval(ms[0] / m) for m in ms]


def words(f):
    return "%.1f %% of %d [%.1f, %.1f], %.1f dB; photos %d of %d" % (
        100 * f["agreement"], f["n"], 100 * f["interval95"][0], 100 * f["interval95"][1], f["sqnr_db"], f["labelled_right"], f["labelled"])


def main():
    r = c.Result("vision", "Vision fidelity", __doc__.strip())
    unseen, labelled = np.load(c.STAMPS / "eval.npz")["input"], dict(np.load(c.STAMPS / "labelled.npz"))
    model, out = c.EFFICIENTNET / "model.onnx", c.WORK / "efficientnet-int8.onnx"
    reference = scores(model, unseen)
    c.fewbit("quantize", model, "-o", out, "--calib", c.STAMPS / "calib.npz", "--force", "--no-latency")
    ours = judge(out, reference, unseen, labelled)
    theirs = {}
    for kind in ("QInt8", "QUInt8"):
        path = c.WORK / ("efficientnet-peer-%s.onnx" % kind)
        peer(path, kind)
        theirs[kind] = judge(path, reference, unseen, labelled)
    best = max(theirs, key=lambda k: theirs[k]["agreement"])
    right = int((scores(model, labelled["input"]).argmax(1)[:, None] == labelled["accepted"]).any(1).sum())
    r.row("EfficientNet-lite0 top-1 agreement with FP32", words(ours), "onnxruntime Min-Max per channel (%s): %s" % (best, words(theirs[best])), None,
          "above the peer", ours["agreement"] > theirs[best]["agreement"], fewbit=ours, peers=theirs, fp32_labelled_right=right)
    mixed = c.WORK / "efficientnet-cv.onnx"
    c.fewbit("quantize", model, "-o", mixed, "--calib", c.STAMPS / "calib.npz", "--recipe", "cv", "--force", "--no-latency")
    kept = judge(mixed, reference, unseen, labelled)
    r.row("EfficientNet-lite0, recipe cv", words(kept), "onnxruntime Min-Max per channel (%s): %s" % (best, words(theirs[best])), None,
          "above the peer", kept["agreement"] > theirs[best]["agreement"], fewbit=kept)
    p50, ratios = latency(model, out, mixed)
    for what, i in (("INT8", 1), ("recipe cv", 2)):
        mid, low, high = ratios[i]
        r.row("EfficientNet-lite0 latency, %s" % what, "%.1f ms" % p50[i], "FP32: %.1f ms" % p50[0], mid, "not slower than FP32", low >= 1, interval95=[low, high], rounds=ROUNDS if c.FULL else 40)
    r.save()


if __name__ == "__main__":
    main()
