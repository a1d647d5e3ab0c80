// Package wordpiece turns text into token ids as BERT's tokenizers do:
// BertNormalizer, BertPreTokenizer and WordPiece, configured by a Hugging Face
// tokenizer.json. Its ids equal those of the `tokenizers` library (0.23),
// whose Unicode tables it carries (tables.go).
package wordpiece

import (
	"sync"
	"unicode/utf8"
)

// Tokenizer is immutable and safe for use by many goroutines.
type Tokenizer struct {
	norm     normalizer
	first    map[string]int32 // every token, as a word begins
	rest     map[string]int32 // continuing tokens without their prefix
	maxFirst int              // bytes of the longest key of first
	maxRest  int              // ... of rest
	maxChars int              // max_input_chars_per_word
	unk      int32
	padID    int32
	size     int

	addedRaw  addedSet // searched in the text as it is
	addedNorm addedSet // searched in the normalized text

	single, pair []piece

	special map[int32]bool
	names   func() map[int32]string // made when first asked for
}

// piece is one element of a post-processing template: fixed ids, or the
// tokens of sequence 'A' or 'B'.
type piece struct {
	ids      []int32
	sequence byte
	typeID   int64
}

// Encoding holds the ids of one text or pair, and the type id (segment) of
// each. Both slices have the same length.
type Encoding struct {
	IDs, TypeIDs []int64
}

// VocabSize returns one more than the largest id that Encode can return.
func (t *Tokenizer) VocabSize() int { return t.size }

// PadID returns the id used for padding: the file's pad_id, else that of
// [PAD], else 0.
func (t *Tokenizer) PadID() int64 { return int64(t.padID) }

// HasPairs reports whether EncodePair can be used: the post-processor has a
// template for pairs.
func (t *Tokenizer) HasPairs() bool { return len(t.pair) > 0 }

// Special returns how many tokens of one text's (or pair's) encoding are
// fixed by the template, such as [CLS] and [SEP].
func (t *Tokenizer) Special(pair bool) int {
	n := 0
	for _, p := range t.template(pair) {
		n += len(p.ids)
	}
	return n
}

func (t *Tokenizer) template(pair bool) []piece {
	if pair {
		return t.pair
	}
	return t.single
}

// scratch holds the buffers of one encoding.
type scratch struct {
	text []byte
	a, b []int32
}

var scratchPool = sync.Pool{New: func() any { return new(scratch) }}

// maxPooledText bounds the buffers that a rare long text may leave in the pool.
const maxPooledText = 1 << 20

func putScratch(s *scratch) {
	if cap(s.text) <= maxPooledText && cap(s.a)+cap(s.b) <= maxPooledText {
		scratchPool.Put(s)
	}
}

// Encode returns the ids of text with the template's special tokens, cut on
// the right to at most maxLen ids; maxLen 0 is no limit. A maxLen too small
// for the special tokens leaves only these.
func (t *Tokenizer) Encode(text string, maxLen int) []int64 { return t.encode(text, maxLen, false) }

// encode is Encode, cut on the left where asked.
func (t *Tokenizer) encode(text string, maxLen int, left bool) []int64 {
	s := scratchPool.Get().(*scratch)
	defer putScratch(s)
	budget := t.budget(false, maxLen)
	a := []int32(nil)
	if left && budget >= 0 {
		s.a = t.tokens(s, s.a[:0], text, -1) // the end decides
		a = s.a[max(len(s.a)-budget, 0):]
	} else {
		s.a = t.tokens(s, s.a[:0], text, budget)
		a = s.a
	}
	n := t.Special(false) + len(a)
	ids := make([]int64, 0, n)
	for _, p := range t.single {
		ids = appendPiece(ids, p, a, nil)
	}
	return ids
}

// Token returns the text of an id, "" for one outside the vocabulary, and
// whether the file calls it special.
func (t *Tokenizer) Token(id int64) (text string, special bool) {
	if id < 0 || id > maxTokenID {
		return "", false
	}
	return t.names()[int32(id)], t.special[int32(id)]
}

// Plain returns the ids of text without special tokens.
func (t *Tokenizer) Plain(text string) []int64 {
	s := scratchPool.Get().(*scratch)
	defer putScratch(s)
	s.a = t.tokens(s, s.a[:0], text, -1)
	ids := make([]int64, len(s.a))
	for i, id := range s.a {
		ids[i] = int64(id)
	}
	return ids
}

// EncodePair returns the ids and type ids of two texts by the pair template;
// HasPairs must hold, otherwise the result is empty. A pair longer than
// maxLen loses tokens of the longer text first, as the library's strategy
// longest_first does: from its end, or where left is set from its beginning.
func (t *Tokenizer) EncodePair(a, b string, maxLen int, left bool) Encoding {
	s := scratchPool.Get().(*scratch)
	defer putScratch(s)
	budget := t.budget(true, maxLen)
	// Both in full: which of two long texts is the longer decides who keeps the
	// odd token.
	s.a = t.tokens(s, s.a[:0], a, -1)
	s.b = t.tokens(s, s.b[:0], b, -1)
	x, y := s.a, s.b
	if budget >= 0 {
		na, nb := longestFirst(len(x), len(y), budget)
		if left {
			x, y = x[len(x)-na:], y[len(y)-nb:]
		} else {
			x, y = x[:na], y[:nb]
		}
	}
	n := t.Special(true) + len(x) + len(y)
	e := Encoding{IDs: make([]int64, 0, n), TypeIDs: make([]int64, 0, n)}
	for _, p := range t.pair {
		e.IDs = appendPiece(e.IDs, p, x, y)
		for len(e.TypeIDs) < len(e.IDs) {
			e.TypeIDs = append(e.TypeIDs, p.typeID)
		}
	}
	return e
}

