#!/usr/bin/env python3
"""Trains the linear head of an example: examples/news/head.json (the default), or

    .deps/venv-peers/bin/python tools/head/train.py --encoder bert-base --data movies \\
        --out examples/text-classification/head.json

The encoder (a folder of .deps/models) stays as it is. Each training text is cut
to 128 tokens and embedded alone, without padding; its embedding is the mean of
its token vectors. A logistic regression maps it to the classes. The penalty is
chosen by 5-fold cross-validation inside the training split; the test split is
only read to print the accuracy that the finished head reaches, with its 95 %
Wilson interval.
"""
import argparse
import base64
import hashlib
import json
import math
from pathlib import Path

import numpy as np
import onnxruntime as ort
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import cross_val_score
from tokenizers import Tokenizer

ROOT = Path(__file__).resolve().parents[2]
MAX_TOKENS = 128
PENALTIES = (0.003, 0.03, 0.3, 1.0, 3.0, 10.0, 30.0)


def rows(path):
    return [json.loads(line) for line in open(path, encoding="utf-8")]


def embed(session, tokenizer, texts):
    """[n, hidden] float32: the mean token vector of each text."""
    out = []
    for text in texts:
        ids = np.array([tokenizer.encode(text).ids], np.int64)
        hidden = session.run([session.get_outputs()[0].name], {"input_ids": ids, "attention_mask": np.ones_like(ids), "token_type_ids": np.zeros_like(ids)})[0]
        out.append(hidden[0].mean(axis=0))
    return np.stack(out)


def wilson(right, n, z=1.96):
    p = right / n
    mid, half = p + z * z / (2 * n), z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    return (mid - half) / (1 + z * z / n), (mid + half) / (1 + z * z / n)


def weights_of(model):
    """(coefficients [classes, hidden], intercepts [classes]); of two classes scikit-learn keeps the second's alone."""
    if len(model.coef_) > 1:
        return model.coef_, model.intercept_
    return np.concatenate([-model.coef_, model.coef_]) / 2, np.concatenate([-model.intercept_, model.intercept_]) / 2


def main():
    ap = argparse.ArgumentParser()
    ap.add_argument("--threads", type=int, default=2)
    ap.add_argument("--encoder", default="minilm-fused", help="folder below .deps/models")
    ap.add_argument("--data", default="bbc", help="folder below .deps/data with train.jsonl and test.jsonl")
    ap.add_argument("--out", default="examples/news/head.json")
    args = ap.parse_args()
    encoder, data, out = ROOT / ".deps/models" / args.encoder, ROOT / ".deps/data" / args.data, ROOT / args.out
    options = ort.SessionOptions()
    options.intra_op_num_threads = args.threads
    session = ort.InferenceSession(str(encoder / "model.onnx"), options, providers=["CPUExecutionProvider"])
    tokenizer = Tokenizer.from_file(str(encoder / "tokenizer.json"))
    tokenizer.enable_truncation(MAX_TOKENS)
    tokenizer.no_padding()

    train, test = rows(data / "train.jsonl"), rows(data / "test.jsonl")
    labels = sorted({r["label"] for r in train})
    x, y = embed(session, tokenizer, [r["text"] for r in train]), np.array([labels.index(r["label"]) for r in train])
    scores = {c: float(cross_val_score(LogisticRegression(C=c, max_iter=5000), x, y, cv=5).mean()) for c in PENALTIES}
    best = max(PENALTIES, key=lambda c: scores[c])
    weight, bias = weights_of(LogisticRegression(C=best, max_iter=5000, tol=1e-6).fit(x, y))
    weight, bias = weight.astype("<f4"), bias.astype("<f4")
    print("5-fold accuracy on train:", {c: round(s, 4) for c, s in scores.items()}, "-> C =", best)

    xt, yt = embed(session, tokenizer, [r["text"] for r in test]), np.array([labels.index(r["label"]) for r in test])
    right = int(((xt @ weight.T + bias).argmax(axis=1) == yt).sum())
    low, high = wilson(right, len(yt))
    print("test accuracy %.4f (%d of %d), 95 %% interval %.4f to %.4f" % (right / len(yt), right, len(yt), low, high))

    digest = lambda p: hashlib.sha256(p.read_bytes()).hexdigest()
    training = {"texts": len(train), "penalty_C": best, "cross_validation_accuracy": scores[best],
                "train_sha256": digest(data / "train.jsonl"), "encoder_sha256": digest(encoder / "model.onnx"), "tokenizer_sha256": digest(encoder / "tokenizer.json")}
    if (encoder / "model.onnx_data").exists():
        training["encoder_data_sha256"] = digest(encoder / "model.onnx_data")
    facts = {
        "about": "Linear head: class scores = mean token vector of %s (%d tokens) x weight^T + bias. Made by tools/head/train.py." % (args.encoder, MAX_TOKENS),
        "labels": labels, "max_tokens": MAX_TOKENS, "pooling": "mean",
        "weight_shape": list(weight.shape), "weight_f32le_base64": base64.b64encode(weight.tobytes()).decode(),
        "bias": [float(b) for b in bias], "training": training,
        "test": {"texts": len(yt), "right": right, "accuracy": right / len(yt), "interval95": [low, high], "test_sha256": digest(data / "test.jsonl")},
    }
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
    print("wrote", out.relative_to(ROOT), out.stat().st_size, "bytes")


if __name__ == "__main__":
    main()
