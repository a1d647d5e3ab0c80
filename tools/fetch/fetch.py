#!/usr/bin/env python3
"""Fetch what fewbit needs at build and run time into .deps/.

    python3 tools/fetch/fetch.py [--check] SET|ITEM...

Reads manifest.json beside it, the one list of everything that is downloaded,
each file pinned by SHA-256. Packages come through the ordinary clients (pip,
mvn, apt-get), which know where their registry or mirror is; nothing here names
a host. A package file that already lies in .deps/downloads/ (put there by
hand, or left by an interrupted run) is used instead of a download.

Files are written beside their place and renamed, so that what exists is
complete; a second run only compares sizes with the receipt of the first and
takes a few milliseconds. --check hashes everything again.

Needs Python 3.8 or newer and its standard library.
"""
import argparse
import fcntl
import hashlib
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import threading
import time
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
DEPS = Path(os.environ.get("FEWBIT_DEPS") or ROOT / ".deps")
DOWNLOADS = DEPS / "downloads"
RECEIPTS = DEPS / "receipts"
CHUNK = 1 << 20


class FetchError(Exception):
    """What could not be had, in one line with the remedy."""


def say(text):
    print("fetch: " + text, file=sys.stderr, flush=True)


def shown(path):
    """path as a person would type it from the repository's root."""
    try:
        return str(Path(path).relative_to(ROOT))
    except ValueError:
        return str(path)


def machine():
    m = platform.machine().lower()
    return {"amd64": "x86_64", "arm64": "aarch64"}.get(m, m)


def for_machine(value, item):
    """Picks this machine's entry where the manifest gives one per architecture."""
    if not isinstance(value, dict):
        return value
    if machine() not in value:
        raise FetchError("%s is not pinned for %s (only %s); %s" % (item["title"], machine(), ", ".join(sorted(value)), item["elsewhere"]))
    return value[machine()]


def sha256(path):
    h = hashlib.sha256()
    with open(path, "rb") as f:
        for block in iter(lambda: f.read(CHUNK), b""):
            h.update(block)
    return h.hexdigest()


class Heartbeat:
    """Prints that a long silent command is still at work, every few seconds."""

    def __init__(self, text, every=5.0):
        self.text, self.every, self.stop = text, every, threading.Event()

    def __enter__(self):
        self.start = time.time()
        self.thread = threading.Thread(target=self.beat, daemon=True)
        self.thread.start()

    def beat(self):
        while not self.stop.wait(self.every):
            say("%s ... %d s" % (self.text, time.time() - self.start))

    def __exit__(self, *exc):
        self.stop.set()
        self.thread.join()


def client_command(pkg, to):
    """The ordinary client's command that downloads pkg into the folder to."""
    spec = "%s==%s" % (pkg["name"], pkg["version"])
    if pkg["client"] == "pip" and pkg.get("source"):
        # pip runs a source package's setup.py to learn its name. With the hash it does so after comparing it.
        wanted = to.with_suffix(".txt")
        wanted.write_text("%s --hash=sha256:%s\n" % (spec, pkg["sha256"]))
        return [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-input", "--no-deps",
                "--no-binary=:all:", "--require-hashes", "--dest", str(to), "-r", str(wanted)]
    if pkg["client"] == "pip":
        return [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-input", "--no-deps",
                "--only-binary=:all:", "--implementation", "cp", "--python-version", pkg["python"],
                "--platform", pkg["platform"], "--dest", str(to), spec]
    if pkg["client"] == "mvn":
        return ["mvn", "-B", "-q", "dependency:copy", "-Dartifact=%s:%s" % (pkg["name"], pkg["version"]),
                "-DoutputDirectory=%s" % to, "-Dmdep.useBaseVersion=true"]
    if pkg["client"] == "apt":
        return ["apt-get", "download", "%s=%s" % (pkg["name"], pkg["version"])]
    raise FetchError("manifest.json names an unknown client %r for %s" % (pkg["client"], pkg["name"]))


def reason(output):
    """The line of a client's output that says best why it failed."""
    lines = [l.strip() for l in output.splitlines() if l.strip()]
    errors = [l for l in lines if re.match(r"(\[?ERROR\]?|E:|error)", l, re.I)]
    text = (errors or lines or ["no output"])[0]
    return re.sub(r"\bhttps?://\S+", "the registry", text)[:200]


