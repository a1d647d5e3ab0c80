#!/usr/bin/env python3
"""Writes golden.json.gz: texts and the ids that Hugging Face `tokenizers` gives them.

Usage: gen_golden.py OUT [--tokenizer FILE] [--lines N] [--seed S]

Without --tokenizer it makes small tokenizers of its own (cased, uncased, with
accents, with every kind of added token), whose vocabulary has one token for
many single characters, so that any difference of normalization shows in the
ids. The texts are made here: hand-written sentences, mixtures of scripts, and
random code points of all planes.
"""
import argparse, gzip, json, random, unicodedata
import tokenizers
from tokenizers import Tokenizer

SENTENCES = [
    "The quick brown fox jumps over the lazy dog.", "It's 9:30 a.m. -- don't be late!", "E-mail: someone@example.org, tel. +1 (555) 010-0199",
    "Prices rose 3.5% to $1,299.00 (see p. 12).", "naïve café façade résumé coöperate", "Zürich, Ångström, Łódź, São Paulo, Đà Nẵng",
    "İstanbul'da ılık bir gün; IĞDIR ve İZMİR.", "Straße, GROẞ, ﬁne ﬂuﬀ", "Ελληνικά: ΌΔΥΣΣΕΥΣ ὀδυσσεύς ᾳ ΰ", "Съешь ещё этих мягких французских булок Йй",
    "שלום עולם עם נִקּוּד", "مرحبا بالعالم، كيف الحال؟ بِسْمِ", "नमस्ते दुनिया। क़ लड़का", "বাংলা ভাষা ৳১২৩", "สวัสดีชาวโลก", "မြန်မာဘာသာ", "ਪੰਜਾਬੀ ਭਾਸ਼ਾ",
    "你好,世界!今天天气很好。", "日本語とカタカナ、がぎぐげご ｶﾞ", "한국어 문장을 씁니다. 각낙닿", "中English混合text123", "𠀀𪜀𫝀𬺰 豈更車", "ᄀᆨ conjoining jamo",
    "emoji 😀👍🏽👨‍👩‍👧 🇩🇪 ❤️", "zero\u200bwidth\u200djoin\ufeffbom soft\u00adhyphen", "tabs\tand\r\nnew\u2028lines\u0085nel\u00a0nbsp\u3000wide", "ctrl\x00\x01\x07\x7f\x9fchars",
    "a\u0301\u0323\u0345 e\u0323\u0301 q\u0307\u0323", "\u1e9b\u0323 \u212b \u03d3 \u0344", "math ∑∫≤ ½ ² x₁ €£¥ ©®™ …—–‘’“”", "private \ue000\U000f0000 \ufffd noncharacter \ufdd0\uffff",
    "[CLS] [SEP] [MASK] [PAD] [UNK] [cls] [ MASK ]", "x[MASK]y [SEP][SEP] [[CLS]]", "##ing ## # ing##", "http://example.com/a_b?c=d&e=f#g", "snake_case camelCase SCREAMING-kebab",
    "supercalifragilisticexpialidocious antidisestablishmentarianism", "", " ", "\n\n", "a", "é", "e\u0301", "\u0301", "ÀÉÎÕÜ àéîõü", "ǅ ǈ Ǆ ŉ ΐ ﬃ", "<added> before <added>after <ADDED>", "wor<lr>d  <lr>  x <lr>", "Ünorm ünorm UNORM", 
]

def texts(n, rnd):
    out = list(SENTENCES)
    pools = [range(0x20, 0x7f), range(0xa0, 0x250), range(0x300, 0x370), range(0x370, 0x530), range(0x590, 0x780), range(0x900, 0xe00), range(0xe00, 0x1100),
             range(0x1ab0, 0x1b00), range(0x1dc0, 0x1f00), range(0x1e00, 0x2000), range(0x2000, 0x2100), range(0x2e00, 0x2e60), range(0x3000, 0x3100), range(0x4e00, 0x9fff),
             range(0xac00, 0xd7a4), range(0xf900, 0x10000), range(0x10000, 0x12000), range(0x1d100, 0x1d800), range(0x1e000, 0x1f000), range(0x1f300, 0x1fa00),
             range(0x2f800, 0x2fa20), range(0xd7b0, 0xd800)]
    words = " ".join(SENTENCES).split(" ")
    while len(out) < n:
        k = len(out) % 5
        if k == 0:  # mixed words
            t = " ".join(rnd.choice(words) for _ in range(rnd.randint(1, 20)))
        elif k == 1:  # one or two blocks and ASCII
            p = rnd.sample(pools, 2) + [pools[0]]
            t = "".join(chr(rnd.choice(rnd.choice(p))) for _ in range(rnd.randint(1, 40)))
        elif k == 2:  # anything
            t = "".join(chr(c) for c in (rnd.randrange(0x110000) for _ in range(rnd.randint(1, 30))) if not 0xD800 <= c < 0xE000)
        elif k == 3:  # the basic plane, and marks in a row
            t = "".join(chr(c) for c in (rnd.randrange(0x20, 0xD800) for _ in range(rnd.randint(1, 30))))
            t += "".join(chr(rnd.choice([rnd.randrange(0x300, 0x370), rnd.randrange(0x591, 0x5c8), rnd.randrange(0x1dc0, 0x1e00), 0x302e, 0x1d165, 0x94d])) for _ in range(rnd.randint(2, 8)))
        else:  # every block mixed, in words
            t = " ".join("".join(chr(rnd.choice(rnd.choice(pools))) for _ in range(rnd.randint(1, 6))) for _ in range(rnd.randint(1, 10)))
        out.append(t)
    return out

