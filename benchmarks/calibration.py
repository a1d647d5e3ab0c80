"""Calibration of BERT-base, sequence 128: time and peak memory against onnxruntime.quantization.

Both read the same .npz, entropy method. fewbit observes what it will quantize:
the 48 inputs of MatMuls with a weight. onnxruntime is measured twice: as it
comes, told to calibrate for MatMul (it then observes the inputs and the outputs
of every MatMul and offers no way to observe less; the bars are for this one),
and changed to observe only the same 48 tensors as fewbit. Each run is its own
process; the time is the whole command's, with loading the model, and the memory
is the kernel's maximum resident set size of that process. The
better of RUNS runs counts, on both sides.
"""
MEMORY = """Peak memory of calibrating BERT-base, sequence 128, over the number of samples: fewbit and onnxruntime.quantization.

Entropy, as in the benchmark of its time: onnxruntime as it comes, told to calibrate for MatMul, with 128 bins, and changed to observe
only the 48 tensors that fewbit does. It keeps every activation until it computes ranges. Maximum resident set size of the process; one run each.
"""
import json
import sys
from pathlib import Path

import common as c
from bert_speed import calibration_file

SAMPLES, MANY = 64, 512
BARS = {128: 3.0, 2048: 10.0}
COUNTS, OURS_ALONE = ((8, 16, 32, 64), (128, 256, 512)) if c.FULL else ((4, 8), (16,))  # samples
BAR_RSS, BAR_FLAT = 5.0, 0.05
RUNS = 2 if c.FULL else 1


def best(runs):
    """The shortest time, the smallest memory and the last output of (seconds, bytes, output)."""
    return min(r[0] for r in runs), min(r[1] for r in runs), runs[-1][2]


def ours(samples, table):
    return c.fewbit("calibrate", c.BERT / "model.onnx", "--calib", calibration_file(samples), "-o", table, "--method", "entropy", "--samples", samples)


def tensor_names(table):
    """The activation tensors in a calibration table, whatever else it holds."""
    t = json.loads(table.read_text())["tensors"]
    return sorted(t) if isinstance(t, dict) else sorted(x["name"] for x in t)


def peer_run(npz, names_file, bins, samples):
    """Runs in a process of its own: onnxruntime's entropy calibration."""
    import numpy as np
    from onnxruntime.quantization import CalibrationDataReader
    from onnxruntime.quantization.calibrate import EntropyCalibrater

    names = None if names_file == "stock" else set(json.load(open(names_file)))

    class Reader(CalibrationDataReader):
        def __init__(self):
            self.data, self.i = dict(np.load(npz)), 0

        def get_next(self):
            if self.i == samples:
                return None
            self.i += 1
            return {k: v[self.i - 1:self.i] for k, v in self.data.items()}

    class Restricted(EntropyCalibrater):
        def select_tensors_to_calibrate(self, model):
            tensors, infos = super().select_tensors_to_calibrate(model)
            return tensors if names is None else tensors & names, infos

    calibrator = Restricted(str(c.BERT / "model.onnx"), ["MatMul"], str(c.WORK / "augmented.onnx"), num_bins=bins, num_quantized_bins=128)
    calibrator.augment_graph()
    calibrator.create_inference_session()
    calibrator.collect_data(Reader())
    print(len(calibrator.compute_data().data))


def main():
    r = c.Result("calibration", "Calibration speed and memory", __doc__.strip())
    samples, many = (SAMPLES, MANY) if c.FULL else (16, 64)
    table = c.WORK / "bert-table.json"
    seconds, rss, _ = best([ours(samples, table) for _ in range(RUNS)])
    names = c.WORK / "bert-tensors.json"
    names.write_text(json.dumps(tensor_names(table)))
    _, rss_many, _ = ours(many, c.WORK / "bert-table-many.json")
    for bins, bar in BARS.items():
        for tensors, time_row, memory_row in (
                ("stock", "calibration time, %d samples, against %d bins" % (samples, bins), "calibration peak memory, against %d bins" % bins),
                (names, "calibration time on the same 48 tensors, %d bins" % bins, "calibration memory on the same 48 tensors, %d bins" % bins)):
            judged = tensors == "stock"
            peer_seconds, peer_rss, out = best([c.command([sys.executable, Path(__file__).resolve(), "peer", calibration_file(samples), tensors, bins, samples]) for _ in range(RUNS)])
            faster, smaller, n = peer_seconds / seconds, peer_rss / rss, int(out.split()[-1])
            r.row(time_row, "%.1f s" % seconds, "onnxruntime Entropy, %d tensors: %.1f s" % (n, peer_seconds), faster,
                  ">= %.0fx" % bar if judged else "", faster >= bar if judged else None, samples=samples)
            r.row(memory_row, "%.0f MB" % (rss / 1e6), "onnxruntime Entropy, %d tensors: %.0f MB" % (n, peer_rss / 1e6), smaller,
                  ">= %.0fx less" % BAR_RSS if judged else "", smaller >= BAR_RSS if judged else None, ours_bytes=rss, peer_bytes=peer_rss)
    growth = rss_many / rss - 1
    r.row("calibration peak memory, %d against %d samples" % (many, samples), "%.0f MB" % (rss_many / 1e6), "%.0f MB" % (rss / 1e6), rss_many / rss,
          "within %.0f %%" % (100 * BAR_FLAT), growth <= BAR_FLAT, growth=growth)
    r.save()


def memory():
    r = c.Result("calibration_memory", "Calibration memory over the number of samples", MEMORY.strip())
    table, names = c.WORK / "bert-table.json", c.WORK / "bert-tensors.json"
    for samples in COUNTS + OURS_ALONE:
        _, rss, _ = ours(samples, table)
        what = "calibration peak memory, %d samples" % samples
        if samples in OURS_ALONE:
            r.row(what, "%.0f MB" % (rss / 1e6), samples=samples, ours_bytes=rss)
            continue
        names.write_text(json.dumps(tensor_names(table)))
        stock, same = (c.command([sys.executable, Path(__file__).resolve(), "peer", calibration_file(samples), tensors, 128, samples])[1] for tensors in ("stock", names))
        r.row(what, "%.0f MB" % (rss / 1e6), "onnxruntime Entropy: %.0f MB; 48 tensors: %.0f MB" % (stock / 1e6, same / 1e6), stock / rss, samples=samples, ours_bytes=rss, peer_bytes=stock, peer_48_bytes=same)
    r.save()


if __name__ == "__main__":
    if sys.argv[1:2] == ["peer"]:
        peer_run(sys.argv[2], sys.argv[3], int(sys.argv[4]), int(sys.argv[5]))
    elif sys.argv[1:2] == ["memory"]:
        memory()
    else:
        main()