def download(pkg, override):
    """Returns the path of pkg's verified file, downloading it where it is missing."""
    DOWNLOADS.mkdir(parents=True, exist_ok=True)
    path = DOWNLOADS / pkg["file"]
    remedy = "put %s (sha256 %s) at %s" % (pkg["file"], pkg["sha256"], shown(path))
    if override:
        remedy += ", or set %s to the library's path" % override
    if path.exists():
        if sha256(path) == pkg["sha256"]:
            say("using %s" % shown(path))
            return path
        say("%s is incomplete or another file, fetching it again" % shown(path))
        path.unlink()
    text = "downloading %s %s (%.0f MB, %s)" % (pkg["name"], pkg["version"], pkg["bytes"] / 1e6, pkg["client"])
    say(text)
    part = DOWNLOADS / ("part-%s" % pkg["name"].split(":")[-1])
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir()
    try:
        with Heartbeat(text):
            done = subprocess.run(client_command(pkg, part), cwd=str(part), stdin=subprocess.DEVNULL,
                                  stdout=subprocess.PIPE, stderr=subprocess.STDOUT, universal_newlines=True, errors="replace")
    except FileNotFoundError as e:
        raise FetchError("cannot fetch %s: %s is not installed; %s" % (pkg["name"], e.filename, remedy))
    finally:
        if part.with_suffix(".txt").exists():
            part.with_suffix(".txt").unlink()
    files = [f for f in part.iterdir() if f.is_file()]
    if done.returncode or not files:
        shutil.rmtree(part, ignore_errors=True)
        raise FetchError("cannot fetch %s %s: %s; %s" % (pkg["name"], pkg["version"], reason(done.stdout), remedy))
    got = sha256(files[0])
    if got != pkg["sha256"]:
        shutil.rmtree(part, ignore_errors=True)
        raise FetchError("%s from %s has sha256 %s, not the pinned one; %s" % (files[0].name, pkg["client"], got, remedy))
    os.replace(str(files[0]), str(path))
    shutil.rmtree(part, ignore_errors=True)
    return path


def publish(to, write):
    """Calls write(file) on a temporary file beside to, then renames it."""
    to.parent.mkdir(parents=True, exist_ok=True)
    tmp = to.with_name(to.name + ".part")
    with open(str(tmp), "wb") as f:
        write(f)
        f.flush()
        os.fsync(f.fileno())
    os.replace(str(tmp), str(to))


def extract(archive, entry):
    to = DEPS / entry["to"]
    with zipfile.ZipFile(str(archive)) as z, z.open(entry["member"]) as src:
        publish(to, lambda f: shutil.copyfileobj(src, f, CHUNK))


def complete(name, item):
    """True where the receipt fits the manifest and every file still has the size it was verified at."""
    try:
        receipt = json.loads((RECEIPTS / (name + ".json")).read_text())
        want = {e["to"]: for_machine(e["sha256"], item) for e in item["files"]}
        return receipt["sha256"] == want and all((DEPS / to).stat().st_size == receipt["bytes"][to] for to in want)
    except (OSError, ValueError, KeyError):
        return False


def verified(item):
    """True where every file of item is there with its pinned hash."""
    return all((DEPS / e["to"]).is_file() and sha256(DEPS / e["to"]) == for_machine(e["sha256"], item)
               for e in item["files"])


def write_receipt(name, item):
    receipt = {"sha256": {e["to"]: for_machine(e["sha256"], item) for e in item["files"]},
               "bytes": {e["to"]: (DEPS / e["to"]).stat().st_size for e in item["files"]}}
    publish(RECEIPTS / (name + ".json"), lambda f: f.write(json.dumps(receipt, indent=1).encode()))


def provide(manifest, name, check):
    item = manifest["items"][name]
    override = item.get("override")
    if override and os.environ.get(override):
        lib = Path(os.environ[override])
        if not lib.is_file():
            raise FetchError("%s=%s is not a file; point it at a libonnxruntime.so or unset it" % (override, lib))
        return
    if not check and complete(name, item):
        return
    if verified(item):
        write_receipt(name, item)
        return
    pkg = manifest["packages"][for_machine(item["package"], item)]
    archive = download(pkg, override)
    say("unpacking %s" % item["title"])
    if "make" in item:
        import derive
        getattr(derive, item["make"])(archive, DEPS, publish, say)
    else:
        for entry in item["files"]:
            extract(archive, entry)
    for entry in item["files"]:
        got, want = sha256(DEPS / entry["to"]), for_machine(entry["sha256"], item)
        if got != want:
            raise FetchError("%s came out with sha256 %s, manifest.json pins %s; delete %s and run again"
                             % (shown(DEPS / entry["to"]), got, want, shown(archive)))
    write_receipt(name, item)
    archive.unlink()
    say("%s is ready" % item["title"])


def main():
    manifest = json.loads((Path(__file__).with_name("manifest.json")).read_text())
    ap = argparse.ArgumentParser(description="Fetch what fewbit needs into .deps/.")
    ap.add_argument("--check", action="store_true", help="hash every file again instead of trusting the receipts")
    ap.add_argument("names", nargs="+", metavar="SET|ITEM", help="of: " + ", ".join(list(manifest["sets"]) + list(manifest["items"])))
    args = ap.parse_args()
    items = []
    for n in args.names:
        if n not in manifest["sets"] and n not in manifest["items"]:
            ap.error("unknown set or item %r" % n)
        items += manifest["sets"].get(n, [n])
    try:
        DEPS.mkdir(parents=True, exist_ok=True)
        with open(str(DEPS / "lock"), "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            for n in dict.fromkeys(items):
                provide(manifest, n, args.check)
    except FetchError as e:
        say("error: %s" % e)
        return 1
    except (OSError, zipfile.BadZipFile) as e:
        say("error: %s; free some space or fix the rights of %s and run again" % (e, shown(DEPS)))
        return 1
    except KeyboardInterrupt:
        say("stopped; what was complete is kept")
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
