"""BERT-base, sequence 128, batch 1, 2 threads: fewbit's INT8 file against the FP32 file.

Both run in onnxruntime (the Python wheel, 2 threads), interleaved call by call:
the INT8 file uses stock operators only, so the peer's own runtime is the judge.
Both files run with spinning threads (onnxruntime's default, and fewbit's: ADR
0016) and without, and the faster setting of each counts. Calibrated on 64 news
texts.

Virtual machines move their two processors together and apart. The latency between
them is taken before and after each round of runs, and the rounds of each state are
a row of their own: what two threads hand to each other is a larger part of the
short run than of the long one. A round during which the state changed counts in
neither.
"""
import time

import numpy as np

import common as c

SEQUENCE, THREADS, CALIB = 128, 2, 64
BAR_RATIO, BAR_P50 = 2.8, 50.0
ROUNDS, LEAST, MAX_SECONDS = (200, 40, 300) if c.FULL else (40, 10, 60)


def sequences(n):
    """[n,128] token ids of training texts that are at least that long, in order."""
    t, out = c.tokenizer(SEQUENCE), []
    for r in c.rows("train"):
        ids = t.encode(r["text"]).ids
        if len(ids) == SEQUENCE:
            out.append(ids)
        if len(out) == n:
            return np.array(out, np.int64)
    raise RuntimeError("only %d texts of %d tokens" % (len(out), SEQUENCE))


def calibration_file(n):
    path = c.WORK / ("bert-%d.npz" % n)
    if not path.exists():
        ids = sequences(n)
        np.savez(path, input_ids=ids, attention_mask=np.ones_like(ids), token_type_ids=np.zeros_like(ids))
    return path


def rounds(candidates):
    """Runs the candidates in turn until a state of the processors was seen in ROUNDS
    rounds: see common.by_core_state; values are ms [candidate, round]."""
    c.interleaved(candidates, 1)
    end = time.monotonic() + MAX_SECONDS
    states, dropped = c.by_core_state(lambda: c.interleaved(candidates, 1, warmup=0)[:, 0],
                                      lambda seen, _: time.monotonic() >= end or max(seen.values(), default=0) >= ROUNDS, LEAST)
    return {k: (np.array(ms).T, ns) for k, (ms, ns) in states.items()}, dropped


def main():
    r = c.Result("bert_speed", "BERT-base INT8 speed", __doc__.strip())
    out = c.WORK / "bert-int8.onnx"
    seconds, rss, _ = c.fewbit("quantize", c.BERT / "model.onnx", "-o", out, "--calib", calibration_file(CALIB), "--scheme", "int8", "--target", "ort-cpu", "--force", "--no-latency")
    feeds = c.ids_feeds(sequences(1)[0])
    files, settings = {"fp32": c.BERT / "model.onnx", "int8": out}, {"spinning": True, "not spinning": False}
    keys = [(f, s) for f in files for s in settings]
    sessions = [c.session(files[f], THREADS, spinning=settings[s]) for f, s in keys]
    states, turned = rounds([lambda s=s: s.run(None, feeds) for s in sessions])
    for state, (ms, ns) in states.items():
        ms = dict(zip(keys, ms))
        best = {f: min(settings, key=lambda s: np.median(ms[f, s])) for f in files}
        ratio, lo, hi = c.median_interval(ms["fp32", best["fp32"]] / ms["int8", best["int8"]])
        f32, int8 = (c.percentiles(ms[f, best[f]]) for f in ("fp32", "int8"))
        r.row("BERT-base INT8 speed, %s (sequence 128, batch 1, 2 threads)" % state, "p50 %.1f ms (%s)" % (int8["p50_ms"], best["int8"]), "onnxruntime FP32 (%s): p50 %.1f ms" % (best["fp32"], f32["p50_ms"]), ratio,
              ">= %.1fx" % BAR_RATIO, ratio >= BAR_RATIO, interval95=[lo, hi], core_latency_ns=ns, rounds_dropped=turned, settings={"%s, %s" % k: c.percentiles(v) for k, v in ms.items()})
        r.row("BERT-base INT8 latency, %s (an AVX-512-VNNI pair)" % state, "p50 %.1f ms" % int8["p50_ms"], "", None, "< %.0f ms" % BAR_P50, int8["p50_ms"] < BAR_P50)
    r.row("BERT-base file size", "%.0f MB" % (out.stat().st_size / 1e6), "FP32: %.0f MB" % ((c.BERT / "model.onnx").stat().st_size / 1e6),
          (c.BERT / "model.onnx").stat().st_size / out.stat().st_size,
          quantize_seconds=seconds, quantize_peak_rss_bytes=rss)
    r.save()


if __name__ == "__main__":
    main()
