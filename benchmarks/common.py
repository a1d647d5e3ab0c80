"""What every benchmark shares: paths, the machine's facts, timing, results.

A result is benchmarks/results/NAME.json, or of another processor than that one results/PROCESSOR/NAME.json: rows of (what, ours, peer, ratio, bar,
holds) with the measurements behind them, the machine, the versions, the commit
and how noisy the machine was. tools/benchtable prints them into the README.
"""
import datetime
import functools
import hashlib
import json
import math
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
DEPS, WORK, RESULTS = ROOT / ".deps", ROOT / ".deps/bench", ROOT / "benchmarks/results"
FEWBIT = ROOT / "bin/fewbit"
MINILM_FUSED, MINILM, BERT = DEPS / "models/minilm-fused", DEPS / "models/minilm", DEPS / "models/bert-base"
EFFICIENTNET, NEWS = DEPS / "models/efficientnet-lite0", DEPS / "models/news"
STAMPS, BBC = DEPS / "data/stamps", DEPS / "data/bbc"
FULL = os.environ.get("FEWBIT_BENCH", "quick") == "full"


def say(text):
    print("bench: " + text, file=sys.stderr, flush=True)


def machine():
    info = {"cores": len(os.sched_getaffinity(0)), "system": platform.platform(), "python": platform.python_version()}
    try:
        text = Path("/proc/cpuinfo").read_text()
        field = lambda k: next((l.split(":", 1)[1].strip() for l in text.splitlines() if l.startswith(k)), "")
        info["cpu"] = field("model name")
        if field("cpu family"): # names of virtual processors do not tell generations apart
            info["processor"] = "%s family %s model %s" % (field("vendor_id"), field("cpu family"), field("model"))
        info["flags"] = sorted(set(field("flags").split()) & {"avx2", "fma", "avx_vnni", "avx512f", "avx512bw", "avx512_vnni", "amx_int8", "amx_tile"})
        info["memory_bytes"] = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except OSError:
        pass
    return info


def result_path(name, here):
    """Where a result goes: results/NAME.json, or into a folder of the processor where that one is of another processor."""
    path = RESULTS / (name + ".json")
    try:
        there = json.loads(path.read_text())["machine"]
    except (OSError, ValueError, KeyError):
        return path
    same = there["processor"] == here.get("processor") if "processor" in there else there.get("flags") == here.get("flags")
    return path if same else RESULTS / here.get("processor", here.get("cpu", "another processor")).lower().replace(" ", "-") / path.name


# What changes nothing that is measured: results of other benchmarks, and pages made from them.
MEASURED = ("--", ".", ":!benchmarks/results", ":!docs", ":!README.md")


def commit():
    run = lambda *a: subprocess.run(["git", *a], cwd=ROOT, stdout=subprocess.PIPE, universal_newlines=True).stdout.strip()
    return {"commit": run("rev-parse", "HEAD"), "changed_files": len(run("status", "--porcelain", *MEASURED).splitlines())}


class Noise:
    """Load and stolen time over the benchmark: distrust numbers where these are high."""

    def __init__(self):
        self.before, self.load_before = self.stat(), os.getloadavg()[0]

    @staticmethod
    def stat():
        try:
            v = [int(x) for x in Path("/proc/stat").read_text().splitlines()[0].split()[1:9]]
            return sum(v), v[7]
        except OSError:
            return 0, 0

    def facts(self):
        total, stolen = (b - a for a, b in zip(self.before, self.stat()))
        return {"load1_before": self.load_before, "load1_after": os.getloadavg()[0], "stolen_share": stolen / total if total else None}


def pinned(requirements, *names):
    """{name: version} of packages as a requirements file pins them. KeyError for one that it does not."""
    found = dict(l.split(" ")[0].split("==") for l in open(requirements) if l[:1].isalnum() and "==" in l)
    return {n: found[n] for n in names}


class Missing(RuntimeError):
    """What a benchmark needs and this machine has not, in one line."""


def told(kind, error, trace, usual=sys.excepthook):
    """One line for what a user can mend, instead of a traceback."""
    if issubclass(kind, Missing):
        say("error: %s" % error)
    elif issubclass(kind, KeyboardInterrupt):
        say("stopped")
    else:
        usual(kind, error, trace)


sys.excepthook = told


class Result:
    def __init__(self, name, title, how):
        import onnxruntime
        self.noise = Noise()
        self.body = {"name": name, "title": title, "how": how, "mode": "full" if FULL else "quick", "rows": [],
                     "machine": machine(), "versions": {"onnxruntime": onnxruntime.__version__, "numpy": np.__version__}, **commit()}
        self.path = result_path(name, self.body["machine"])

    def row(self, what, ours, peer="", ratio=None, bar="", holds=None, **details):
        """One line of the table; details keep the raw numbers."""
        self.body["rows"].append({"what": what, "ours": ours, "peer": peer, "ratio": ratio, "bar": bar, "holds": holds, "details": details})
        say("%s: %s | %s | ratio %s | bar %s | %s" % (what, ours, peer, "-" if ratio is None else "%.2f" % ratio, bar or "-", {True: "holds", False: "DOES NOT HOLD", None: ""}[holds]))

    def save(self):
        self.body["noise"] = self.noise.facts()
        self.body["when"] = datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")
        self.path.parent.mkdir(parents=True, exist_ok=True)
        tmp = self.path.with_suffix(".part")
        tmp.write_text(json.dumps(self.body, indent=1, allow_nan=False) + "\n")
        tmp.rename(self.path)


