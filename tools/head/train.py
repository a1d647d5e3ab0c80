#!/usr/bin/env python3
"""Trains the linear head of the news example and writes examples/news/head.json.

    .deps/venv-peers/bin/python tools/head/train.py [--threads 2]

The encoder (.deps/models/minilm-fused) stays as it is. Each training text is
cut to 128 tokens and embedded alone, without padding; its embedding is the mean
of its token vectors. A multinomial logistic regression maps the 384 values to
the five classes. The penalty is chosen by 5-fold cross-validation inside the
training split; the test split is only read to print the accuracy that the
finished head reaches, with its 95 % Wilson interval.
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
ENCODER, DATA, OUT = ROOT / ".deps/models/minilm-fused", ROOT / ".deps/data/bbc", ROOT / "examples/news/head.json"
MAX_TOKENS = 128
PENALTIES = (0.3, 1.0, 3.0, 10.0, 30.0)


def rows(part):
    return [json.loads(line) for line in open(DATA / (part + ".jsonl"), encoding="utf-8")]


def embed(session, tokenizer, texts):
    """[n, 384] float32: the mean token vector of each text."""
    out = []
    for text in texts:
        ids = np.array([tokenizer.encode(text).ids], np.int64)
        hidden = session.run(None, {"input_ids": ids, "attention_mask": np.ones_like(ids), "token_type_ids": np.zeros_like(ids)})[0]
        out.append(hidden[0].mean(axis=0))
    return np.stack(out)


def wilson(right, n, z=1.96):
    p = right / n
    mid, half = p + z * z / (2 * n), z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    return (mid - half) / (1 + z * z / n), (mid + half) / (1 + z * z / n)


def main():
    ap = argparse.ArgumentParser()
    ap.add_argument("--threads", type=int, default=2)
    args = ap.parse_args()
    options = ort.SessionOptions()
    options.intra_op_num_threads = args.threads
    session = ort.InferenceSession(str(ENCODER / "model.onnx"), options, providers=["CPUExecutionProvider"])
    tokenizer = Tokenizer.from_file(str(ENCODER / "tokenizer.json"))
    tokenizer.enable_truncation(MAX_TOKENS)
    tokenizer.no_padding()

    train, test = rows("train"), rows("test")
    labels = sorted({r["label"] for r in train})
    x, y = embed(session, tokenizer, [r["text"] for r in train]), np.array([labels.index(r["label"]) for r in train])
    scores = {c: float(cross_val_score(LogisticRegression(C=c, max_iter=5000), x, y, cv=5).mean()) for c in PENALTIES}
    best = max(PENALTIES, key=lambda c: scores[c])
    head = LogisticRegression(C=best, max_iter=5000, tol=1e-6).fit(x, y)
    print("5-fold accuracy on train:", {c: round(s, 4) for c, s in scores.items()}, "-> C =", best)

    weight, bias = head.coef_.astype("<f4"), head.intercept_.astype("<f4")  # [5, 384], [5]
    xt, yt = embed(session, tokenizer, [r["text"] for r in test]), np.array([labels.index(r["label"]) for r in test])
    right = int(((xt @ weight.T + bias).argmax(axis=1) == yt).sum())
    low, high = wilson(right, len(yt))
    print("test accuracy %.4f (%d of %d), 95 %% interval %.4f to %.4f" % (right / len(yt), right, len(yt), low, high))

    digest = lambda p: hashlib.sha256(p.read_bytes()).hexdigest()
    facts = {
        "about": "Linear head of the news example: class scores = mean token vector of all-MiniLM-L6-v2 (128 tokens) x weight^T + bias. Made by tools/head/train.py.",
        "labels": labels, "max_tokens": MAX_TOKENS, "pooling": "mean",
        "weight_shape": list(weight.shape), "weight_f32le_base64": base64.b64encode(weight.tobytes()).decode(),
        "bias": [float(b) for b in bias],
        "training": {"texts": len(train), "penalty_C": best, "cross_validation_accuracy": scores[best],
                     "train_sha256": digest(DATA / "train.jsonl"), "encoder_sha256": digest(ENCODER / "model.onnx"),
                     "encoder_data_sha256": digest(ENCODER / "model.onnx_data"), "tokenizer_sha256": digest(ENCODER / "tokenizer.json")},
        "test": {"texts": len(yt), "right": right, "accuracy": right / len(yt), "interval95": [low, high], "test_sha256": digest(DATA / "test.jsonl")},
    }
    OUT.parent.mkdir(parents=True, exist_ok=True)
    OUT.write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
    print("wrote", OUT.relative_to(ROOT), OUT.stat().st_size, "bytes")


if __name__ == "__main__":
    main()
