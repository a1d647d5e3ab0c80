"""The products of the kernels for the CPU against what one core can do.

One thread runs the kernels as the operators do, in blocks of 64 rows. In every round the peak of the dot product
instructions (24 registers, no loads) is measured before and after each product, and for weights that come from memory the
bandwidth of reading as many bytes; a share is of the peak of that moment, the row's is the median over the rounds. The roof
of a product is the longer of its multiply-accumulates at the peak and its weights at that bandwidth. Weights from a cache
are one matrix again and again, from memory 64 MB of them in turn.
"""
import json
import shutil

import numpy as np

import common as c

ROUNDS = 9 if c.FULL else 3
BAR = 0.88


def built():
    build = c.ROOT / "build" / "roofline"
    if not shutil.which("cmake"):
        raise SystemExit("bench: kernels: cmake is not installed; install it and a C++17 compiler")
    c.command(["cmake", "-S", c.ROOT / "cpu", "-B", build])
    c.command(["cmake", "--build", build, "--target", "fewbit_cpu_roofline"])
    return build / "fewbit_cpu_roofline"


def main():
    r = c.Result("kernels", "Kernels for the CPU against their roofline", __doc__.strip())
    _, _, text = c.command([built(), ROUNDS])
    level, *lines = map(json.loads, text.splitlines())
    c.say("level %s" % level["level"])
    cases = {}
    for line in lines:
        cases.setdefault(tuple(line[k] for k in ("kind", "weights", "quantizes", "m", "k", "n")), []).append(line)
    for (kind, weights, quantizes, m, k, n), runs in cases.items():
        macs = m * k * n
        if not all(x["peak_macs"] for x in runs):
            c.say("not measured: the peak is written for AVX-512 with VNNI and BF16, this processor runs %s" % level["level"])
            break
        least = [macs / x["peak_macs"] for x in runs]
        roof = least if weights == "cache" else [max(t, x["bytes"] / x["bandwidth"]) for t, x in zip(least, runs)]
        shares = [t / x["seconds"] for t, x in zip(roof, runs)]
        share, seconds = float(np.median(shares)), float(np.median([x["seconds"] for x in runs]))
        barred = kind == "int8" and weights == "cache" and not quantizes and m == 128
        bound = "the memory's bandwidth" if np.median(roof) > np.median(least) else "the %s peak" % kind.upper()
        r.row("%s product, %d rows, [%d, %d]%s, weights from %s" % (kind.upper(), m, k, n, " with quantizing rows" if quantizes and kind == "int8" else "", weights if weights == "memory" else "a cache"),
              "%.1f us, %.0f %% [%.0f, %.0f]" % (1e6 * seconds, 100 * share, 100 * min(shares), 100 * max(shares)),
              "%s: %.1f us" % (bound, 1e6 * float(np.median(roof))), share, ">= %.2f" % BAR if barred else "", share >= BAR if barred else None,
              rounds=len(runs), shares=shares, seconds=[x["seconds"] for x in runs], peak_macs=[x["peak_macs"] for x in runs], bandwidth=[x["bandwidth"] for x in runs] if weights == "memory" else None)
    r.save()


if __name__ == "__main__":
    main()
