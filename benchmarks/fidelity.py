"""all-MiniLM-L6-v2: how close the INT8 encoder's sentence vectors stay to FP32.

64 calibration sentences and 200 others, one sentence from each news document,
so the two sets share no document. fewbit runs with its default command, no
hint. Both the plain and the already fused file are quantized. The judge is
onnxruntime in Python: each sentence alone, unpadded, token vectors averaged,
cosine against FP32. Peer: onnxruntime.quantization.quantize_static with its
defaults on the plain file, calibrated on the same sentences, unpadded.
"""
import json
import re

import numpy as np

import common as c

CALIB, EVAL, TOKENS = 64, 200, 128
PLAIN_MEAN, PLAIN_MIN, SMOOTH_MEAN = 0.993, 0.978, 0.997


def sentence(text):
    """The first sentence of 8 to 40 words, or the first 40 words."""
    for s in re.split(r"(?<=[.!?]) +", text):
        if 8 <= len(s.split()) <= 40:
            return s
    return " ".join(text.split()[:40])


def sentences(part, n):
    out = [sentence(r["text"]) for r in c.rows(part)[:n]]
    if len(out) != n:
        raise RuntimeError("%s has only %d texts" % (part, len(out)))
    return out


def inputs(session):
    """The names of ids, mask and types in a model."""
    names = [i.name for i in session.get_inputs()]
    return [next(n for n in names if key in n) for key in ("input_ids", "mask", "type")]


def embed(path, encoded, session=c.session):
    s = session(path)
    order = inputs(s)
    return np.stack([s.run(None, c.ids_feeds(ids, order))[0][0].mean(0) for ids in encoded])


def cosine(a, b):
    return (a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)


def peer(model, encoded, out):
    from onnxruntime.quantization import CalibrationDataReader, quantize_static
    order = inputs(c.session(model))

    class Reader(CalibrationDataReader):
        def __init__(self):
            self.it = iter(encoded)

        def get_next(self):
            ids = next(self.it, None)
            return None if ids is None else c.ids_feeds(ids, order)

    quantize_static(str(model), str(out), Reader())


def main():
    r = c.Result("fidelity", "Encoder fidelity", __doc__.strip())
    t = c.tokenizer(TOKENS)
    cal, ev = sentences("calib", CALIB), sentences("test", EVAL)
    if set(cal) & set(ev):
        raise RuntimeError("calibration and evaluation share a sentence")
    data = c.WORK / "sentences.jsonl"
    data.write_text("".join(json.dumps({"text": s}) + "\n" for s in cal), encoding="utf-8")
    encoded = [t.encode(s).ids for s in ev]
    for name, folder in (("plain", c.MINILM), ("fused", c.MINILM_FUSED)):
        model = folder / "model.onnx"
        reference = embed(model, encoded)
        for what, args, mean_bar, min_bar in (
                ("default command", (), SMOOTH_MEAN, PLAIN_MIN),
                ("static, no smoothing", ("--no-smooth",), PLAIN_MEAN, PLAIN_MIN),
                ("int8-dynamic", ("--scheme", "int8-dynamic"), PLAIN_MEAN, PLAIN_MIN)):
            out = c.WORK / ("minilm-%s-%s.onnx" % (name, what.split()[0].strip(",")))
            calib = () if "int8-dynamic" in args else ("--calib", data)
            try:
                c.fewbit("quantize", model, "-o", out, *calib, *args, "--force", "--no-latency")
            except RuntimeError as e:
                r.row("cosine, MiniLM %s file, %s" % (name, what), "failed", str(e), None, "mean >= %.3f, min >= %.3f" % (mean_bar, min_bar), False)
                continue
            v = cosine(reference, embed(out, encoded))
            r.row("cosine, MiniLM %s file, %s" % (name, what), "mean %.4f, min %.4f" % (v.mean(), v.min()), "", None,
                  "mean >= %.3f, min >= %.3f" % (mean_bar, min_bar), bool(v.mean() >= mean_bar and v.min() >= min_bar), n=len(v), mean=float(v.mean()), min=float(v.min()))
        if name == "plain":
            out = c.WORK / "minilm-peer.onnx"
            peer(model, [t.encode(s).ids for s in cal], out)
            v = cosine(reference, embed(out, encoded))
            r.row("cosine, MiniLM plain file, onnxruntime static defaults", "", "mean %.4f, min %.4f" % (v.mean(), v.min()), n=len(v), mean=float(v.mean()), min=float(v.min()))
    r.save()


if __name__ == "__main__":
    main()
