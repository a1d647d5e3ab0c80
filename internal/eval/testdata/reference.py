"""Writes reference.json: values of internal/eval's metrics from SciPy and NumPy.

Run: python3 reference.py > reference.json   (needs numpy and scipy)
"""
import json

import numpy as np
from scipy.stats import binom, binomtest

rng = np.random.default_rng(7)
out = {"wilson": [], "mcnemar": [], "median_rank": [], "quantile": [], "error": [], "pool": [], "nearest": []}

for k, n in [(0, 1), (1, 1), (0, 20), (20, 20), (5, 10), (1, 3), (927, 1000), (9999, 10000), (3, 1000), (200, 400)]:
    ci = binomtest(k, n).proportion_ci(0.95, "wilson")
    out["wilson"].append({"k": k, "n": n, "lo": ci.low, "hi": ci.high})

for b, c in [(0, 0), (0, 1), (9, 6), (0, 12), (30, 10), (100, 140), (5, 5), (400, 300)]:
    out["mcnemar"].append({"b": b, "c": c, "p": binomtest(b, b + c, 0.5).pvalue if b + c else 1.0})

# The largest rank l with 1 - 2*P(Binomial(n, 1/2) <= l-1) >= 0.95.
for n in [1, 2, 5, 6, 7, 8, 9, 10, 20, 50, 51, 100, 200, 1000]:
    ranks = [r for r in range(1, (n + 1) // 2 + 1) if 1 - 2 * binom.cdf(r - 1, n, 0.5) >= 0.95]
    l = max(ranks) if ranks else 1
    out["median_rank"].append({"n": n, "rank": l, "coverage": max(0.0, 1 - 2 * float(binom.cdf(l - 1, n, 0.5)))})

x = rng.lognormal(size=37)
out["quantile"] = {"x": x.tolist(), "q": [0, 0.01, 0.05, 0.5, 0.9, 0.99, 1], "v": np.quantile(x, [0, 0.01, 0.05, 0.5, 0.9, 0.99, 1]).tolist()}

for scale, bits in [(1.0, 8), (100.0, 8), (1e-3, 4), (3.0, 2)]:
    y = (rng.normal(size=200) * scale).astype(np.float32)
    s = np.float32(np.abs(y).max() / (2 ** (bits - 1) - 1))
    z = (np.rint(y / s) * s).astype(np.float32)
    a, b = y.astype(np.float64), z.astype(np.float64)
    out["error"].append({
        "y": y.tolist(), "z": z.tolist(),
        "sqnr": float(10 * np.log10((a**2).sum() / ((a - b) ** 2).sum())),
        "cosine": float(a @ b / np.linalg.norm(a) / np.linalg.norm(b)),
        "max_abs": float(np.abs(a - b).max()),
        "rel_mse": float(((a - b) ** 2).sum() / (a**2).sum()),
    })

h = rng.normal(size=(5, 3)).astype(np.float32)
m = np.array([1, 1, 0, 1, 0])
out["pool"] = {"h": h.ravel().tolist(), "mask": m.tolist(), "v": ((h * m[:, None]).sum(0, dtype=np.float64) / m.sum()).tolist()}

p = rng.normal(size=(40, 6)).astype(np.float32)
q = (p + 0.35 * rng.normal(size=p.shape)).astype(np.float32)


def nn(v):
    v = v / np.linalg.norm(v, axis=1, keepdims=True)
    s = v @ v.T
    np.fill_diagonal(s, -9)
    return s.argmax(1)


out["nearest"] = {"n": 40, "d": 6, "ref": p.ravel().tolist(), "quant": q.ravel().tolist(), "same": int((nn(p) == nn(q)).sum())}
print(json.dumps(out))
