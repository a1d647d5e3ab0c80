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

A row more is of the same texts through BERT-base with a classification head ([CLS], openvino_cpu.py), of whose last layer
fewbit computes the rows that are read; OpenVINO gets them in the way that was the fastest above.

The last row of each state says how much of fewbit's time its products need: their multiply-accumulates at the peak of the dot product
instructions, which a process on each core takes at the same time, before and after each turn.
"""
import json
import subprocess

import numpy as np

import bert_speed
import common as c
import kernels
import openvino_cpu

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


def native(source, data, name):
    out = c.WORK / (name + "-native.onnx")
    c.fewbit("quantize", source, "-o", out, "--calib", data, "--target", "cpu", "--force", "--no-latency")
    return c.packed(out, THREADS)


def against(r, what, turns, facts, ways, bar):
    """Rows of what fewbit takes, the first of each turn, against the others, each in a way of its own; the bar is for the fastest."""
    ms = np.array(turns).T
    best = int(np.argmin(np.median(ms[1:], axis=1)))
    for i, way in enumerate(ways):
        ratio = c.median_interval(ms[1 + i] / ms[0])[0]
        holds = ratio >= bar if bar and i == best else None
        r.row("%s, against OpenVINO with %s" % (what, way), "p50 %.1f ms" % np.median(ms[0]), "OpenVINO NNCF INT8: p50 %.1f ms" % np.median(ms[1 + i]), ratio,
              ">= %.1fx" % bar if holds is not None else "", holds, ours_ms=ms[0].tolist(), peer_ms=ms[1 + i].tolist(), turns=len(turns), **facts)
    return best


def main():
    r = c.Result("padding_cpu", "Texts of different lengths on the CPU against OpenVINO", __doc__.strip())
    roofline = kernels.built()
    data, rng, shape = bert_speed.calibration_file(64), np.random.default_rng(1), (len(LENGTHS), max(LENGTHS))
    mask = (np.arange(shape[1]) < np.array(LENGTHS)[:, None]).astype(np.int64)
    feeds = {"input_ids": rng.integers(1000, 20000, shape), "attention_mask": mask, "token_type_ids": np.zeros(shape, np.int64)}
    full = dict(feeds, attention_mask=np.ones_like(mask))
    names = [name for name, _, _ in ways()]
    enough = lambda seen, dropped: sum(seen.values()) + dropped >= TURNS
    s = native(c.BERT / "model.onnx", data, "openvino")
    with c.OpenVINO(c.BERT / "model.onnx", data, c.WORK / "bert-openvino.xml") as peer:
        theirs = lambda seconds, chosen: [peer.median(batches, THREADS, seconds, *streams) for _, batches, streams in chosen]
        theirs(0.1, ways())  # compiles
        turn = lambda: [peak(roofline), c.run_for(SECONDS, lambda: s.run(None, feeds)), peak(roofline), c.run_for(SECONDS / 2, lambda: s.run(None, full)), *theirs(SECONDS, ways())]
        states, dropped = c.by_core_state(turn, enough, LEAST)
    fastest = {}
    for state, (turns, ns) in states.items():
        rows = np.array(turns)
        ours, whole, peers = rows[:, 1], rows[:, 3], rows[:, 4:]
        best = against(r, "BERT-base INT8, 8 texts of 16 to 128 tokens, 2 threads, %s" % state, np.column_stack([ours, peers]).tolist(), {"turns_dropped": dropped, "core_latency_ns": ns}, names, BAR)
        fastest[best] = fastest.get(best, 0) + len(turns)
        r.row("the same batch against one without padding in which all texts have 128, %s" % state, "p50 %.1f ms" % np.median(ours), "fewbit: p50 %.1f ms" % np.median(whole), c.median_interval(whole / ours)[0],
              ours_ms=ours.tolist(), peer_ms=whole.tolist(), turns=len(turns))
        if (rows[:, [0, 2]] > 0).all():
            least = 1e3 * MACS / np.maximum(rows[:, 0], rows[:, 2])
            r.row("the same batch against its products alone at the peak of both cores, %s" % state, "p50 %.1f ms" % np.median(ours), "products: %.1f ms of the %.1f that the bar leaves" % (np.median(least), np.median(peers[:, best]) / BAR), c.median_interval(least / ours)[0],
                  ours_ms=ours.tolist(), peer_ms=least.tolist(), turns=len(turns))
    way = ways()[max(fastest, key=fastest.get)]
    s = native(openvino_cpu.classifier(), data, "openvino-classifier")
    with c.OpenVINO(openvino_cpu.classifier(), data, c.WORK / "bert-openvino-classifier.xml") as peer:
        peer.median(way[1], THREADS, 0.1, *way[2])
        states, dropped = c.by_core_state(lambda: [c.run_for(SECONDS, lambda: s.run(None, feeds)), peer.median(way[1], THREADS, SECONDS, *way[2])], enough, LEAST)
    for state, (turns, ns) in states.items():
        against(r, "BERT-base with a classification head ([CLS]) INT8, the same 8 texts, 2 threads, %s" % state, turns, {"turns_dropped": dropped, "core_latency_ns": ns}, [way[0]], None)
    r.body["versions"].update(c.OpenVINO.versions())
    r.save()


if __name__ == "__main__":
    main()
