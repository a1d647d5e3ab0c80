"""fewbit against other quantizers: what each makes of the same model and data, in what time and memory.

Every tool runs in an environment of its own as one command: the time is the whole command's, the memory the kernel's
maximum resident set size of that process. fewbit judges its own result within that time. A method that peers have is
compared with fewbit's same method; where no peer has what fewbit does by default, the default stands beside what that peer
does best. Peers: onnxruntime.quantization after its own pre-processing (per channel, Min-Max, UINT8 activations; and
dynamic), onnx-neural-compressor (its release of 2024 with the onnxruntime of that time; Min-Max, and 4-bit weights in
blocks of 32 with zero points; its SmoothQuant and AWQ end with an error on these models), NNCF on OpenVINO (for texts the
setting for transformers, which smooths; for images asymmetric activations and exact bias correction; the ONNX form that NNCF also writes was closer there, 12.9 dB
and .78 of 100 images in one try with onnxruntime). Texts calibrate and judge as in accuracy.py, one sentence each, of documents that the other set has none
of; BERT-base gets 128 of them, the others 64. Images as in vision.py. The judge is onnxruntime in Python, for
NNCF's files OpenVINO in FP32 between the integers, for PyTorch's its eager mode. PyTorch's quantizers (PT2E with the
settings of its x86 backend, whose observers are histograms; torchao by row, with SmoothQuant, and in 4 bits to nearest and
by HQQ, blocks of 32) get the model as a module with the same weights (quantizers_torch.py); their files keep embeddings in
FP32. Their environment is 5.4 GB, since PyTorch brings CUDA: they run in full counts, or once it is there.
A tool that takes longer than 15 minutes is ended.
"""
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np

import common as c
from accuracy import neighbours
from fidelity import cosine, embed, sentences
from vision import scores

HERE = Path(__file__).parent
LIMIT_SECONDS = 900
CALIB, BERT_CALIB, TOKENS = 64, 128, 128
ENVIRONMENT = {"ort": None, "onc": "onc", "nncf": "openvino", "torch": "torch"}
PINNED = {"openvino.txt": ("nncf", "openvino"), "onc.txt": ("onnx-neural-compressor",), "torch.txt": ("torch", "torchao")}  # the peers' versions
TORCH_BYTES = 10e9  # to fetch and install it
PLAIN = ("INT8 static, Min-Max", ("--target", "qdq", "--method", "minmax", "--no-smooth", "--no-bias-correction", "--weights", "rtn"), {"onnxruntime": "ort-static", "onnx-neural-compressor": "onc-static"})
DEFAULT = ("INT8 static, fewbit's default", ("--target", "ort-cpu"), {"NNCF": "nncf", "PyTorch PT2E": "torch-static"})
ROWS = ("INT8 by row, dynamic, native form", ("--scheme", "int8-dynamic", "--target", "cpu"), {"torchao": "torch-row"})
SMOOTH = ("INT8 by row, smoothed, native form", ("--target", "cpu"), {"torchao SmoothQuant": "torch-smooth"})
DYNAMIC = ("INT8 dynamic", ("--scheme", "int8-dynamic", "--target", "ort-cpu"), {"onnxruntime": "ort-dynamic"})
NEAREST = ("INT4 weights, to nearest", ("--scheme", "int4", "--target", "ort-cpu", "--weights", "rtn", "--operators", "@embeddings=fp32"), {"onnx-neural-compressor": "onc-rtn", "torchao": "torch-int4"})
HQQ = ("INT4 weights, HQQ", ("--scheme", "int4", "--target", "ort-cpu", "--weights", "hqq", "--operators", "@embeddings=fp32"), {"torchao": "torch-hqq"})
SOLVED = ("INT4 weights, GPTQ", ("--scheme", "int4", "--target", "ort-cpu", "--weights", "gptq", "--operators", "@embeddings=fp32"), {"onnx-neural-compressor": "onc-gptq"})


def python(method):
    name = ENVIRONMENT[method.split("-")[0]]
    return c.environment(name, HERE / (name + ".txt")) / "python" if name else sys.executable


def work(what, method, *argv):
    return c.command(["timeout", str(LIMIT_SECONDS), python(method), "-B", HERE / "quantizers_worker.py", what, method, *argv], env={**os.environ, "ORT_DISABLE_TELEMETRY": "1", "TRANSFORMERS_VERBOSITY": "error"})


def size(path):
    """Bytes of a file and its weights beside it."""
    beside = (path.with_name(path.name + ".data"), path.with_suffix(".bin"))
    return path.stat().st_size + sum(p.stat().st_size for p in beside if p.exists())


def fewbit(model, out, calibration, args):
    data = () if "int8-dynamic" in args else ("--calib", calibration)
    seconds, rss, _ = c.fewbit("quantize", model, "-o", out, *data, *args, "--force", "--no-latency")
    return {"seconds": seconds, "rss": rss, "bytes": size(out)}


