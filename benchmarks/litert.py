"""EfficientNet-lite0 and ResNet-50 in TensorFlow Lite's format, run by LiteRT.

fewbit quantize --target qdq writes a model in standard operators, fewbit tflite says the
same in the other format. Fidelity: the answers of LiteRT to images that calibration never
saw, beside FP32 in ONNX Runtime; the same file before it was converted, in ONNX Runtime,
stands beside it. Speed: the .tflite in INT8 (XNNPACK's kernels, LiteRT's default) against
the same model in FP32 in LiteRT, and fewbit's own form for this processor in ONNX Runtime
against the .tflite; one image, 1 and 2 threads, turns of seconds; a row is the median over
the turns of the ratio of their medians. Turns of different states of the cores are rows of
their own. ResNet-50 has random weights: speed only. The peer as a quantizer is LiteRT's own, AI Edge
Quantizer, in an environment of its own: it takes the float .tflite that fewbit wrote and the same images, with its recipe
for INT8 weights and activations. Time and maximum resident set size are of the whole command, for fewbit of both that it takes.
"""
import json
import subprocess

import numpy as np

import common as c
import vision

TURNS, SECONDS, LEAST = (9, 1, 3) if c.FULL else (3, 0.4, 1)
IMAGES = 461 if c.FULL else 60
WORKER, PEER_WORKER = c.ROOT / "benchmarks/litert_worker.py", c.ROOT / "benchmarks/aeq_worker.py"
REQUIREMENTS, PEER_REQUIREMENTS = c.ROOT / "tests/litert/requirements.txt", c.ROOT / "benchmarks/aeq.txt"
MODELS = (("EfficientNet-lite0", c.EFFICIENTNET / "model.onnx", True), ("ResNet-50, random weights", c.DEPS / "models/resnet50-random/model.onnx", False))