# A process starts with its parent's maximum resident set size (Linux keeps it across exec), so a small one stands between:
# it reports seconds, the maximum of the command, and its exit status.
LAUNCHER = """
import os, sys, time
began, pid = time.monotonic(), os.fork()
if pid == 0:
    try:
        os.execvp(sys.argv[2], sys.argv[2:])
    except OSError as e:
        print(e, file=sys.stderr)
    os._exit(127)
_, status, usage = os.wait4(pid, 0)
with open(sys.argv[1], "w") as f:
    print(time.monotonic() - began, usage.ru_maxrss * 1024, os.waitstatus_to_exitcode(status), file=f)
"""


def command(argv, **kw):
    """Runs a command; returns (seconds, peak RSS in bytes, stdout). Raises with its last line when it fails."""
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err, tempfile.NamedTemporaryFile("r") as told:
        subprocess.run([sys.executable, "-I", "-S", "-c", LAUNCHER, told.name, *map(str, argv)], stdout=out, stderr=err, cwd=ROOT, check=True, **kw)
        seconds, rss, status = told.read().split()
        out.seek(0), err.seek(0)
        text, errors = out.read().decode(), err.read().decode()
    if int(status):
        last = (errors.strip().splitlines() or ["no output"])[-1]
        raise RuntimeError("%s: exit %s: %s" % (" ".join(map(str, argv[:2])), status, last))
    return float(seconds), int(rss), text


def fewbit(*argv):
    """bin/fewbit with --json where asked; see command."""
    return command([FEWBIT, *argv])


def session(path, threads=2, spinning=False):
    """A session of the onnxruntime wheel. Its own default is spinning, which is
    fastest on an idle machine and slowest on a busy one; either way it stops
    when a run ends, so that it cannot disturb the next candidate."""
    import onnxruntime as ort
    o = ort.SessionOptions()
    o.add_session_config_entry("session.intra_op.allow_spinning", "1" if spinning else "0")
    o.add_session_config_entry("session.force_spinning_stop", "1")
    o.intra_op_num_threads, o.inter_op_num_threads, o.log_severity_level = threads, 1, 3
    return ort.InferenceSession(str(path), o, providers=["CPUExecutionProvider"])


def packed(path, threads=2):
    """A session of the onnxruntime wheel for a native model, with fewbit's kernels."""
    import onnxruntime as ort
    out = WORK / (Path(path).stem + "-packed.onnx")
    fewbit("pack", path, "-o", out)
    o = ort.SessionOptions()
    o.register_custom_ops_library(str(ROOT / "bin/libfewbit_cpu.so"))
    for k, v in (("fewbit.threads", str(threads)), ("session.intra_op.allow_spinning", "1"), ("session.force_spinning_stop", "1")):
        o.add_session_config_entry(k, v)
    o.intra_op_num_threads, o.inter_op_num_threads, o.log_severity_level = threads, 1, 3
    return ort.InferenceSession(str(out), o, providers=["CPUExecutionProvider"])