def peer(method, model, out, calibration, judged):
    """Makes a file and, where only its own runtime reads it, the answers as well."""
    seconds, rss, _ = work("make", method, model, calibration, out)
    answers = None
    if method == "nncf" or method.startswith("torch"):
        to = out.with_suffix(".npy")
        work("judge", method, out, judged, to)
        answers = np.load(to)
    return {"seconds": seconds, "rss": rss, "bytes": size(out)}, answers


def torch_here():
    there = (c.DEPS / "venv-torch/requirements.sha256").exists()
    return there or c.FULL and shutil.disk_usage(c.DEPS).free > TORCH_BYTES


def words(f):
    return "%s; %.1f s, %.0f MB; file %.0f MB" % (f["quality"], f["seconds"], f["rss"] / 1e6, f["bytes"] / 1e6)


def compare(r, name, schemes, model, ours_data, their_data, judged, judge, quality, better, answers_of, n):
    for scheme, args, peers in schemes:
        out = c.WORK / "quantizers-fewbit.onnx"
        own = fewbit(model, out, ours_data, args)
        own.update(judge(answers_of(out, c.packed if "cpu" in args else c.session)))
        own["quality"] = quality(own)
        for tool, method in peers.items():
            what, theirs = "%s, %s, against %s" % (name, scheme, tool), c.WORK / ("quantizers-%s.%s" % (method, {"nncf": "xml", "torch": "pt2"}.get(method.split("-")[0], "onnx")))
            if method.startswith("torch") and not torch_here():
                r.row(what, words(own), "not measured: its environment is 5.4 GB; FEWBIT_BENCH=full installs it where 10 GB are free", None, "", None, n=n, fewbit_facts=own)
                continue
            try:
                made, answers = peer(method, model, theirs, their_data, judged)
                made.update(judge(answers_of(theirs) if answers is None else answers))
                made["quality"] = quality(made)
            except (RuntimeError, subprocess.CalledProcessError) as e:
                r.row(what, words(own), "failed: " + str(e)[-200:], None, "", None, n=n, fewbit_facts=own)
                continue
            r.row(what, words(own), words(made), made["seconds"] / own["seconds"], "not less close, in less time", bool(better(own, made) and own["seconds"] < made["seconds"]), n=n, fewbit_facts=own, peer_facts=made)


def texts(r, name, folder, calibrate, judges):
    t, model = c.tokenizer(TOKENS), folder / "model.onnx"
    chosen, held = sentences("train", calibrate), [t.encode(s).ids for s in sentences("test", judges)]
    data, ids, judged = (c.WORK / ("quantizers-" + f) for f in ("calib.jsonl", "calib.json", "judge.json"))
    data.write_text("".join(json.dumps({"text": s}) + "\n" for s in chosen), encoding="utf-8")
    ids.write_text(json.dumps([t.encode(s).ids for s in chosen]))
    judged.write_text(json.dumps(held))
    reference = embed(model, held)
    nearest = neighbours(reference)

    def judge(v):
        cos = cosine(reference, v)
        return {"mean": float(cos.mean()), "min": float(cos.min()), "neighbours": float((neighbours(v) == nearest).mean())}

    # Four bits on the small encoder only: the peer's GPTQ takes hours on BERT-base.
    schemes = (PLAIN, DEFAULT, DYNAMIC, ROWS, SMOOTH) + ((NEAREST, HQQ, SOLVED) if name == "MiniLM" else ())
    compare(r, name, schemes, model, data, ids, judged, judge, lambda f: "cosine %.4f, min %.4f, neighbours %.3f" % (f["mean"], f["min"], f["neighbours"]),
            lambda a, b: a["mean"] >= b["mean"], lambda path, session=c.session: embed(path, held, session), judges)


def images(r):
    model, unseen = c.EFFICIENTNET / "model.onnx", np.concatenate([np.load(c.STAMPS / "eval.npz")["input"], np.load(c.STAMPS / "labelled.npz")["input"]])
    judged = c.WORK / "quantizers-judge.npz"
    np.savez(judged, input=unseen)
    reference = scores(model, unseen)

    def judge(y):
        agree = int((y.argmax(1) == reference.argmax(1)).sum())
        return {"agreement": agree / len(y), "interval95": c.wilson(agree, len(y)), "sqnr_db": float(10 * np.log10((reference ** 2).sum() / ((y - reference) ** 2).sum()))}

    compare(r, "EfficientNet-lite0", (PLAIN, DEFAULT), model, c.STAMPS / "calib.npz", c.STAMPS / "calib.npz", judged, judge,
            lambda f: "agreement %.3f [%.3f, %.3f], %.1f dB" % (f["agreement"], *f["interval95"], f["sqnr_db"]), lambda a, b: a["sqnr_db"] >= b["sqnr_db"], lambda path, _=None: scores(path, unseen), len(unseen))


def main():
    r = c.Result("quantizers", "Against other quantizers", __doc__.strip())
    for file, names in PINNED.items():
        r.body["versions"].update(c.pinned(c.ROOT / "benchmarks" / file, *names))
    texts(r, "MiniLM", c.MINILM, CALIB, 400)
    images(r)
    texts(r, "BERT-base", c.BERT, BERT_CALIB, 200)
    r.save()


if __name__ == "__main__":
    main()
