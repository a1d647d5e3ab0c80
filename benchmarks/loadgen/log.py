"""Reads what LoadGen writes; needs the standard library only."""
import json
import struct

PREFIX = ":::MLLOG "


def detail(text):
    """mlperf_log_detail.txt as key -> last value: one JSON object a line behind :::MLLOG."""
    found = {}
    for line in text.splitlines():
        if line.startswith(PREFIX):
            e = json.loads(line[len(PREFIX):])
            found[e["key"]] = e["value"]
    return found


def classes(text):
    """mlperf_log_accuracy.json as sample index -> class, an int32 in hexadecimal digits; failed samples are left out."""
    return {e["qsl_idx"]: struct.unpack("<i", bytes.fromhex(e["data"]))[0] for e in json.loads(text) if e["data"]}


def latency_ms(entries, percentile):
    """A percentile of the queries' latency, from when they were scheduled."""
    return entries["result_%.2f_percentile_latency_ns" % percentile] / 1e6


TOO_FEW = "too few queries"  # for LoadGen's early stopping to trust the percentile, or by result_min_queries_met


def verdict(entries):
    """Why LoadGen calls a run INVALID, or "" where it does not (of an accuracy run it says nothing)."""
    if entries.get("result_validity", "VALID") == "VALID":
        return ""
    if entries.get("result_perf_constraints_met") is False:
        return "past the target"
    if entries.get("result_min_duration_met") is False:
        return "too short"
    return TOO_FEW


def void(failures, first_error, cache_hits, busy, allowed_busy, null_p99_ms, allowed_ms):
    """Why the numbers of a run must not be used; empty when they may."""
    why = []
    if failures:
        why.append("%d queries failed, first: %s" % (failures, first_error))
    if cache_hits:
        why.append("%d answers came from a cache" % cache_hits)
    if busy > allowed_busy:
        why.append("something else took %.0f %% of the processors before it began" % (100 * busy))
    if null_p99_ms > allowed_ms:
        why.append("an endpoint that does nothing took %.1f ms at the 99th percentile" % null_p99_ms)
    return why
