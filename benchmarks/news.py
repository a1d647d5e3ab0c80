"""The five-class news classifier: accuracy of INT8 against FP32 on 1,000 held-out texts.

fewbit quantizes with its default command, calibrated on 64 other texts. The
judge is onnxruntime in Python with Hugging Face tokenizers, one text at a time:
neither fewbit's tokenizer nor its engine is involved in the accuracy.
"""
import math

import numpy as np

import common as c

TOKENS, BAR = 128, 0.005


def answers(path, encoded):
    s = c.session(path)
    return np.array([s.run(None, c.ids_feeds(ids))[0][0].argmax() for ids in encoded])


def main():
    r = c.Result("news", "News classifier accuracy", __doc__.strip())
    labels = (c.NEWS / "labels.txt").read_text().split()
    test, t = c.rows("test"), c.tokenizer(TOKENS)
    y, encoded = np.array([labels.index(x["label"]) for x in test]), [t.encode(x["text"]).ids for x in test]
    model, out = c.NEWS / "model.onnx", c.WORK / "news-int8.onnx"
    c.fewbit("quantize", model, "-o", out, "--calib", c.BBC / "calib.jsonl", "--force", "--no-latency")
    a, b = answers(model, encoded), answers(out, encoded)
    n, fp32, int8 = len(y), int((a == y).sum()), int((b == y).sum())
    difference = (b == y).astype(float) - (a == y)
    half = 1.96 * difference.std() / math.sqrt(n)
    loss = -difference.mean()
    show = lambda k: "%.2f %% [%.2f, %.2f]" % ((100 * k / n,) + tuple(100 * v for v in c.wilson(k, n)))
    r.row("news accuracy, %d texts" % n, show(int8), "FP32: " + show(fp32), None, "within 0.5 points", bool(loss <= BAR), n=n, fp32_right=fp32, int8_right=int8,
          difference_points=[100 * (-loss), 100 * (-loss - half), 100 * (-loss + half)], agreement=float((a == b).mean()))
    r.row("news answers equal to FP32", "%.2f %%" % (100 * (a == b).mean()), "", None)
    r.save()


if __name__ == "__main__":
    main()
