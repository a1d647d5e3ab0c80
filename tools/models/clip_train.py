#!/usr/bin/env python3
"""Trains a small CLIP model on Fashion-MNIST with captions, on a CPU.

    .deps/venv-clip/bin/python tools/models/clip_train.py [--epochs N] [--out DIR]

Reads .deps/data/fashion-mnist and .deps/raw/clip-bpe.txt.gz, both of tools/fetch,
and writes DIR/weights.npz and DIR/train.json. clip.py makes the graph of them.

Image tower: four convolutions, then a ViT over 4x4 tokens and a class token.
Text tower: causal, over the 49,408 tokens of CLIP. Fusion: the text's tokens
attend to the image's (cross-attention), a matching score is read at the end
token. Losses: contrastive both ways (Radford et al. 2021), and matching against
a hard negative (Li et al. 2021, ALBEF).

55,000 of the 60,000 training images train; the other 5,000 judge a setting, and
play the device's camera later. The test images are not read here. The state is
written after each epoch, and an interrupted run goes on from there with the
same numbers: every epoch has random generators of its own. The same machine
gives the same weights; another kind of processor rounds differently.
"""
import argparse
import gzip
import json
import math
import os
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from clip_text import CLASSES, SEEN, TEMPLATES, TEXT, UNSEEN, VOCAB, Encoder

ROOT = Path(__file__).resolve().parents[2]
DEPS = Path(os.environ.get("FEWBIT_DEPS") or ROOT / ".deps")
MEAN, STD = 0.2860, 0.3530  # of the training images, 0..1
HELD = 5000  # the last of the training images
WIDTH, HEADS, IMAGE_LAYERS, TEXT_LAYERS, TOKENS = 96, 4, 2, 3, 17
STEM = ((1, 16, 1), (16, 32, 2), (32, 64, 2), (64, WIDTH, 2))  # channels in and out, stride
BATCH, RATE, WARMUP, DECAY, SEED = 256, 2e-3, 0.1, 0.05, 0
CAPTIONS = 2  # of each class in a batch
MOMENTUM = 0.9  # of the batch statistics that the graph keeps
MASKED = -1e4


def images(name):
    with gzip.open(str(DEPS / "data/fashion-mnist" / (name + "-images-idx3-ubyte.gz"))) as f:
        x = np.frombuffer(f.read(), np.uint8, offset=16).reshape(-1, 28, 28, 1)
    with gzip.open(str(DEPS / "data/fashion-mnist" / (name + "-labels-idx1-ubyte.gz"))) as f:
        y = np.frombuffer(f.read(), np.uint8, offset=8).astype(np.int32)
    return (x.astype(np.float32) / 255 - MEAN) / STD, y


def initial(rows):
    """The parameters by name; rows are the token ids that a caption uses."""
    r, p = np.random.default_rng(SEED), {}

    def normal(name, std, *dims):
        p[name] = (std * r.standard_normal(dims)).astype(np.float32)

    def dense(name, a, b):
        normal(name + ".w", 1 / math.sqrt(a), a, b)
        p[name + ".b"] = np.zeros(b, np.float32)

    def norm(name, n):
        p[name + ".g"], p[name + ".b"] = np.ones(n, np.float32), np.zeros(n, np.float32)

    def attention(name):
        for part in "qkvo":
            dense(name + "." + part, WIDTH, WIDTH)

    def block(name):
        norm(name + ".ln1", WIDTH)
        attention(name + ".attn")
        norm(name + ".ln2", WIDTH)
        dense(name + ".up", WIDTH, 4 * WIDTH)
        dense(name + ".down", 4 * WIDTH, WIDTH)

    for i, (a, b, _) in enumerate(STEM):
        normal("image.stem%d.w" % i, math.sqrt(2 / (9 * a)), 3, 3, a, b)
        norm("image.stem%d" % i, b)
    normal("image.class", 0.02, WIDTH)
    normal("image.positions", 0.02, TOKENS, WIDTH)
    for i in range(IMAGE_LAYERS):
        block("image.%d" % i)
    norm("image.ln", WIDTH)
    normal("image.proj", 1 / math.sqrt(WIDTH), WIDTH, WIDTH)
    normal("text.table", 0.02, rows, WIDTH)
    normal("text.positions", 0.01, TEXT, WIDTH)
    for i in range(TEXT_LAYERS):
        block("text.%d" % i)
    norm("text.ln", WIDTH)
    normal("text.proj", 1 / math.sqrt(WIDTH), WIDTH, WIDTH)
    norm("match.lnc", WIDTH)
    attention("match.cross")
    block("match.0")
    norm("match.ln", WIDTH)
    dense("match.head", WIDTH, 1)
    p["scale"] = np.float32(math.log(1 / 0.07))
    return p


