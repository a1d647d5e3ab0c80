"""4-bit weights in blocks of 32: fewbit's methods beside each other.

The files are of one size: symmetric codes, one scale a block (awq has a vector more for
each input that it divides). rtn is what onnxruntime's MatMulNBitsQuantizer does by
default for symmetric codes; its hqq needs PyTorch, and has zero points. Methods that look at data take 64 sentences of
documents that judge nothing, five times (BERT-base: twice); the others run once. The
judge is onnxruntime in Python: each text of other documents alone, unpadded, token
vectors averaged, cosine against FP32. A row gives the mean over the draws and, after
+-, their standard deviation, or where there is one file the 95 % interval of the mean
over the texts.
"""
import accuracy as a
import common as c
from fidelity import cosine, embed, sentences

METHODS = (("rtn", False), ("mse", False), ("hqq", False), ("awq", True), ("gptq", True))


def model(r, name, folder, count, judges, bar):
    t = c.tokenizer(a.TOKENS)
    encoded = [t.encode(s).ids for s in sentences("test", judges)]
    path = folder / "model.onnx"
    reference = embed(path, encoded)
    sets = a.draws(count)
    out = c.WORK / ("int4-%s.onnx" % name)

    def judge():
        cos = cosine(reference, embed(out, encoded))
        half = 1.96 * float(cos.std(ddof=1)) / len(cos) ** .5
        return {"mean": float(cos.mean()), "min": float(cos.min()), "half95": half, "bytes": out.stat().st_size}

    def row(label, found, seconds):
        mean, sd = a.spread([f["mean"] for f in found])
        text = "cosine %.4f +- %.4f, minimum %.4f; %.1f MB" % (mean, sd if len(found) > 1 else found[0]["half95"], min(f["min"] for f in found), found[0]["bytes"] / 1e6)
        best = label == "gptq"
        r.row("%s, %s" % (name, label), text, "", None, "cosine >= %.3f" % bar if best else "", bool(mean >= bar) if best else None,
              n=judges, draws=found, seconds=seconds)

    for method, data in METHODS:
        found, seconds = [], []
        for i, (calib, _) in enumerate(sets if data else sets[:1]):
            args = ("--calib", calib, "--eval-samples", "8", "--eval", sets[i - 1][0]) if data else ()
            s, _, _ = c.fewbit("quantize", path, "-o", out, "--scheme", "int4", "--weights", method, "--force", "--no-latency", *args)
            found.append(judge())
            seconds.append(s)
        row(method, found, seconds)


def main():
    r = c.Result("int4", "4-bit weights by method", __doc__.strip())
    model(r, "MiniLM", c.MINILM, a.DRAWS if c.FULL else 2, 400 if c.FULL else 100, .986)
    if c.FULL:
        model(r, "BERT-base", c.BERT, 2, 200, .994)
    r.save()


if __name__ == "__main__":
    main()
