"""A batch of texts of different lengths on the CPU: fewbit without padding against OpenVINO.

BERT-base in INT8, both files made from the same FP32 file and the same 64 texts: the
native form (fewbit pack, in the onnxruntime wheel) and NNCF's quantization for
transformers in OpenVINO. Eight texts of 16, 32, ... 128 made-up tokens, 2 threads. fewbit
gets them as one batch with its mask. OpenVINO gets them in five ways, compiled for each:
one batch, two of texts of similar length, four, each text alone (static shapes, latency
hint), and each alone with two streams of one thread (lengths not fixed, throughput hint).
The peer of the bar is the fastest of the five. All take turns of seconds; a row is the
median over the turns of the ratio of their medians. Turns of different states of the
cores are rows of their own.

The last row says how much of fewbit's time its products need: their multiply-accumulates at the peak of the dot product
instructions, which a process on each core takes at the same time, before and after each turn.
"""
import json
import subprocess

import numpy as np

import bert_speed
import common as c
import kernels

LENGTHS = list(range(128, 0, -16))
THREADS, BAR = 2, 1.5
MACS = sum(LENGTHS) * 12 * (768 * 3 * 768 + 768 * 768 + 2 * 768 * 3072)  # of BERT-base's products
TURNS, SECONDS, LEAST = (8, 1.2, 3) if c.FULL else (3, 0.5, 1)


def ways():
    """What OpenVINO gets: name, batches, streams."""
    def cut(n):
        return "/".join(",".join(map(str, LENGTHS[i:i + n])) for i in range(0, len(LENGTHS), n))
    return [("one batch", cut(8), ()), ("two batches", cut(4), ()), ("four batches", cut(2), ()), ("each text alone", cut(1), ()), ("each text alone, two streams", cut(1), (2,))]


def peak(program):
    """INT8 multiply-accumulates a second of THREADS cores at once."""
    running = [subprocess.Popen([program, "peak"], stdout=subprocess.PIPE, text=True) for _ in range(THREADS)]
    return sum(json.loads(p.communicate()[0])["peak_macs"] for p in running)


def main():
    r = c.Result("padding_cpu", "Texts of different lengths on the CPU against OpenVINO", __doc__.strip())
    roofline = kernels.built()
    data, native = bert_speed.calibration_file(64), c.WORK / "openvino-native.onnx"
    c.fewbit("quantize", c.BERT / "model.onnx", "-o", native, "--calib", data, "--target", "cpu", "--force", "--no-latency")
    s, rng, shape = c.packed(native, THREADS), np.random.default_rng(1), (len(LENGTHS), max(LENGTHS))
    mask = (np.arange(shape[1]) < np.array(LENGTHS)[:, None]).astype(np.int64)
    feeds = {"input_ids": rng.integers(1000, 20000, shape), "attention_mask": mask, "token_type_ids": np.zeros(shape, np.int64)}
    full = dict(feeds, attention_mask=np.ones_like(mask))
    with c.OpenVINO(c.BERT / "model.onnx", data, c.WORK / "bert-openvino.xml") as peer:
        for _, batches, streams in ways():
            peer.median(batches, THREADS, 0.1, *streams)  # compiles
        turn = lambda: [peak(roofline), c.run_for(SECONDS, lambda: s.run(None, feeds)), peak(roofline), c.run_for(SECONDS / 2, lambda: s.run(None, full)),
                        *(peer.median(batches, THREADS, SECONDS, *streams) for _, batches, streams in ways())]
        states, dropped = c.by_core_state(turn, lambda seen, dropped: sum(seen.values()) + dropped >= TURNS, LEAST)
    for state, (turns, ns) in states.items():
        rows = np.array(turns).T
        peaks, ms = np.maximum(rows[0], rows[2]), rows[[1, *range(3, len(rows))]]
        best = int(np.argmin(np.median(ms[2:], axis=1)))
        for i, (name, _, _) in enumerate(ways()):
            ratio = c.median_interval(ms[2 + i] / ms[0])[0]
            r.row("BERT-base INT8, 8 texts of 16 to 128 tokens, 2 threads, %s, against OpenVINO with %s" % (state, name), "p50 %.1f ms" % np.median(ms[0]),
                  "OpenVINO NNCF INT8: p50 %.1f ms" % np.median(ms[2 + i]), ratio, ">= %.1fx" % BAR if i == best else "", ratio >= BAR if i == best else None,
                  ours_ms=ms[0].tolist(), peer_ms=ms[2 + i].tolist(), turns=len(turns), turns_dropped=dropped, core_latency_ns=ns)
        ratio = c.median_interval(ms[1] / ms[0])[0]
        r.row("the same batch against one without padding in which all texts have 128, %s" % state, "p50 %.1f ms" % np.median(ms[0]), "fewbit: p50 %.1f ms" % np.median(ms[1]), ratio,
              ours_ms=ms[0].tolist(), peer_ms=ms[1].tolist(), turns=len(turns))
        if (peaks > 0).all():
            least = 1e3 * MACS / peaks
            r.row("the same batch against its products alone at the peak of both cores, %s" % state, "p50 %.1f ms" % np.median(ms[0]), "products: %.1f ms of the %.1f that the bar leaves" % (np.median(least), np.median(ms[2 + best]) / BAR), c.median_interval(least / ms[0])[0],
                  ours_ms=ms[0].tolist(), peer_ms=least.tolist(), turns=len(turns))
    r.body["versions"].update(c.OpenVINO.versions())
    r.save()


if __name__ == "__main__":
    main()