def moving():
    """Mean and variance of the batch normalizations, for the graph."""
    return {"image.stem%d.%s" % (i, part): np.full(b, value, np.float32) for i, (_, b, _) in enumerate(STEM) for part, value in (("mean", 0), ("var", 1))}


def dense(p, name, x):
    return x @ p[name + ".w"] + p[name + ".b"]


def norm(p, name, x):
    x = x - x.mean(-1, keepdims=True)
    return x * jax.lax.rsqrt((x * x).mean(-1, keepdims=True) + 1e-5) * p[name + ".g"] + p[name + ".b"]


def attention(p, name, x, y, mask=None):
    def heads(t):
        return t.reshape(t.shape[0], t.shape[1], HEADS, WIDTH // HEADS).transpose(0, 2, 1, 3)
    q, k, v = heads(dense(p, name + ".q", x)), heads(dense(p, name + ".k", y)), heads(dense(p, name + ".v", y))
    a = q @ k.transpose(0, 1, 3, 2) * (WIDTH // HEADS) ** -0.5
    if mask is not None:
        a = a + mask
    return dense(p, name + ".o", (jax.nn.softmax(a) @ v).transpose(0, 2, 1, 3).reshape(x.shape))


def block(p, name, x, mask=None):
    y = norm(p, name + ".ln1", x)
    x = x + attention(p, name + ".attn", y, y, mask)
    y = dense(p, name + ".up", norm(p, name + ".ln2", x))
    return x + dense(p, name + ".down", y * jax.nn.sigmoid(1.702 * y))  # QuickGELU, as in CLIP


def unit(x):
    return x * jax.lax.rsqrt((x * x).sum(-1, keepdims=True) + 1e-12)


def image_tower(p, s, x, train):
    """Unit embeddings, tokens, and the batch statistics seen."""
    seen = {}
    for i, (_, _, stride) in enumerate(STEM):
        n = "image.stem%d" % i
        x = jax.lax.conv_general_dilated(x, p[n + ".w"], (stride, stride), ((1, 1), (1, 1)), dimension_numbers=("NHWC", "HWIO", "NHWC"))
        mean, var = s[n + ".mean"], s[n + ".var"]
        if train:
            mean = x.mean((0, 1, 2))
            var = (x * x).mean((0, 1, 2)) - mean * mean
            seen[n + ".mean"], seen[n + ".var"] = mean, var
        x = jax.nn.relu((x - mean) * jax.lax.rsqrt(var + 1e-5) * p[n + ".g"] + p[n + ".b"])
    x = x.reshape(x.shape[0], -1, WIDTH)
    x = jnp.concatenate([jnp.broadcast_to(p["image.class"], (x.shape[0], 1, WIDTH)), x], 1) + p["image.positions"]
    for i in range(IMAGE_LAYERS):
        x = block(p, "image.%d" % i, x)
    x = norm(p, "image.ln", x)
    return unit(x[:, 0] @ p["image.proj"]), x, seen


CAUSAL = np.triu(np.full((TEXT, TEXT), MASKED, np.float32), 1)


def text_tower(p, rows, end):
    """rows index text.table; end is where each end token lies."""
    x = p["text.table"][rows] + p["text.positions"]
    for i in range(TEXT_LAYERS):
        x = block(p, "text.%d" % i, x, CAUSAL)
    x = norm(p, "text.ln", x)
    return unit(x[jnp.arange(len(end)), end] @ p["text.proj"]), x


def match(p, image, text, end):
    """Scores of pairs: image [n,TOKENS,d], text [n,c,TEXT,d], end [n,c] -> [n,c]."""
    n, c = end.shape
    x = text.reshape(n, c * TEXT, WIDTH)
    x = (x + attention(p, "match.cross", norm(p, "match.lnc", x), image)).reshape(n * c, TEXT, WIDTH)
    x = block(p, "match.0", x, CAUSAL)
    x = norm(p, "match.ln", x[jnp.arange(n * c), end.reshape(-1)])
    return dense(p, "match.head", x).reshape(n, c)


def loss(p, s, x, y, rows, end, noise):
    ie, it, seen = image_tower(p, s, x, True)
    te, tt = text_tower(p, rows, end)
    logits = jnp.exp(p["scale"]) * ie @ te.T
    of = jnp.repeat(jnp.arange(len(CLASSES)), CAPTIONS)
    pos = (y[:, None] == of[None]).astype(jnp.float32)  # captions of one class are no negatives of each other
    li = -(pos / CAPTIONS * jax.nn.log_softmax(logits, 1)).sum(1).mean()
    count = pos.sum(0)
    lt = -(pos / jnp.maximum(count, 1) * jax.nn.log_softmax(logits, 0)).sum(0)
    lt = jnp.where(count > 0, lt, 0).sum() / (count > 0).sum()
    # Matching on a quarter of the batch: a caption of the class, and a wrong one drawn by its similarity.
    h = len(x) // 4
    wrong = jnp.argmax(jax.lax.stop_gradient(logits[:h]) - 1e4 * pos[:h] + noise[:h], 1)
    right = y[:h] * CAPTIONS + (noise[:h, 0] > 0).astype(jnp.int32)
    both = jnp.stack([right, wrong], 1)
    m = match(p, it[:h], tt[both], end[both])
    lm = jax.nn.softplus(jnp.stack([-m[:, 0], m[:, 1]])).mean()
    return 0.5 * (li + lt) + lm, seen


def update(p, s, m, v, step, rate, *batch):
    """One step of AdamW (Loshchilov & Hutter 2019) with the gradient's norm cut at 1."""
    (value, seen), g = jax.value_and_grad(loss, has_aux=True)(p, s, *batch)
    cut = jnp.minimum(1.0, 1 / (jnp.sqrt(sum((x * x).sum() for x in g.values())) + 1e-6))
    for n in p:
        x = g[n] * cut
        m[n] = 0.9 * m[n] + 0.1 * x
        v[n] = 0.98 * v[n] + 0.02 * x * x
        decay = DECAY if p[n].ndim > 1 and n != "text.table" else 0.0
        p[n] = p[n] - rate * (m[n] / (1 - 0.9 ** step) / (jnp.sqrt(v[n] / (1 - 0.98 ** step)) + 1e-8) + decay * p[n])
    p["scale"] = jnp.minimum(p["scale"], math.log(100.0))
    s = {n: MOMENTUM * s[n] + (1 - MOMENTUM) * seen[n] for n in s}
    return p, s, m, v, value


@jax.jit
def scores(p, s, x, rows, end):
    ie, it, _ = image_tower(p, s, x, False)
    te, tt = text_tower(p, rows, end)
    n, c = len(x), len(end)
    cos = jnp.exp(p["scale"]) * ie @ te.T
    return cos, match(p, it, jnp.broadcast_to(tt, (n,) + tt.shape), jnp.broadcast_to(end, (n, c)))


def accuracy(p, s, x, y, rows, end):
    right = {"cosine": 0, "match": 0, "sum": 0}
    for i in range(0, len(x), 500):
        cos, m = scores(p, s, x[i:i + 500], rows, end)
        for name, z in (("cosine", cos), ("match", m), ("sum", cos + m)):
            right[name] += int((np.asarray(z).argmax(1) == y[i:i + 500]).sum())
    return {k: round(v / len(x), 4) for k, v in right.items()}


def augmented(r, x):
    """Each image mirrored or not, the batch moved by up to two pixels."""
    x = np.where(r.random((len(x), 1, 1, 1)) < 0.5, x[:, :, ::-1], x)
    a, b = r.integers(0, 5, 2)
    return np.pad(x, ((0, 0), (2, 2), (2, 2), (0, 0)), constant_values=-MEAN / STD)[:, a:a + 28, b:b + 28]


def save(path, **arrays):
    tmp = path.with_name(path.name + ".part")
    with open(str(tmp), "wb") as f:
        np.savez(f, **arrays)
        f.flush()
        os.fsync(f.fileno())
    tmp.rename(path)


def main():
    ap = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    ap.add_argument("--epochs", type=int, default=7)
    ap.add_argument("--steps", type=int, default=0, help="stop each epoch after this many steps (for a trial)")
    ap.add_argument("--out", type=Path, default=DEPS / "models/clip-fashion")
    a = ap.parse_args()
    a.out.mkdir(parents=True, exist_ok=True)
    encoder = Encoder(DEPS / "raw/clip-bpe.txt.gz")
    captions = [[encoder.caption(t.format(n)) for n in names for t in TEMPLATES] for names in CLASSES]
    prompts = {k: np.array([encoder.caption(t.format(names[0])) for names in CLASSES]) for k, t in (("seen", SEEN), ("unseen", UNSEEN))}
    # Only the rows of tokens that occur in a caption have a gradient: only those are trained.
    used = np.unique(np.concatenate([np.array(c).reshape(-1) for c in captions] + [v.reshape(-1) for v in prompts.values()]))
    row = np.full(VOCAB, -1)
    row[used] = np.arange(len(used))
    captions = [np.array(c) for c in captions]
    x, y = images("train")
    train, held = (x[:-HELD], y[:-HELD]), (x[-HELD:], y[-HELD:])
    p, s = initial(len(used)), moving()
    m, v = {n: np.zeros_like(t) for n, t in p.items()}, {n: np.zeros_like(t) for n, t in p.items()}
    key = json.dumps([a.epochs, a.steps, BATCH, RATE, DECAY, SEED, len(used), Path(__file__).read_text()])
    state, first, spent = a.out / "state.npz", 0, 0.0
    if state.exists():
        old = np.load(str(state))
        if str(old["key"]) == key:
            first, spent = int(old["epoch"]), float(old["seconds"])
            for d, prefix in ((p, "p."), (s, "s."), (m, "m."), (v, "v.")):
                d.update({n: old[prefix + n] for n in d})
            print("train: going on after epoch %d of %d" % (first, a.epochs), flush=True)
    step = jax.jit(update, donate_argnums=(0, 1, 2, 3))
    steps = min(len(train[0]) // BATCH, a.steps or len(train[0]))
    total = steps * a.epochs
    print("train: %d images, %d epochs of %d steps, %d of %d tokens occur" % (len(train[0]), a.epochs, steps, len(used), VOCAB), flush=True)
    for epoch in range(first, a.epochs):
        r, began, told = np.random.default_rng((SEED, epoch)), time.time(), time.time()
        order = r.permutation(len(train[0]))
        for k in range(steps):
            at = order[k * BATCH:(k + 1) * BATCH]
            ids = np.concatenate([c[r.choice(len(c), CAPTIONS, replace=False)] for c in captions])
            done = (epoch * steps + k) / total
            rate = RATE * (done / WARMUP if done < WARMUP else 0.5 + 0.5 * math.cos(math.pi * (done - WARMUP) / (1 - WARMUP)))
            noise = r.gumbel(size=(BATCH, len(ids))).astype(np.float32)
            p, s, m, v, value = step(p, s, m, v, epoch * steps + k + 1.0, rate, augmented(r, train[0][at]), train[1][at], row[ids], ids.argmax(1), noise)
            if time.time() - told > 10:
                told = time.time()
                print("train: epoch %d, step %d of %d, loss %.3f, about %.0f s left" % (
                    epoch + 1, k, steps, float(value), (told - began) / (k + 1) * (total - epoch * steps - k)), flush=True)
        jax.block_until_ready(p)
        spent += time.time() - began
        ids = prompts["seen"]
        print("train: epoch %d of %d after %.0f s: %s of %d held-out training images" % (
            epoch + 1, a.epochs, spent, accuracy(p, s, *held, row[ids], ids.argmax(1)), HELD), flush=True)
        save(state, key=key, epoch=epoch + 1, seconds=spent, **{c + n: t for c, d in (("p.", p), ("s.", s), ("m.", m), ("v.", v)) for n, t in d.items()})
    judged = {k: accuracy(p, s, *held, row[ids], ids.argmax(1)) for k, ids in prompts.items()}
    # The other rows of the table keep random values of the trained ones' spread: no caption can tell.
    table = np.random.default_rng((SEED, 1)).standard_normal((VOCAB, WIDTH)).astype(np.float32) * np.std(np.asarray(p["text.table"]))
    table[used] = p["text.table"]
    p = dict(p, **{"text.table": table})
    save(a.out / "weights.npz", **{n: np.asarray(t) for n, t in list(p.items()) + list(s.items())})
    facts = dict(epochs=a.epochs, steps=total, seconds=round(spent, 1), seed=SEED, images=len(train[0]), held=HELD, tokens_used=len(used), vocabulary=VOCAB,
                 parameters=int(sum(np.size(t) for t in p.values())), accuracy=judged, mean=MEAN, std=STD, masked=MASKED,
                 classes=[c[0] for c in CLASSES], template=SEEN, unseen_template=UNSEEN, prompts={k: t.tolist() for k, t in prompts.items()},
                 jax=jax.__version__)
    (a.out / "train.json").write_text(json.dumps(facts, indent=1) + "\n")
    state.unlink()
    print("train: %s" % judged, flush=True)


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        print("train: stopped; whole epochs are kept, the same command goes on", flush=True)
        os._exit(130)  # a step may still be running in JAX's threads, which an orderly end would crash
