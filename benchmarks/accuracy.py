"""How close each method stays to FP32, over several draws of calibration data.

Text: one sentence from each news document; 64 calibrate, 400 of other documents
judge (BERT-base: 200). Images: EfficientNet-lite0, 64 of the 128 calibration stamps
calibrate, 461 others and 139 photos judge. fewbit runs with its defaults for each
scheme and form; with recipe cv it measures on the calibration samples which operators stay
in FP32. The judge is onnxruntime in Python on the written file: each text alone,
unpadded, token vectors averaged, cosine against FP32; top-1 agreement and SQNR of
the logits. A row gives the mean over the draws and, after +-, the standard
deviation over them; the minimum is the least over all. For 4 bits rounding to
nearest stands beside it, which is what onnxruntime's MatMulNBitsQuantizer does by
default (symmetric, blocks of 32); its GPTQ and HQQ need Neural Compressor and
PyTorch, which the peers' environment does not hold. Beside MiniLM's default stands
NNCF's preset for transformers on the same draws. A method that is not the default
(AdaRound, block reconstruction, HQQ, equalization with absorbed biases, 4-bit weights of
convolutions) runs on the first
one or two of the same draws, and what the default gave on these stands beside it.
"""
import json
import os
import random

import numpy as np

import common as c
from fidelity import cosine, embed, sentences
from vision import scores

DRAWS, CALIB, TOKENS = 5, 64, 128
NATIVE = ("INT8 by row, native form", ("--target", "cpu"))
# Methods that are no default, and on how many draws they run: learning takes minutes.
TEXT_METHODS = (
    ("INT8 static, AdaRound", ("--weights", "adaround"), "INT8 static, portable form", 1),
    ("INT8 static, block reconstruction", ("--weights", "brecq"), "INT8 static, portable form", 1),
    ("INT4, HQQ", ("--scheme", "int4", "--weights", "hqq"), "INT4, blocks of 32", 1),
    ("INT4, block reconstruction", ("--scheme", "int4", "--weights", "brecq"), "INT4, blocks of 32", 1),
)
IMAGE_METHODS = (
    ("INT8, AdaRound", ("--weights", "adaround"), 2),
    ("INT8, equalization and absorbed biases", ("--equalize",), 2),
    ("INT8, block reconstruction", ("--weights", "brecq"), 2),
    ("INT4 weights", ("--scheme", "int4"), 1),
)
ONLY = os.environ.get("ACCURACY", "").split()  # minilm, efficientnet, bert; the rows of the others stay


def draws(n):
    """n disjoint sets of CALIB sentences of documents that judge nothing."""
    pool = sentences("train", n * CALIB)
    random.Random(1).shuffle(pool)
    out = []
    for i in range(n):
        path = c.WORK / ("accuracy-%d.jsonl" % i)
        path.write_text("".join(json.dumps({"text": s}) + "\n" for s in pool[i * CALIB:(i + 1) * CALIB]), encoding="utf-8")
        out.append((path, pool[i * CALIB:(i + 1) * CALIB]))
    return out


def neighbours(v):
    v = v / np.linalg.norm(v, axis=1, keepdims=True)
    s = v @ v.T
    np.fill_diagonal(s, -2)
    return s.argmax(1)


def spread(values):
    return float(np.mean(values)), float(np.std(values, ddof=1)) if len(values) > 1 else 0.0


def text(r, name, folder, count, judges, schemes, methods=()):
    t = c.tokenizer(TOKENS)
    encoded = [t.encode(s).ids for s in sentences("test", judges)]
    model = folder / "model.onnx"
    reference = embed(model, encoded)
    nearest = neighbours(reference)

    def judge(path, session=c.session):
        return agree(embed(path, encoded, session))

    def agree(v):
        cos = cosine(reference, v)
        return {"mean": float(cos.mean()), "min": float(cos.min()), "neighbours": float((neighbours(v) == nearest).mean())}

    sets = draws(count)

    def run(args, n):
        found, seconds = [], []
        for i, (path, _) in enumerate(sets[:n]):
            out = c.WORK / ("accuracy-%s.onnx" % name)
            s, _, _ = c.fewbit("quantize", model, "-o", out, "--calib", path, "--eval-samples", "8", "--eval", sets[i - 1][0], "--force", "--no-latency", *args)
            found.append(judge(out, c.packed if "cpu" in args else c.session))
            seconds.append(s)
        return found, seconds

    def words(found):
        mean, sd = spread([f["mean"] for f in found])
        agree, agree_sd = spread([f["neighbours"] for f in found])
        return "cosine %.4f +- %.4f, minimum %.4f, neighbours %.3f +- %.3f" % (mean, sd, min(f["min"] for f in found), agree, agree_sd)

    defaults = {}
    for label, args, mean_bar, min_bar in schemes:
        found, seconds = run(args, count)
        defaults[label] = found
        mean, least = spread([f["mean"] for f in found])[0], min(f["min"] for f in found)
        peer = ""
        theirs = None
        if "int4" in args:
            out = c.WORK / ("accuracy-%s-rtn.onnx" % name)
            c.fewbit("quantize", model, "-o", out, "--scheme", "int4", "--weights", "rtn", "--force", "--no-latency")
            theirs = judge(out)
            peer = "rounding to nearest: %.4f, minimum %.4f, neighbours %.3f" % (theirs["mean"], theirs["min"], theirs["neighbours"])
        holds = mean >= mean_bar and (min_bar is None or least >= min_bar)
        bar = "cosine >= %g" % mean_bar + ("" if min_bar is None else ", min >= %g" % min_bar)
        if name == "MiniLM" and not args and c.FULL:
            theirs = nncf(model, sets, t, encoded, agree)
            peer = "NNCF on the same draws: " + words(theirs)
            holds = holds and spread([f["neighbours"] for f in found])[0] > spread([f["neighbours"] for f in theirs])[0]
            bar += ", neighbours above NNCF's"
        r.row("%s %s" % (name, label), words(found), peer, None, bar, bool(holds),
              part=name.split("-")[0].lower(), commit=r.body["commit"], n=judges, draws=found, nearest=theirs, seconds=seconds)
    for label, args, default, n in methods:
        found, seconds = run(args, n)
        r.row("%s %s" % (name, label), words(found), default_words(words(defaults[default][:n]), n), None, "", None,
              part=name.split("-")[0].lower(), commit=r.body["commit"], n=judges, draws=found, seconds=seconds)


