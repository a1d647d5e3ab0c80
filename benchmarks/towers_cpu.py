"""CLIP ViT-B/32's image tower in INT8 on the CPU: fewbit against OpenVINO with NNCF's INT8.

The tower is cut from the full-size graph with random weights, so this is about speed
only. Both files come from the same FP32 file and the same made-up images: the native form
(fewbit pack, in the onnxruntime wheel) and NNCF's quantization for transformers in
OpenVINO (latency hint, static shapes). 50 tokens, batch 1, 2 threads. Both take turns of
seconds; a row is the median over the turns of the ratio of their medians. Turns of
different states of the cores are rows of their own.
"""
import numpy as np

import common as c

THREADS, BAR = 2, 1.2
TURNS, SECONDS, LEAST = (12, 2, 3) if c.FULL else (3, 0.5, 1)
CLIP = c.DEPS / "models/clip-vit-b32-random/model.onnx"


def tower():
    """The image tower's file, and made-up images for calibration."""
    import onnx.utils
    path, data = c.WORK / "clip-image.onnx", c.WORK / "clip-image.npz"
    if not path.exists():
        onnx.utils.extract_model(str(CLIP), str(path), ["pixel_values"], ["image_embeds"])
    np.savez(data, pixel_values=np.random.default_rng(2).standard_normal((16, 3, 224, 224), np.float32))
    return path, data


def main():
    r = c.Result("towers_cpu", "CLIP's image tower on the CPU against OpenVINO", __doc__.strip())
    source, data = tower()
    native = c.WORK / "clip-image-native.onnx"
    c.fewbit("quantize", source, "-o", native, "--scheme", "int8-dynamic", "--calib", data, "--target", "cpu", "--force", "--no-latency")
    s = c.packed(native, THREADS)
    feeds = {"pixel_values": np.random.default_rng(1).standard_normal((1, 3, 224, 224), np.float32)}
    with c.OpenVINO(source, data, c.WORK / "clip-image-openvino.xml") as peer:
        peer.median("-", THREADS, 0.1)  # compiles
        turn = lambda: [c.run_for(SECONDS, lambda: s.run(None, feeds)), peer.median("-", THREADS, SECONDS)]
        states, dropped = c.by_core_state(turn, lambda seen, dropped: sum(seen.values()) + dropped >= TURNS, LEAST)
    for state, (turns, ns) in states.items():
        ours, theirs = np.array(turns).T
        ratio = c.median_interval(theirs / ours)[0]
        r.row("CLIP ViT-B/32 image tower INT8, random weights, 50 tokens, 2 threads, %s" % state, "p50 %.1f ms" % np.median(ours),
              "OpenVINO NNCF INT8: p50 %.1f ms" % np.median(theirs), ratio, ">= %.1fx" % BAR, ratio >= BAR, range=[float((theirs / ours).min()), float((theirs / ours).max())],
              ours_ms=ours.tolist(), peer_ms=theirs.tolist(), turns=len(turns), turns_dropped=dropped, core_latency_ns=ns)
    r.body["versions"].update(c.OpenVINO.versions())
    r.save()


if __name__ == "__main__":
    main()
