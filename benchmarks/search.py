"""fewbit search on BERT-base with the head for movies: from nothing to a model that passes.

One process, two threads, 64 training snippets calibrate and the labelled test snippets judge: a loss of at
most 1 % of FP32's accuracy, proven by the paired interval, not slower than FP32 in turn,
ten minutes at most. The time of a trial is when its model lay on disk, counted from the
start of the command; the search goes on after the first that passes, for a faster one.
The bar is for the command: a passing model, and the end, within ten minutes on 2 cores.
"""
import json
import shutil

import common as c

LIMIT_S, MAX_LOSS = 600, 0.01
MODEL, MOVIES = c.DEPS / "models/movies/model.onnx", c.DEPS / "data/movies"


def passed_at(report):
    """Seconds until the first accepted INT8 trial was on disk, and the first of any kind."""
    clock, first, integer = 0.0, None, None
    for t in report["trials"]:
        clock += t["seconds"]
        if t["accepted"]:
            first = clock if first is None else first
            if t["scheme"].startswith("int") and integer is None:
                integer = clock
    return first, integer


def main():
    r = c.Result("search", "A search to a passing BERT-base", __doc__.strip())
    out = c.WORK / "search"
    shutil.rmtree(out, ignore_errors=True)
    seconds, rss, text = c.fewbit("search", MODEL, "-o", str(out) + "/", "--calib", MOVIES / "train.jsonl", "--eval", MOVIES / "test.jsonl",
                                  "--max-loss", str(MAX_LOSS), "--time-limit", "%ds" % LIMIT_S, "--threads", "2", "--json")
    report = json.loads(text)
    best = next(t for t in report["trials"] if t["number"] == report["best"])
    first, integer = passed_at(report)
    r.row("search to a passing BERT-base, movie snippets, loss within 1 %", "%.0f s, %.2fx as fast as FP32, loss %.2f %% [%.2f, %.2f]" % (
        seconds, best["speed"], 100 * best["loss"], 100 * best["loss_lo"], 100 * best["loss_hi"]), "", None, "600 s on 2 cores", seconds <= LIMIT_S + 30,
        seconds=seconds, peak_bytes=rss, n=best["samples"], first_accepted_s=first, first_integer_s=integer, best=best, trials=report["trials"],
        stopped=report.get("stopped", ""))
    r.save()


if __name__ == "__main__":
    main()
