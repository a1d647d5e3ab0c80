"""BERT-base in the native form on the CPU: fewbit's kernels against ONNX Runtime's INT8.

Both files are made by fewbit from the same FP32 file with dynamic activations and
run in the same ONNX Runtime with the same threads, in turn (fewbit bench --vs): the
native form (per-row activations, fewbit.LinearRows) and ONNX Runtime's fastest INT8
operators (target ort-cpu, one range for a tensor). Batch 1, made-up token ids. The
ratio is the median of the pairwise ratios. The one-way latency between the two
processors is taken before and after each row: at some 30 ns they share a cache, at
hundreds they do not, and rows of different states do not compare.
"""
import common as c

SHAPES = [(16, 2), (64, 2), (128, 2), (256, 2), (16, 1), (128, 1)]  # sequence, threads
BAR = 1.2
SECONDS = 10 if c.FULL else 2


def made(name, target):
    path = c.WORK / name
    c.fewbit("quantize", c.BERT / "model.onnx", "-o", path, "--scheme", "int8-dynamic", "--target", target, "--device", "cpu", "--force", "--no-latency")
    return path


def main():
    r = c.Result("native_cpu", "The native form on the CPU", __doc__.strip())
    native, peer = made("bert-native.onnx", "cuda"), made("bert-ort-int8.onnx", "ort-cpu")
    latency = c.core_latency()
    for sequence, threads in SHAPES:
        before = latency()
        b = c.bench(native, sequence, threads, SECONDS, vs=peer)
        ours, theirs = ({k: m[k] for k in ("n", "min_ms", "p50_ms", "p90_ms", "p99_ms")} for m in b["models"])
        ratio = b["speedup"]["median"]
        r.row("BERT-base native form, sequence %d, batch 1, %d thread%s" % (sequence, threads, "s"[:threads - 1]), "p50 %.1f ms" % ours["p50_ms"],
              "ONNX Runtime INT8: p50 %.1f ms" % theirs["p50_ms"], ratio, ">= %.1fx" % BAR, ratio >= BAR,
              interval95=[b["speedup"]["lo"], b["speedup"]["hi"]], ours_ms=ours, peer_ms=theirs, others_share=b["noise"]["others"],
              core_latency_ns=[before, latency()])
    r.save()


if __name__ == "__main__":
    main()