// EncodeSingle is Encode with type ids, cut on the left where asked.
func (t *Tokenizer) EncodeSingle(text string, maxLen int, left bool) Encoding {
	e := Encoding{IDs: t.encode(text, maxLen, left)}
	e.TypeIDs = make([]int64, 0, len(e.IDs))
	body := len(e.IDs) - t.Special(false)
	for _, p := range t.single {
		n := len(p.ids)
		if p.sequence != 0 {
			n = body
		}
		for range n {
			e.TypeIDs = append(e.TypeIDs, p.typeID)
		}
	}
	return e
}

// budget returns how many tokens fit beside the special ones, -1: any number.
func (t *Tokenizer) budget(pair bool, maxLen int) int {
	if maxLen <= 0 {
		return -1
	}
	return max(maxLen-t.Special(pair), 0)
}

func appendPiece(dst []int64, p piece, a, b []int32) []int64 {
	src := p.ids
	switch p.sequence {
	case 'A':
		src = a
	case 'B':
		src = b
	}
	for _, id := range src {
		dst = append(dst, int64(id))
	}
	return dst
}

// longestFirst returns the lengths of two sequences of na and nb tokens cut to
// limit together (tokenizers, utils/truncation.rs).
func longestFirst(na, nb, limit int) (int, int) {
	if na+nb <= limit {
		return na, nb
	}
	short := min(na, nb)
	long := max(limit-short, short)
	if short+long > limit { // both are cut, the longer keeps the odd token
		short = limit / 2
		long = short + limit%2
	}
	if na > nb {
		return min(na, long), min(nb, short)
	}
	return min(na, short), min(nb, long)
}

// tokens appends the ids of text to dst until there are budget of them
// (negative: all).
func (t *Tokenizer) tokens(s *scratch, dst []int32, text string, budget int) []int32 {
	full := func() bool { return budget >= 0 && len(dst) >= budget }
	for len(text) > 0 && !full() {
		m := t.addedRaw.find(text)
		s.text = t.norm.append(s.text[:0], text[:m.start])
		dst = t.words(dst, s.text, budget)
		if !m.ok {
			break
		}
		if !full() {
			dst = append(dst, m.id)
		}
		text = text[m.end:]
	}
	if budget >= 0 && len(dst) > budget {
		dst = dst[:budget]
	}
	return dst
}

// words tokenizes normalized text.
func (t *Tokenizer) words(dst []int32, text []byte, budget int) []int32 {
	if t.addedNorm.empty() {
		return t.split(dst, text, budget)
	}
	str := string(text)
	for len(str) > 0 {
		m := t.addedNorm.find(str)
		dst = t.split(dst, []byte(str[:m.start]), budget)
		if !m.ok {
			break
		}
		dst = append(dst, m.id)
		str = str[m.end:]
	}
	return dst
}

// split is BertPreTokenizer: words end at white space, and every punctuation
// mark is a word.
func (t *Tokenizer) split(dst []int32, text []byte, budget int) []int32 {
	tab := table()
	start := -1
	for i := 0; i < len(text); {
		if budget >= 0 && len(dst) >= budget {
			return dst
		}
		r, size := rune(text[i]), 1
		if r >= utf8.RuneSelf {
			r, size = utf8.DecodeRune(text[i:])
		}
		switch flags := tab.at(r).flags; {
		case flags&propSpace != 0:
			if start >= 0 {
				dst = t.word(dst, text[start:i])
				start = -1
			}
		case flags&propPunct != 0:
			if start >= 0 {
				dst = t.word(dst, text[start:i])
				start = -1
			}
			dst = t.word(dst, text[i:i+size])
		case start < 0:
			start = i
		}
		i += size
	}
	if start >= 0 {
		dst = t.word(dst, text[start:])
	}
	return dst
}

// word appends the pieces of one word: the longest token that begins it, then
// the longest that continues it, and so on; [UNK] alone when none fits.
func (t *Tokenizer) word(dst []int32, w []byte) []int32 {
	if len(w) > t.maxChars && utf8.RuneCount(w) > t.maxChars {
		return append(dst, t.unk)
	}
	base := len(dst)
	vocab, longest := t.first, t.maxFirst
	for len(w) > 0 {
		end := min(len(w), longest)
		for ; end > 0; end-- {
			if end < len(w) && !utf8.RuneStart(w[end]) {
				continue
			}
			if id, ok := vocab[string(w[:end])]; ok {
				dst = append(dst, id)
				break
			}
		}
		if end == 0 {
			return append(dst[:base], t.unk)
		}
		w = w[end:]
		vocab, longest = t.rest, t.maxRest
	}
	return dst
}
