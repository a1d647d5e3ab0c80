"""4-bit weights in the native form on the CPU: against the same form with 8 bits, and against FP32.

Speed: BERT-base, batch 1, made-up token ids, both files made by fewbit without
calibration data (int4 and int8-dynamic) and run in the same ONNX Runtime with the
same threads, in turn (fewbit bench --vs). The ratio is the median of the pairwise
ratios; there is no bar, what is read is half and what is multiplied is the same. The
one-way latency between the two processors stands beside each row. Fidelity: files
calibrated on 64 sentences of documents that judge nothing, the judge is onnxruntime
in Python with fewbit's kernels: each text of other documents alone, unpadded, token
vectors averaged, cosine against FP32. +- is the 95 % interval of the mean over the
texts.

    python int4_cpu.py make

only makes the files, which a run on the same commit then takes: minutes of solving
that need no quiet machine.
"""
import sys

import accuracy as a
import common as c
from fidelity import cosine, embed, sentences

SHAPES = [(16, 2), (64, 2), (128, 2), (16, 1)]  # sequence, threads
SECONDS = 10 if c.FULL else 4
JUDGED = (("MiniLM", c.MINILM, 400 if c.FULL else 100, .986), ("BERT-base", c.BERT, 200 if c.FULL else 50, .994))


def made(name, folder, scheme, *args):
    path = c.WORK / ("%s-%s.onnx" % (name, c.commit()["commit"][:10]))
    if not path.exists():
        part = path.with_suffix(".part")
        c.fewbit("quantize", folder / "model.onnx", "-o", part, "--scheme", scheme, "--target", "cpu", "--force", "--no-latency", *args)
        part.rename(path)
    return path


def main():
    calib = a.draws(1)[0][0]
    four, eight = made("int4-cpu-bert-4", c.BERT, "int4"), made("int4-cpu-bert-8", c.BERT, "int8-dynamic")
    solved = [made("int4-cpu-" + name, folder, "int4", "--calib", calib) for name, folder, _, _ in JUDGED]
    if sys.argv[1:] == ["make"]:
        return
    r = c.Result("int4_cpu", "4-bit weights on the CPU", __doc__.split("\n    python")[0].strip())
    latency = c.core_latency()
    for sequence, threads in SHAPES:
        before = latency()
        b = c.bench(four, sequence, threads, SECONDS, vs=eight)
        ours, theirs = ({k: m[k] for k in ("n", "min_ms", "p50_ms", "p90_ms", "p99_ms")} for m in b["models"])
        r.row("BERT-base 4-bit weights, sequence %d, batch 1, %d thread%s" % (sequence, threads, "s"[:threads - 1]), "p50 %.1f ms, min %.1f" % (ours["p50_ms"], ours["min_ms"]),
              "8-bit: p50 %.1f ms, min %.1f" % (theirs["p50_ms"], theirs["min_ms"]), b["speedup"]["median"],
              interval95=[b["speedup"]["lo"], b["speedup"]["hi"]], ours_ms=ours, peer_ms=theirs, others_share=b["noise"]["others"], core_latency_ns=[before, latency()])
    r.row("BERT-base, size of the file", "%.1f MB" % (four.stat().st_size / 1e6), "8-bit: %.1f MB" % (eight.stat().st_size / 1e6), eight.stat().st_size / four.stat().st_size)
    t = c.tokenizer(a.TOKENS)
    for (name, folder, judges, bar), path in zip(JUDGED, solved):
        encoded = [t.encode(s).ids for s in sentences("test", judges)]
        cos = cosine(embed(folder / "model.onnx", encoded), embed(path, encoded, c.packed))
        mean, half = float(cos.mean()), 1.96 * float(cos.std(ddof=1)) / len(cos) ** .5
        r.row("%s, 4-bit weights, 8-bit activations" % name, "cosine %.4f +- %.4f, minimum %.4f" % (mean, half, float(cos.min())), "", None,
              "cosine >= %.3f" % bar, mean >= bar, n=judges, mean=mean, half95=half, min=float(cos.min()))
    r.save()


if __name__ == "__main__":
    main()
