"""The captions of the small CLIP model, and the byte pair encoding of CLIP.

Vocabulary and merges: bpe_simple_vocab_16e6.txt.gz of CLIP (Radford et al.
2021), 49,408 entries; Sennrich et al. 2016 for the method. Captions are lower
case ASCII, which spares the rules for other scripts.
"""
import gzip
import re

TEXT, VOCAB = 16, 49408
START, END = VOCAB - 2, VOCAB - 1
MERGES = VOCAB - 2 - 2 * 256
WORD = re.compile(r"[a-z]+|[0-9]|[^\sa-z0-9]+")

CLASSES = (  # the first name of each stands in the prompts that judge
    ("t-shirt", "tee", "t-shirt top", "short sleeved top", "undershirt"),
    ("pair of trousers", "pair of pants", "pair of jeans", "pair of slacks"),
    ("pullover", "sweater", "jumper", "sweatshirt"),
    ("dress", "gown", "frock", "sundress"),
    ("coat", "overcoat", "jacket", "parka"),
    ("sandal", "open shoe with straps", "flip flop", "heeled sandal"),
    ("shirt", "blouse", "button up shirt", "collared shirt"),
    ("sneaker", "trainer", "running shoe", "sports shoe"),
    ("bag", "handbag", "purse", "shoulder bag"),
    ("ankle boot", "boot", "bootie", "short boot"),
)
TEMPLATES = (
    "a photo of a {}", "a picture of a {}", "an image of the {}", "a small photo of one {}", "a grey picture showing a {}", "this is a {}",
    "the {} in a catalogue", "one {} for sale", "a product image showing the {}", "a low resolution photo of the {}", "{}", "a {} from a shop",
)
SEEN, UNSEEN = TEMPLATES[0], "a small picture showing one {}"  # no caption of the training has the second


class Encoder:
    def __init__(self, path):
        with gzip.open(str(path), "rt", encoding="utf-8") as f:
            lines = f.read().split("\n")[1:MERGES + 1]
        self.ranks = {tuple(l.split()): i for i, l in enumerate(lines)}
        if len(self.ranks) != MERGES:
            raise ValueError("%s holds %d merges, expected %d" % (path, len(self.ranks), MERGES))

    def word(self, text):
        """Ids of one word: merges the pair of the lowest rank until none is left."""
        parts = list(text[:-1]) + [text[-1] + "</w>"]
        while len(parts) > 1:
            rank, i = min((self.ranks.get(pair, MERGES), i) for i, pair in enumerate(zip(parts, parts[1:])))
            if rank == MERGES:
                break
            pair, merged, k = (parts[i], parts[i + 1]), [], 0
            while k < len(parts):
                both = tuple(parts[k:k + 2]) == pair
                merged.append("".join(parts[k:k + 2]) if both else parts[k])
                k += 2 if both else 1
            parts = merged
        return [self.id(p) for p in parts]

    def id(self, part):
        end = part.endswith("</w>")
        name = part[:-4] if end else part
        if len(name) == 1:  # printable ASCII comes first
            return ord(name) - 33 + (256 if end else 0)
        return 512 + self.merged()[part]

    def merged(self):
        if not hasattr(self, "_merged"):
            self._merged = {"".join(pair): i for pair, i in self.ranks.items()}
        return self._merged

    def caption(self, text):
        """TEXT ids: start, the words, end, zeros."""
        ids = [START] + [i for w in WORD.findall(text.lower()) for i in self.word(w)] + [END]
        if len(ids) > TEXT:
            raise ValueError("%r has %d tokens, at most %d" % (text, len(ids), TEXT))
        return ids + [0] * (TEXT - len(ids))
