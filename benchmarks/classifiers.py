"""Classifiers of texts in both forms: accuracy, and how often the answer is FP32's.

Real encoders with a linear head that was trained on other texts: the movie snippets on BERT-base (praise or blame), the
news on BERT-base and on MiniLM (five classes). fewbit's default command makes each file, calibrated on 64 training texts:
the portable form and the native form, whose kernels the onnxruntime wheel loads. The judge is that wheel with Hugging
Face's tokenizers, one text at a time at its real length. Accuracy is held against FP32's by the interval of matched pairs.
The head for news on BERT-base is trained here, once (tools/head/train.py; some five minutes).
"""
import json
import math
import random
import subprocess
import sys

import numpy as np

import common as c

TOKENS, CALIB = 128, 64
FORMS = (("portable form", "ort-cpu", .985), ("native form", "cpu", .99))


def news_on_bert():
    out = c.DEPS / "models/news-bert"
    head = c.WORK / "news-bert-head.json"
    if not (out / "head.sha256").exists():
        if not head.exists():
            c.say("training the head for news on BERT-base: some five minutes, once")
            c.command([sys.executable, "-B", c.ROOT / "tools/head/train.py", "--encoder", "bert-base", "--data", "bbc", "--out", head.relative_to(c.ROOT)])
        subprocess.run(["go", "run", "./tools/newsmodel", "-encoder", str(c.BERT), "-head", str(head), "-out", str(out)], cwd=c.ROOT, check=True)
    return out


def read(path):
    return [json.loads(line) for line in open(path, encoding="utf-8")]


def answers(session, encoded):
    return np.array([session.run(None, c.ids_feeds(ids))[0][0] for ids in encoded])


def compare(r, name, model, data, limit):
    labels, test, t = (model / "labels.txt").read_text().split(), read(data / "test.jsonl"), c.tokenizer(TOKENS)
    test = test[:limit]
    y, encoded = np.array([labels.index(x["label"]) for x in test]), [t.encode(x["text"]).ids for x in test]
    chosen = read(data / "train.jsonl")
    random.Random(1).shuffle(chosen)
    calibration = c.WORK / "classifiers.jsonl"
    calibration.write_text("".join(json.dumps({"text": x["text"]}) + "\n" for x in chosen[:CALIB]), encoding="utf-8")
    fp32 = answers(c.session(model / "model.onnx"), encoded).argmax(1)
    n = len(y)
    show = lambda k: "%.2f %% [%.2f, %.2f]" % ((100 * k / n,) + tuple(100 * v for v in c.wilson(k, n)))
    for form, target, bar in FORMS:
        out = c.WORK / ("classifiers-%s.onnx" % target)
        c.fewbit("quantize", model / "model.onnx", "-o", out, "--calib", calibration, "--target", target, "--force", "--no-latency")
        ours = answers((c.packed if target == "cpu" else c.session)(out), encoded).argmax(1)
        gain = (ours == y).astype(float) - (fp32 == y)
        mean, half = gain.mean(), 1.96 * gain.std() / math.sqrt(n)
        same = int((ours == fp32).sum())
        r.row("%s, INT8, %s" % (name, form), "%s; %+.2f points [%+.2f, %+.2f]" % ((show(int((ours == y).sum())),) + tuple(100 * v for v in (mean, mean - half, mean + half))),
              "FP32: " + show(int((fp32 == y).sum())), None, "no loss beyond the interval", bool(mean + half >= 0), n=n, difference=[mean, mean - half, mean + half])
        r.row("%s, INT8, %s, answers of FP32" % (name, form), show(same), "", None, ">= %.1f %%" % (100 * bar), bool(same / n >= bar), n=n)


def main():
    r = c.Result("classifiers", "Classifiers of texts", __doc__.strip())
    limit = None if c.FULL else 300
    if not (c.DEPS / "models/movies/head.sha256").exists():
        raise SystemExit("classifiers: .deps/models/movies is not there; run make example-text once, which makes it")
    compare(r, "movie snippets, BERT-base", c.DEPS / "models/movies", c.DEPS / "data/movies", limit)
    compare(r, "news, BERT-base", news_on_bert(), c.BBC, limit)
    compare(r, "news, MiniLM", c.NEWS, c.BBC, limit)
    r.save()


if __name__ == "__main__":
    main()