class LiteRT:
    """A process that runs .tflite files; see litert_worker.py."""

    def __init__(self, *paths):
        python = c.environment("litert", REQUIREMENTS) / "python"
        self.process = subprocess.Popen([str(python), "-B", str(WORKER), "serve", *map(str, paths)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, universal_newlines=True)

    def median(self, index, threads, seconds):
        print(index, threads, seconds, file=self.process.stdin, flush=True)
        return float(np.median(json.loads(self.process.stdout.readline())))

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.stdin.close()
        self.process.wait()


def answers(lite, x):
    """What LiteRT answers to images."""
    unseen, out = c.WORK / "litert-images.npz", c.WORK / "litert-scores.npy"
    np.savez(unseen, input=x)
    c.command([c.environment("litert", REQUIREMENTS) / "python", "-B", WORKER, "scores", lite, unseen, out])
    return np.load(out)


def judged(y, reference):
    agree = int((y.argmax(1) == reference.argmax(1)).sum())
    return {"agree": agree, "n": len(y), "agreement": agree / len(y), "interval95": c.wilson(agree, len(y)),
            "sqnr_db": float(10 * np.log10((reference ** 2).sum() / ((y - reference) ** 2).sum()))}


def text(f):
    return "%.1f %% of %d [%.1f, %.1f], %.1f dB" % (100 * f["agreement"], f["n"], 100 * f["interval95"][0], 100 * f["interval95"][1], f["sqnr_db"])


def fidelity(r, name, model, qdq, lite):
    x = np.load(c.STAMPS / "eval.npz")["input"][:IMAGES]
    reference = vision.scores(model, x)
    facts = {"litert": judged(answers(lite, x), reference), "onnxruntime": judged(vision.scores(qdq, x), reference)}
    r.row("%s as .tflite in LiteRT: top-1 agreement with FP32" % name, text(facts["litert"]), "the same before conversion, ONNX Runtime: " + text(facts["onnxruntime"]), None,
          "the same within 0.5 dB", abs(facts["litert"]["sqnr_db"] - facts["onnxruntime"]["sqnr_db"]) <= 0.5, bytes=lite.stat().st_size, bytes_onnx=qdq.stat().st_size, **facts)


def quantizer(r, name, model, lite, lite32, calibration, ours):
    """fewbit's .tflite beside that of LiteRT's own quantizer; ours: seconds and peak of each of fewbit's commands."""
    what, theirs = "%s as .tflite in INT8, quantized by fewbit, against AI Edge Quantizer" % name, c.WORK / "litert-peer.tflite"
    x = np.load(c.STAMPS / "eval.npz")["input"][:IMAGES]
    reference = vision.scores(model, x)
    own = {**judged(answers(lite, x), reference), "seconds": sum(s for s, _, _ in ours), "rss": max(rss for _, rss, _ in ours), "bytes": lite.stat().st_size}
    words = lambda f: "%s; %.1f s, %.0f MB; file %.1f MB" % (text(f), f["seconds"], f["rss"] / 1e6, f["bytes"] / 1e6)
    try:
        seconds, rss, _ = c.command([c.environment("aeq", PEER_REQUIREMENTS) / "python", "-B", PEER_WORKER, lite32, calibration, theirs])
    except RuntimeError as e:
        r.row(what, words(own), "not measured: " + str(e)[:300], fewbit_facts=own)
        return
    peer = {**judged(answers(theirs, x), reference), "seconds": seconds, "rss": rss, "bytes": theirs.stat().st_size}
    r.row(what, words(own), "AI Edge Quantizer: " + words(peer), seconds / own["seconds"], "not less close", own["sqnr_db"] >= peer["sqnr_db"], n=len(x), fewbit_facts=own, peer_facts=peer)


def speed(r, name, model, own, lite, lite32):
    with LiteRT(lite, lite32) as peer:
        for threads in (1, 2):
            s = c.session(own, threads, spinning=True)
            feeds = {s.get_inputs()[0].name: np.random.default_rng(1).standard_normal((1, 3, 224, 224), np.float32)}
            turn = lambda: [peer.median(0, threads, SECONDS), peer.median(1, threads, SECONDS), c.run_for(SECONDS, lambda: s.run(None, feeds))]
            turn()  # opens the models
            states, dropped = c.by_core_state(turn, lambda seen, dropped: sum(seen.values()) + dropped >= TURNS, LEAST)
            for state, (turns, ns) in states.items():
                small, full, ours = np.array(turns).T
                for what, a, b, other in (("as .tflite in INT8", small, full, "FP32 in LiteRT"), ("in INT8 by ONNX Runtime", ours, small, "the .tflite in LiteRT")):
                    ratio = c.median_interval(b / a)[0]
                    r.row("%s %s, %d thread%s, %s" % (name, what, threads, "s" * (threads > 1), state), "p50 %.1f ms" % np.median(a), "%s: p50 %.1f ms" % (other, np.median(b)), ratio,
                          "above 1.0x" if other.startswith("FP32") else "", ratio > 1 if other.startswith("FP32") else None, range=[float((b / a).min()), float((b / a).max())],
                          turns=len(turns), turns_dropped=dropped, core_latency_ns=ns)


def main():
    r = c.Result("litert", "TensorFlow Lite files in LiteRT", __doc__.strip())
    for i, (name, model, trained) in enumerate(MODELS):
        at = lambda suffix: c.WORK / ("litert-%d%s" % (i, suffix))
        qdq, own, lite, lite32 = at("-qdq.onnx"), at("-own.onnx"), at(".tflite"), at("-fp32.tflite")
        data = ["--calib", c.STAMPS / "calib.npz", "--samples", "128" if trained else "16", "--force", "--no-latency"]
        made = [c.fewbit("quantize", model, "-o", qdq, "--target", "qdq", *data), c.fewbit("tflite", qdq, "-o", lite)]
        c.fewbit("quantize", model, "-o", own, *data)
        c.fewbit("tflite", model, "-o", lite32)
        if trained:
            fidelity(r, name, model, qdq, lite)
            quantizer(r, name, model, lite, lite32, c.STAMPS / "calib.npz", made)
        speed(r, name, model, own, lite, lite32)
    r.body["versions"].update(c.pinned(REQUIREMENTS, "ai-edge-litert"), **c.pinned(PEER_REQUIREMENTS, "ai-edge-quantizer"))
    r.save()


if __name__ == "__main__":
    main()