def nncf(model, sets, tokenizer, encoded, agree):
    """What NNCF's preset for transformers gives on each draw, in OpenVINO with FP32 where it does not quantize."""
    import quantizers as q
    calib, judged = c.WORK / "accuracy-calib.json", c.WORK / "accuracy-judged.json"
    judged.write_text(json.dumps(encoded))
    found = []
    for _, chosen in sets:
        calib.write_text(json.dumps([tokenizer.encode(s).ids for s in chosen]))
        found.append(agree(q.peer("nncf", model, c.WORK / "accuracy-nncf.xml", calib, judged)[1]))
    return found


def default_words(text, n):
    return "the default on %s: %s" % ("the same draw" if n == 1 else "the same %d draws" % n, text)


def images(r, count):
    unseen = np.concatenate([np.load(c.STAMPS / "eval.npz")["input"], np.load(c.STAMPS / "labelled.npz")["input"]])
    model, out = c.EFFICIENTNET / "model.onnx", c.WORK / "accuracy-efficientnet.onnx"
    reference = scores(model, unseen)
    pool = np.load(c.STAMPS / "calib.npz")["input"]
    default = image_row(r, count, "INT8", (), None, model, out, unseen, reference, pool)
    image_row(r, count, "INT8, recipe cv", ("--recipe", "cv"), (.94, 23), model, out, unseen, reference, pool)
    for label, args, n in IMAGE_METHODS:
        image_row(r, n, label, args, None, model, out, unseen, reference, pool, default[:n])


def image_words(found):
    agree, agree_sd = spread([f["agreement"] for f in found])
    db, db_sd = spread([f["sqnr_db"] for f in found])
    return "agreement %.3f +- %.3f, %.1f +- %.1f dB" % (agree, agree_sd, db, db_sd)


def image_row(r, count, label, args, bar, model, out, unseen, reference, pool, default=()):
    found, seconds = [], []
    report = c.WORK / "accuracy-images.json"
    for i in range(count):
        pick = np.random.RandomState(i).permutation(len(pool))[:CALIB]
        path = c.WORK / "accuracy-images.npz"
        np.savez(path, input=pool[pick])
        s, _, _ = c.fewbit("quantize", model, "-o", out, "--calib", path, "--eval", c.STAMPS / "labelled.npz", "--eval-samples", "8", "--force", "--no-latency", "--report", report, *args)
        y = scores(out, unseen)
        kept = [o["name"] for o in json.loads(report.read_text())["operators"] if o["precision"] == "fp32"]
        found.append({"agreement": float((y.argmax(1) == reference.argmax(1)).mean()), "sqnr_db": float(10 * np.log10((reference ** 2).sum() / ((y - reference) ** 2).sum())), "fp32": kept})
        seconds.append(s)
    agree, db = spread([f["agreement"] for f in found])[0], spread([f["sqnr_db"] for f in found])[0]
    peer = default_words(image_words(default), len(default)) if default else ""
    r.row("EfficientNet-lite0 " + label, image_words(found), peer, None,
          "agreement >= %.2f, %d dB" % bar if bar else "", bool(agree >= bar[0] and db >= bar[1]) if bar else None,
          part="efficientnet", commit=r.body["commit"], n=len(unseen), draws=found, seconds=seconds)
    return found


def main():
    r = c.Result("accuracy", "Accuracy by method", __doc__.strip())
    few = DRAWS if c.FULL else 2
    if ONLY and r.path.exists():
        r.body["rows"] = [row for row in json.loads(r.path.read_text())["rows"] if row["details"]["part"] not in ONLY]
    if not ONLY or "minilm" in ONLY:
        text(r, "MiniLM", c.MINILM, few, 400, (("INT8 static, portable form", (), .998, .99), NATIVE + (.9993, .997), ("INT4, blocks of 32", ("--scheme", "int4"), .986, None)), TEXT_METHODS)
    if not ONLY or "efficientnet" in ONLY:
        images(r, few)
    if not ONLY or "bert" in ONLY:
        text(r, "BERT-base", c.BERT, few, 200, (("INT8 static, portable form", (), .998, None), NATIVE + (.998, None), ("INT4, blocks of 32", ("--scheme", "int4"), .994, None)))
    r.save()


if __name__ == "__main__":
    main()