class OpenVINO:
    """A process that runs an OpenVINO model; see openvino_worker.py."""
    requirements = ROOT / "benchmarks/openvino.txt"

    def __init__(self, source, data, made):
        self.python, self.worker = environment("openvino", self.requirements) / "python", ROOT / "benchmarks/openvino_worker.py"
        if not Path(made).exists():
            seconds, rss, _ = command([self.python, self.worker, "quantize", source, data, made])
            say("NNCF: %.0f s, %.0f MB" % (seconds, rss / 1e6))
        self.process = subprocess.Popen([str(self.python), str(self.worker), "serve", str(made)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, universal_newlines=True)

    def median(self, batches, threads, seconds, *streams):
        """Median of the run times in ms."""
        print(batches, threads, seconds, *streams, file=self.process.stdin, flush=True)
        return float(np.median(json.loads(self.process.stdout.readline())))

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.stdin.close()
        self.process.wait()

    @classmethod
    def versions(cls):
        return pinned(cls.requirements, "openvino", "nncf")


def bench(path, sequence, threads, seconds, vs=None):
    """What fewbit bench says of a model, or of two that take turns: texts of made-up tokens."""
    argv = ["bench", path, *(["--vs", vs] if vs else []), "--seq", sequence, "--threads", threads, "--duration", "%ds" % seconds, "--json"]
    return json.loads(fewbit(*argv)[2])


def run_for(seconds, f, warmup=5):
    """Median of the milliseconds that f takes, called for so long."""
    for _ in range(warmup):
        f()
    ms, end = [], time.perf_counter() + seconds
    while time.perf_counter() < end:
        t = time.perf_counter()
        f()
        ms.append(1e3 * (time.perf_counter() - t))
    return float(np.median(ms))


@functools.lru_cache(maxsize=None)
def core_latency():
    """A function that measures the one-way latency between the two processors in ns:
    at some 40 they share a cache, at hundreds they do not, and what two threads hand
    to each other costs several times as much. It returns None where there is no
    compiler or one processor."""
    program = WORK / "core_latency"
    try:
        subprocess.run(["c++", "-O2", "-std=c++17", "-pthread", "-o", program, ROOT / "benchmarks/core_latency.cpp"], check=True, stderr=subprocess.DEVNULL)
    except (OSError, subprocess.CalledProcessError):
        return lambda: None
    if machine()["cores"] < 2:
        return lambda: None
    return lambda: float(subprocess.check_output([program]))


FAR_NS = 100.0  # processors that share a cache are some 40 ns apart


def core_state(ns):
    return "cores close" if ns is None or ns < FAR_NS else "cores far apart"


def by_core_state(turn, done, least):
    """Calls turn() until done(turns of each state, turns dropped) and groups what it
    returned by the state of the processors, which must be the same before and after it.
    Returns {state: (values, median latency in ns)} of states with `least` turns at least,
    and the number of turns dropped."""
    latency, seen, dropped = core_latency(), {}, 0
    before = latency()
    while not done({k: len(v) for k, v in seen.items()}, dropped):
        value, after = turn(), latency()
        if core_state(before) == core_state(after):
            seen.setdefault(core_state(after), []).append((value, after))
        else:
            dropped += 1
        before = after
    median = lambda ns: None if None in ns else float(np.median(ns))
    return {k: ([x for x, _ in v], median([ns for _, ns in v])) for k, v in sorted(seen.items()) if len(v) >= least}, dropped


def environment(name, requirements):
    """The bin folder of an environment of a peer's own, made from its pinned requirements."""
    path = (DEPS / ("venv-" + name)).resolve()
    want = "%s %s" % (sha256(requirements), path)  # its programs name the folder that they were installed in
    stamp = path / "requirements.sha256"
    if not stamp.exists() or stamp.read_text() != want:
        say("installing " + name)
        try:
            install(path, requirements)
        except (OSError, subprocess.CalledProcessError):
            raise Missing("%s cannot be installed from %s" % (name, requirements.relative_to(ROOT)))  # pip has said why
        stamp.write_text(want)
    return path / "bin"


def install(path, requirements):
    """Makes a virtual environment of pinned wheels."""
    subprocess.run([sys.executable, "-m", "venv", "--clear", str(path)], check=True)
    subprocess.run([str(path / "bin/python"), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--require-hashes", "--only-binary=:all:",
                        "--no-deps", "-r", str(requirements)], check=True)


def interleaved(candidates, rounds, warmup=5):
    """Milliseconds [candidate, round] of the callables run in turn: A B A B ..."""
    for _ in range(warmup):
        for f in candidates:
            f()
    ms = np.zeros((len(candidates), rounds))
    for r in range(rounds):
        for i, f in enumerate(candidates):
            t = time.perf_counter()
            f()
            ms[i, r] = 1e3 * (time.perf_counter() - t)
    return ms


def median_interval(x):
    """The median and its order-statistic 95 % interval."""
    x, n = np.sort(x), len(x)
    k = max(0, int(math.floor(n / 2 - 0.98 * math.sqrt(n))))
    return float(np.median(x)), float(x[k]), float(x[n - 1 - k])


def wilson(right, n, z=1.96):
    if n == 0:
        return 0.0, 1.0
    p, d = right / n, 1 + z * z / n
    mid, half = p + z * z / (2 * n), z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    return (mid - half) / d, (mid + half) / d


def percentiles(ms):
    return {"n": len(ms), **{"p%d_ms" % q: float(np.percentile(ms, q)) for q in (50, 90, 99)}, "min_ms": float(np.min(ms))}


def tokenizer(limit):
    from tokenizers import Tokenizer
    t = Tokenizer.from_file(str(MINILM_FUSED / "tokenizer.json"))
    t.enable_truncation(limit)
    t.no_padding()
    return t


def rows(part):
    return [json.loads(l) for l in open(BBC / (part + ".jsonl"), encoding="utf-8")]


def ids_feeds(ids, names=("input_ids", "attention_mask", "token_type_ids")):
    """Feeds of one unpadded sequence, batch 1."""
    a = np.asarray(ids, np.int64)[None]
    return dict(zip(names, (a, np.ones_like(a), np.zeros_like(a))))


def sha256(path):
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()


WORK.mkdir(parents=True, exist_ok=True)
