"""Writes blocks.json: weights in 4-bit blocks by HQQ and by AWQ, from the papers' formulas with NumPy in float64.

python blocks.py > blocks.json
"""
import json
import sys

import numpy as np

BLOCK = 32


def hqq(x, rounds=20, p=0.7, beta=10.0, kappa=1.01):
    """One block: the half-quadratic iteration of Badri and Shaji, whose closed form solves for the scale (zero point 0)."""
    s = x[np.abs(x).argmax()] / -8
    best, least = s, np.inf
    for _ in range(rounds + 1):
        q = np.clip(np.rint(x / s), -8, 7)
        d = x - q * s
        if not np.abs(d).sum() < least:
            break
        best, least = s, np.abs(d).sum()
        e = np.sign(d) * np.maximum(np.abs(d) - np.maximum(np.abs(d), 1e-8) ** (p - 1) / beta, 0)
        s = (q * (x - e)).sum() / (q * q).sum()
        beta *= kappa
    return best


def blocks(w, scale):
    """w [K, N] rounded in blocks down its columns, each with scale(values, rows)."""
    out = np.empty_like(w)
    for c in range(w.shape[1]):
        for b in range(0, w.shape[0], BLOCK):
            x = w[b:b + BLOCK, c]
            s = scale(x, slice(b, b + BLOCK))
            out[b:b + BLOCK, c] = np.clip(np.rint(x / s), -8, 7) * s
    return out


def extreme(x, _):
    return x[np.abs(x).argmax()] / -8


def awq(x, w):
    """(exponent, error with it, error without): scales by mean|x|^r, the grid, then the clip search weighed by E[x^2]."""
    y, a, p = x @ w, np.abs(x).mean(0), (x * x).mean(0)

    def divisors(r):
        d = np.maximum(a ** r, 1e-4)
        return d / np.sqrt(d.max() * d.min())

    def error(d, q):
        return (((x / d) @ q - y) ** 2).sum() / (y ** 2).sum()

    def clip(weight):
        def scale(v, rows):
            tries = [extreme(v, rows) * (1 - 0.4 * i / 20) for i in range(21)]
            return min(tries, key=lambda s: (weight[rows] * (v - np.clip(np.rint(v / s), -8, 7) * s) ** 2).sum())
        return scale

    r = min((k / 20 for k in range(20)), key=lambda r: error(divisors(r), blocks(w * divisors(r)[:, None], extreme)))
    d = divisors(r)
    one = np.ones_like(a)
    return r, error(d, blocks(w * d[:, None], clip(p / d ** 2))), error(one, blocks(w, clip(p)))


def main():
    rng = np.random.RandomState(11)
    w = rng.standard_t(4, (96, 3)) * 0.05
    w = w.astype(np.float32)
    scales = [[float(hqq(w[b:b + BLOCK, c].astype(np.float64))) for b in range(0, 96, BLOCK)] for c in range(3)]
    x = (rng.randn(40, 64) * np.exp(1.5 * rng.randn(64))).astype(np.float32)
    v = (rng.randn(64, 6) * 0.1).astype(np.float32)
    r, after, before = awq(x.astype(np.float64), v.astype(np.float64))
    json.dump({"HQQ": {"K": 96, "N": 3, "W": w.ravel().tolist(), "Scales": scales},
               "AWQ": {"K": 64, "N": 6, "X": x.ravel().tolist(), "W": v.ravel().tolist(), "Exponent": r, "After": after, "Before": before}}, sys.stdout)


if __name__ == "__main__":
    main()
