"""Writes entropy.json: thresholds of the TensorRT entropy calibration on random
histograms, by its definition in NVIDIA's modelopt (compute_amax_entropy:
np.digitize over np.linspace, no prefix sums), for TestEntropyGolden.

Run: python entropy.py > entropy.json   (needs numpy)
"""
import json

import numpy as np


def keep(bins, levels, start):
    bins = np.array(bins, np.float64)
    bins[0] = bins[1]
    best = []
    for i in range(start, len(bins) + 1):
        part = np.digitize(np.arange(i), np.linspace(0, i, levels + 1)) - 1
        full = bins[:i] > 0
        sums = np.bincount(part[full], bins[:i][full], levels)
        sizes = np.bincount(part[full], minlength=levels)
        q = np.where(full, sums[part] / np.maximum(sizes[part], 1), 0)
        p = bins[:i].copy()
        p[-1] += bins[i:].sum()
        if q.sum() == 0 or np.any((p > 0) & (q == 0)):
            best.append(np.inf)
            continue
        p, q = p / p.sum(), q / q.sum()
        ok = p > 0
        best.append(float((p[ok] * np.log(p[ok] / q[ok])).sum()))
    best = np.array(best)
    last = len(best) - 1 - int(np.argmin(best[::-1]))
    return last + start, float(best[last])


def main():
    r = np.random.RandomState(7)
    cases = []
    for kind in ("normal", "laplace", "outliers", "relu", "sparse", "uniform"):
        for levels in (128, 256):
            n = 700
            x = {
                "normal": lambda: r.randn(20000),
                "laplace": lambda: r.laplace(size=20000),
                "outliers": lambda: np.concatenate([r.randn(20000), r.randn(40) * 12]),
                "relu": lambda: np.maximum(r.randn(20000), 0),
                "sparse": lambda: r.standard_cauchy(size=3000),
                "uniform": lambda: r.rand(20000),
            }[kind]()
            h = np.histogram(np.abs(x), n, (0, np.abs(x).max()))[0]
            k, d = keep(h, levels, max(128, levels))
            cases.append({"name": f"{kind}/{levels}", "levels": levels, "bins": h.tolist(), "keep": k, "divergence": d})
    print(json.dumps(cases, separators=(",", ":")).replace("},{", "},\n{"))


if __name__ == "__main__":
    main()
