"""CLIP ViT-B/32's two towers in INT8 on the CPU: fewbit against OpenVINO with NNCF's INT8 and against ONNX Runtime's INT8.

Each tower is cut from the full-size graph with random weights, so this is about speed
only. All files come from the same FP32 file and the same made-up images or token ids: the
native form (fewbit pack, in the onnxruntime wheel), NNCF's quantization for transformers in
OpenVINO (latency hint, static shapes) and ONNX Runtime's fastest INT8 operators (fewbit's
target ort-cpu, in the same wheel). The image tower has 50 tokens, the text tower, whose
attention is causal, 77; batch 1, 2 threads. All take turns of seconds; a row is the median
over the turns of the ratio of their medians. Turns of different states of the cores are
rows of their own.
"""
import subprocess

import numpy as np

import common as c

THREADS, BAR = 2, 1.2
TURNS, SECONDS, LEAST = (12, 2, 3) if c.FULL else (3, 0.5, 1)
CLIP = c.DEPS / "models/clip-vit-b32-random/model.onnx"


def images(rng, n):
    return {"pixel_values": rng.standard_normal((n, 3, 224, 224), np.float32)}


def texts(rng, n):
    """One text each: the graph takes several. Every text ends early, with the largest id."""
    ids = rng.integers(1000, 20000, (n, 1, 77))
    for text in ids[:, 0]:
        text[rng.integers(8, 77):] = 49407
    return {"input_ids": ids}


TOWERS = (  # name, output, samples, tokens
    ("image", "image_embeds", images, 50),
    ("text", "text_embeds", texts, 77),
)


def tower(name, output, samples):
    """The tower's file, and made-up samples for calibration."""
    import onnx.utils
    path, data = c.WORK / ("clip-%s.onnx" % name), c.WORK / ("clip-%s.npz" % name)
    feeds = samples(np.random.default_rng(2), 16)
    if not path.exists():
        if not CLIP.exists():
            c.say("the CLIP model is not there; tools/models/prepare.sh clip-random makes it, once")
            if subprocess.run([c.ROOT / "tools/models/prepare.sh", "clip-random"]).returncode:
                raise c.Missing("tools/models/prepare.sh clip-random did not make the CLIP model; its last line says why")
        onnx.utils.extract_model(str(CLIP), str(path), list(feeds), [output])
    np.savez(data, **feeds)
    return path, data


def measure(r, name, output, samples, tokens):
    source, data = tower(name, output, samples)
    made = {}
    for kind, target in (("native", "cpu"), ("ort", "ort-cpu")):
        made[kind] = c.WORK / ("clip-%s-%s.onnx" % (name, kind))
        c.fewbit("quantize", source, "-o", made[kind], "--scheme", "int8-dynamic", "--calib", data, "--target", target, "--force", "--no-latency")
    ours, stock = c.packed(made["native"], THREADS), c.session(made["ort"], THREADS, spinning=True)
    feeds = samples(np.random.default_rng(1), 1)
    with c.OpenVINO(source, data, c.WORK / ("clip-%s-openvino.xml" % name)) as peer:
        peer.median("-", THREADS, 0.1)  # compiles
        turn = lambda: [c.run_for(SECONDS, lambda: ours.run(None, feeds)), peer.median("-", THREADS, SECONDS), c.run_for(SECONDS, lambda: stock.run(None, feeds))]
        states, dropped = c.by_core_state(turn, lambda seen, dropped: sum(seen.values()) + dropped >= TURNS, LEAST)
    for state, (turns, ns) in states.items():
        times = np.array(turns).T
        for peer_name, theirs, bar in (("OpenVINO NNCF INT8", times[1], BAR), ("ONNX Runtime INT8", times[2], None)):
            ratios = theirs / times[0]
            ratio = c.median_interval(ratios)[0]
            r.row("CLIP ViT-B/32 %s tower INT8, random weights, %d tokens, 2 threads, %s" % (name, tokens, state), "p50 %.1f ms" % np.median(times[0]),
                  "%s: p50 %.1f ms" % (peer_name, np.median(theirs)), ratio, ">= %.1fx" % bar if bar else "", ratio >= bar if bar else None,
                  range=[float(ratios.min()), float(ratios.max())], ours_ms=times[0].tolist(), peer_ms=theirs.tolist(), turns=len(turns), turns_dropped=dropped, core_latency_ns=ns)


def main():
    r = c.Result("towers_cpu", "CLIP's two towers on the CPU against OpenVINO and ONNX Runtime", __doc__.strip())
    for tower in TOWERS:
        measure(r, *tower)
    r.body["versions"].update(c.OpenVINO.versions())
    r.save()


if __name__ == "__main__":
    main()
