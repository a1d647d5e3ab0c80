"""Reference for prune_test.go: SparseGPT as in the authors' code (Frantar and Alistarh
2023), Wanda (Sun et al. 2023) and magnitude, in NumPy and float64. Weights are [out, in]
as there; the file holds them as [in, out].
Run: python prune.py > prune.json (numpy 1.26 or 2)."""
import json
import numpy as np

RNG = np.random.default_rng(11)


def lowest(scores, count):
    mask = np.zeros(scores.size, bool)
    mask[np.argsort(scores.ravel(), kind="stable")[:count]] = True
    return mask.reshape(scores.shape)


def pattern(scores):
    mask = np.zeros(scores.shape, bool)
    for i in range(0, scores.shape[1], 4):
        for r in range(len(scores)):
            mask[r, i + np.argsort(scores[r, i:i + 4], kind="stable")[:2]] = True
    return mask


def sparsegpt(w, h, share, two_four, block=128, damp=0.01):
    w, h = w.copy(), h.copy()
    dead = np.diag(h) == 0
    h[np.arange(len(h)), np.arange(len(h))] += damp * np.diag(h).mean()
    h[dead, dead] = 1
    w[:, dead] = 0
    u = np.linalg.cholesky(np.linalg.inv(h)).T  # upper
    cols = w.shape[1]
    for i1 in range(0, cols, block):
        i2 = min(i1 + block, cols)
        w1, u1 = w[:, i1:i2].copy(), u[i1:i2, i1:i2]
        err = np.zeros_like(w1)
        mask = np.zeros(w1.shape, bool)
        if not two_four:
            scores = w1 ** 2 / np.diag(u1) ** 2
            mask = lowest(scores, int(share * scores.size))
        for i in range(i2 - i1):
            if two_four and i % 4 == 0:
                mask[:, i:i + 4] = pattern(w1[:, i:i + 4] ** 2 / np.diag(u1)[i:i + 4] ** 2)
            q = np.where(mask[:, i], 0, w1[:, i])
            err[:, i] = (w1[:, i] - q) / u1[i, i]
            w1[:, i:] -= np.outer(err[:, i], u1[i, i:])
            w1[:, i] = q
        w[:, i1:i2] = w1
        w[:, i2:] -= err @ u[i1:i2, i2:]
    return w


def case(k, n, rows, share, two_four):
    mix = RNG.normal(size=(k, k)) * 0.3 + np.eye(k)
    x = (RNG.normal(size=(rows, k)) @ mix * np.exp(RNG.normal(size=k))).round(2)
    w = RNG.normal(size=(n, k)).round(4)
    h = x.T @ x
    mag, wan = np.abs(w), np.abs(w) * np.sqrt(np.diag(h))
    if two_four:
        masks = pattern(mag), pattern(wan)
    else:
        masks = lowest(mag, int(share * mag.size)), np.stack([lowest(r, int(share * k)) for r in wan])
    flat = lambda a: [round(float(v), 6) for v in a.T.ravel()]
    return dict(K=k, N=n, Share=share, Pattern=two_four, X=[float(v) for v in x.ravel()], W=[float(v) for v in w.T.ravel()],
                Magnitude=flat(w * ~masks[0]), Wanda=flat(w * ~masks[1]), SparseGPT=flat(sparsegpt(w, h, share, two_four)))


print(json.dumps([case(24, 6, 60, 0.5, False), case(24, 6, 60, 0.5, True), case(140, 3, 50, 0.6, False), case(140, 3, 50, 0.5, True)]))
