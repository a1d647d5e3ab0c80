"""Reference for gptq_test.go: GPTQ as published (Frantar et al. 2023, algorithm 1
and the authors' code), in NumPy and float64: the inverse of the damped Hessian,
its upper Cholesky factor, and each row's error spread over the rows after it.
Run: python gptq.py > gptq.json (numpy 1.26 or 2)."""
import json
import numpy as np

RNG = np.random.default_rng(7)


def factor(h, damp=0.01):
    h = h.copy()
    mean = np.diag(h).mean()
    dead = np.diag(h) == 0
    h[np.arange(len(h)), np.arange(len(h))] += damp * mean
    h[dead, dead] = 1
    return np.linalg.cholesky(np.linalg.inv(h)).T


def rtn(v, s, lo, hi):
    return np.clip(np.rint(v / s), lo, hi)


def columns(w, h, s, top):
    """Scales fixed, rows with the largest diagonal first."""
    order = np.argsort(-np.diag(h), kind="stable")
    u = factor(h[order][:, order])
    w = w[order].copy()
    codes = np.zeros_like(w)
    for i in range(len(w)):
        codes[i] = rtn(w[i], s, -top, top)
        e = (w[i] - codes[i] * s) / u[i, i]
        w[i + 1:] -= np.outer(u[i, i + 1:], e)
    out = np.zeros_like(codes)
    out[order] = codes
    return out


def clip(x, imp):
    """The scale of a block with the least error weighted by imp."""
    full = x[np.abs(x).argmax()] / -8
    best = None
    for step in range(21):
        s = full * (1 - 0.4 * step / 20)
        e = (imp * (x - rtn(x, s, -8, 7) * s) ** 2).sum()
        if best is None or e < best[0]:
            best = e, s
    return best[1]


def blocks(w, h, size=32):
    """4 bits; the scales of a block come from its rows as they are when it is reached,
    weighed by what an error costs that later rows cannot make up for."""
    u = factor(h)
    w = w.copy()
    codes, scales = np.zeros_like(w), []
    for i in range(len(w)):
        if i % size == 0:
            s = np.array([clip(w[i:i + size, c], 1 / np.diag(u)[i:i + size] ** 2) for c in range(w.shape[1])])
            scales.append(s)
        codes[i] = rtn(w[i], s, -8, 7)
        e = (w[i] - codes[i] * s) / u[i, i]
        w[i + 1:] -= np.outer(u[i, i + 1:], e)
    return codes, np.array(scales)


def hundredths(a):
    """float32 that decimals hold exactly enough: the file stays small."""
    return np.round(a, 2).astype(np.float32)


def inputs(rows, k):
    mix = RNG.normal(size=(k, k)) * (RNG.random(k) ** 3 * 4)
    return hundredths(RNG.normal(size=(rows, k)) @ mix + RNG.normal(size=k))


def patches(x, kernel, stride, pad, dilation, groups):
    """Rows that a convolution's kernel sees: [group][position, channels/group * kernel]."""
    n, c, hh, ww = x.shape
    p = np.zeros((n, c, hh + pad[0] + pad[2], ww + pad[1] + pad[3]), x.dtype)
    p[:, :, pad[0]:pad[0] + hh, pad[1]:pad[1] + ww] = x
    out = []
    for g in range(groups):
        part = p[:, g * c // groups:(g + 1) * c // groups]
        rows = []
        for b in range(n):
            for i in range(0, p.shape[2] - dilation[0] * (kernel[0] - 1), stride[0]):
                for j in range(0, p.shape[3] - dilation[1] * (kernel[1] - 1), stride[1]):
                    rows.append(part[b, :, i:i + dilation[0] * (kernel[0] - 1) + 1:dilation[0],
                                     j:j + dilation[1] * (kernel[1] - 1) + 1:dilation[1]].ravel())
        out.append(np.stack(rows))
    return out


def flat(a):
    a = np.asarray(a).ravel()
    return [float(np.format_float_positional(v)) for v in a]


def ints(a):
    return [int(v) for v in np.asarray(a).ravel()]


def case(k, n, dead=None):
    x = inputs(k + 20, k)
    if dead is not None:
        x[:, dead] = 0
    w = hundredths(RNG.normal(size=(k, n)))
    return x, w, x.astype(np.float64).T @ x.astype(np.float64)


def main():
    out = {}
    x, w, h = case(24, 5, dead=3)
    s = np.abs(w).max(0) / 127
    out["columns"] = {"k": 24, "n": 5, "x": flat(x), "w": flat(w), "scales": flat(s), "top": 127, "codes": ints(columns(w, h, s.astype(np.float32), 127))}
    x, w, h = case(100, 4)  # past one block of rows
    s = np.abs(w).max(0) / 7
    out["long"] = {"k": 100, "n": 4, "x": flat(x), "w": flat(w), "scales": flat(s), "top": 7, "codes": ints(columns(w, h, s.astype(np.float32), 7))}
    x, w, h = case(70, 3)  # two whole blocks and a rest
    codes, scales = blocks(w, h)
    out["blocks"] = {"k": 70, "n": 3, "x": flat(x), "w": flat(w), "scales": flat(scales), "codes": ints(codes)}
    convs = []
    for name, shape, kernel, stride, pad, dilation, groups in (
            ("plain", (2, 3, 7, 6), (3, 2), (2, 1), (1, 0, 1, 1), (1, 2), 1),
            ("depthwise", (1, 4, 6, 6), (3, 3), (2, 2), (0, 0, 1, 1), (1, 1), 4),
            ("grouped", (1, 4, 5, 5), (1, 1), (1, 1), (0, 0, 0, 0), (1, 1), 2)):
        x = hundredths(RNG.normal(size=shape))
        rows = patches(x, kernel, stride, pad, dilation, groups)
        convs.append({"name": name, "shape": shape, "x": flat(x), "kernel": kernel, "strides": stride, "pads": pad, "dilations": dilation,
                      "group": groups, "rows": len(rows[0]), "gram": flat([r.astype(np.float64).T @ r.astype(np.float64) for r in rows])})
    out["convs"] = convs
    print(json.dumps(out, separators=(",", ":")))


main()
