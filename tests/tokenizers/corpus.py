"""Writes texts and the ids that Hugging Face `tokenizers` gives them, in the form of
internal/task/wordpiece/testdata/gen_golden.py.

usage: corpus.py TOKENIZER.JSON OUT.json.gz

The texts are the translations (gettext .mo) in the packages installed beside this Python, each line once, and random
Unicode. The vocabularies are that of TOKENIZER.JSON and two that are trained on the texts, with and without case, so that
every script has tokens of its own.
"""

import gzip
import importlib.util
import json
import pathlib
import random
import struct
import sys
import sysconfig

from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers

REAL, RANDOM, VOCABULARY = 100_000, 20_000, 30_000
SEED = 1


def messages(path):
    """The translations in a .mo file (GNU gettext manual, "The Format of GNU MO Files")."""
    b = path.read_bytes()
    order = "<" if b[:4] == b"\xde\x12\x04\x95" else ">"
    _, _, n, _, table = struct.unpack_from(order + "5I", b)
    for i in range(n):
        size, at = struct.unpack_from(order + "2I", b, table + 8 * i)
        yield b[at : at + size].decode("utf-8")


def corpus():
    lines, languages = {}, set()
    for path in sorted(pathlib.Path(sysconfig.get_paths()["purelib"]).rglob("*.mo")):
        languages.add(path.parent.parent.name)
        for message in messages(path):
            for line in message.replace("\0", "\n").split("\n"):
                if len(line.strip()) > 2:
                    lines[line] = None  # each once, in the order of the files
    return list(lines), languages


def trained(lines, **settings):
    """The tokenizer.json of a WordPiece vocabulary of these lines."""
    t = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    t.normalizer = normalizers.BertNormalizer(**settings)
    t.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    t.train_from_iterator(lines, trainers.WordPieceTrainer(vocab_size=VOCABULARY, special_tokens=special, show_progress=False))
    spec = json.loads(t.to_str())
    spec["post_processor"] = {"type": "BertProcessing", "sep": ["[SEP]", 3], "cls": ["[CLS]", 2]}
    return spec


def main():
    tokenizer, out = sys.argv[1:]
    here = pathlib.Path(__file__).resolve().parents[2]
    at = importlib.util.spec_from_file_location("gen_golden", here / "internal/task/wordpiece/testdata/gen_golden.py")
    golden = importlib.util.module_from_spec(at)
    at.loader.exec_module(golden)

    real, languages = corpus()
    if len(real) < REAL or len(languages) < 100:
        sys.exit(f"tokenizers: error: {len(real)} lines in {len(languages)} languages, expected {REAL} in 100")
    rnd = random.Random(SEED)
    texts = real + golden.texts(RANDOM, rnd)
    doc = {"library": "tokenizers", "texts": texts, "cases": []}
    with open(tokenizer, encoding="utf-8") as f:
        doc["cases"].append(golden.case("file", f.read(), texts, rnd))
    for name, settings in {
        "trained uncased": dict(clean_text=True, handle_chinese_chars=True, strip_accents=None, lowercase=True),
        "trained cased": dict(clean_text=True, handle_chinese_chars=True, strip_accents=False, lowercase=False),
    }.items():
        spec = trained(texts, **settings)
        case = golden.case(name, json.dumps(spec), texts, rnd)
        vocabulary = spec["model"].pop("vocab")
        case["vocab"], case["tokenizer"] = sorted(vocabulary, key=vocabulary.get), spec
        doc["cases"].append(case)
    with gzip.open(out, "wt", compresslevel=1, encoding="utf-8") as f:
        json.dump(doc, f)
    print(f"tokenizers: {len(real)} lines of {len(languages)} languages, {len(texts) - len(real)} of random Unicode")


main()
