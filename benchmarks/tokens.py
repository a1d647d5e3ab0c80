"""Token by token: what INT8 by row in the native form does to the worst of them.

BERT-base and MiniLM with the default command of target cpu, calibrated on 64 news sentences, judge 600 movie snippets and
400 sentences of other documents, each text alone: the cosine of every token's vector against FP32, and what the worst
hundredth of them are. Beside it the same of a file whose weights alone are BF16, which computes in FP32 and errs a
hundredth as much: tokens that it moves most too hang on small differences in FP32 already (BERT parks attention that has
nothing to say on separators and punctuation, whose vectors are few large values). Judge: the onnxruntime wheel.
"""
import json
import string

import numpy as np

import common as c
from fidelity import cosine, inputs, sentences

TOKENS, CALIB, SNIPPETS, SENTENCES = 128, 64, 600, 400


def losses(reference, session, encoded):
    """1 - cosine of each token, texts one after the other."""
    order = inputs(session)
    return np.concatenate([1 - cosine(x, session.run(None, c.ids_feeds(ids, order))[0][0]) for x, ids in zip(reference, encoded)])


def encoder(r, name, folder, texts):
    t = c.tokenizer(TOKENS)
    encoded = [t.encode(s).ids for s in texts]
    data, native, bf16 = c.WORK / "tokens.jsonl", c.WORK / "tokens-native.onnx", c.WORK / "tokens-bf16.onnx"
    data.write_text("".join(json.dumps({"text": s}) + "\n" for s in sentences("train", CALIB)), encoding="utf-8")
    c.fewbit("quantize", folder / "model.onnx", "-o", native, "--calib", data, "--target", "cpu", "--force", "--no-latency")
    c.fewbit("quantize", folder / "model.onnx", "-o", bf16, "--scheme", "bf16", "--force", "--no-latency")
    fp32 = c.session(folder / "model.onnx")
    order = inputs(fp32)
    reference = [fp32.run(None, c.ids_feeds(ids, order))[0][0] for ids in encoded]
    lost, moved = losses(reference, c.packed(native), encoded), losses(reference, c.session(bf16), encoded)
    tokens = [t.id_to_token(i) for ids in encoded for i in ids]
    mark = np.array([x in ("[CLS]", "[SEP]") or all(ch in string.punctuation for ch in x) for x in tokens])
    n, worst = len(lost), lost.argsort()[::-1][:len(lost) // 100]
    r.row("%s, native form, each token" % name, "cosine %.4f, %.4f at the worst thousandth, lowest %.4f (%s)" % (1 - lost.mean(), 1 - np.quantile(lost, .999), 1 - lost.max(), tokens[lost.argmax()]),
          n=n, texts=len(texts))
    r.row("%s, the worst hundredth" % name, "%.0f %% are separators or punctuation, which are %.0f %% of all; BF16 weights move them %.0f times as much as the median token" % (
        100 * mark[worst].mean(), 100 * mark.mean(), np.median(moved[worst]) / np.median(moved)), n=len(worst))


def main():
    r = c.Result("tokens", "Token by token", __doc__.strip())
    few = 1 if c.FULL else 4
    snippets = [json.loads(line)["text"] for line in open(c.DEPS / "data/movies/test.jsonl", encoding="utf-8")][:SNIPPETS // few]
    texts = snippets + sentences("test", SENTENCES // few)
    encoder(r, "BERT-base", c.BERT, texts)
    encoder(r, "MiniLM", c.MINILM, texts)
    r.save()


if __name__ == "__main__":
    main()