def vocabulary(rnd):
    toks = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    chars = set()
    for a, b in [(0x21, 0x7f), (0xa1, 0x180), (0x300, 0x370), (0x370, 0x480), (0x590, 0x5f0), (0x620, 0x660), (0x900, 0x980), (0x1100, 0x1200), (0x3040, 0x3100), (0xac00, 0xac40)]:
        chars.update(range(a, b))
    for lo, hi in [(0x700, 0x2fff), (0x4e00, 0xa7ff), (0xf900, 0xffff), (0x10000, 0x1f000)]:
        chars.update(rnd.randrange(lo, hi) for _ in range(400))
    for s in SENTENCES:
        for form in (s, s.lower(), unicodedata.normalize("NFD", s), unicodedata.normalize("NFD", s.lower())):
            chars.update(map(ord, form))
    for c in sorted(chars):
        if chr(c).strip():
            toks += [chr(c), "##" + chr(c)]
    for s in SENTENCES:
        for w in s.lower().split():
            for n in (2, 3, 5):
                toks += [w[:n], "##" + w[-n:]]
    toks = [t for t in dict.fromkeys(toks) if t not in ("<lr>", "<added>", "Ünorm")]
    return {t: i for i, t in enumerate(toks)}

def settings(rnd):
    vocab = vocabulary(rnd)
    special = [dict(id=vocab[t], content=t, single_word=False, lstrip=False, rstrip=False, normalized=False, special=True) for t in ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")]
    n = len(vocab)
    extra = [dict(id=n, content="<added>", single_word=False, lstrip=False, rstrip=False, normalized=False, special=False),
             dict(id=n + 1, content="<lr>", single_word=False, lstrip=True, rstrip=True, normalized=False, special=False),
             dict(id=n + 2, content="Ünorm", single_word=False, lstrip=False, rstrip=False, normalized=True, special=False)]
    template = {"type": "TemplateProcessing",
                "single": [{"SpecialToken": {"id": "[CLS]", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}, {"SpecialToken": {"id": "[SEP]", "type_id": 0}}],
                "pair": [{"SpecialToken": {"id": "[CLS]", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}, {"SpecialToken": {"id": "[SEP]", "type_id": 0}},
                         {"Sequence": {"id": "B", "type_id": 1}}, {"SpecialToken": {"id": "[SEP]", "type_id": 1}}],
                "special_tokens": {t: {"id": t, "ids": [vocab[t]], "tokens": [t]} for t in ("[CLS]", "[SEP]")}}
    bert = {"type": "BertProcessing", "sep": ["[SEP]", vocab["[SEP]"]], "cls": ["[CLS]", vocab["[CLS]"]]}
    for name, norm, added, post, maxc in [
        ("uncased", dict(clean_text=True, handle_chinese_chars=True, strip_accents=None, lowercase=True), special, template, 100),
        ("cased", dict(clean_text=True, handle_chinese_chars=True, strip_accents=None, lowercase=False), special, bert, 100),
        ("accents", dict(clean_text=True, handle_chinese_chars=False, strip_accents=False, lowercase=True), special, template, 20),
        ("raw", dict(clean_text=False, handle_chinese_chars=True, strip_accents=True, lowercase=False), special, None, 100),
        ("added", dict(clean_text=True, handle_chinese_chars=True, strip_accents=None, lowercase=True), special + extra, template, 100)]:
        yield name, {"version": "1.0", "truncation": {"direction": "Right", "max_length": 7, "strategy": "LongestFirst", "stride": 0}, "padding": None, "added_tokens": added,
                     "normalizer": {"type": "BertNormalizer", **norm}, "pre_tokenizer": {"type": "BertPreTokenizer"}, "post_processor": post,
                     "decoder": None, "model": {"type": "WordPiece", "unk_token": "[UNK]", "continuing_subword_prefix": "##", "max_input_chars_per_word": maxc, "vocab": vocab}}

def case(name, spec, lines, rnd):
    t = Tokenizer.from_str(spec)
    t.no_padding()
    t.no_truncation()
    c = {"name": name, "ids": [t.encode(x).ids for x in lines]}
    for kind, pairs, direction in (("cut", "pairs", "right"), ("left", "left_pairs", "left")):
        c[kind], c[pairs] = [], []
        for x in lines[:200]:
            n = rnd.randint(3, 24)
            t.enable_truncation(n, direction=direction)
            c[kind].append([n, t.encode(x).ids])
        for _ in range(300):
            i, j, n = rnd.randrange(len(lines)), rnd.randrange(len(lines)), rnd.randint(4, 40)
            t.enable_truncation(n, direction=direction)
            e = t.encode(lines[i], lines[j])
            c[pairs].append([i, j, n, e.ids, e.type_ids])
    return c

def main():
    p = argparse.ArgumentParser()
    p.add_argument("out"); p.add_argument("--tokenizer"); p.add_argument("--lines", type=int, default=600); p.add_argument("--seed", type=int, default=1)
    a = p.parse_args()
    rnd = random.Random(a.seed)
    lines = texts(a.lines, rnd)
    doc = {"library": "tokenizers " + tokenizers.__version__, "texts": lines, "cases": []}
    if a.tokenizer:
        doc["cases"].append(case("file", open(a.tokenizer, encoding="utf-8").read(), lines, rnd))
    else:
        for name, spec in settings(rnd):
            c = case(name, json.dumps(spec), lines, rnd)
            c["vocab"] = list(spec["model"].pop("vocab")) if name == "uncased" else spec["model"].pop("vocab") and None
            c["tokenizer"] = spec
            doc["cases"].append(c)
    with open(a.out, "wb") as f, gzip.GzipFile(fileobj=f, mode="wb", mtime=0, filename="") as z:
        z.write(json.dumps(doc).encode())

if __name__ == "__main__":
    main()
