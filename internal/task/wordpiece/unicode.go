package wordpiece

import "sync"

// Properties of a code point, as the reference implementation sees them.
const (
	propDrop    = 1 << iota // removed by clean_text
	propBlank               // becomes a space by clean_text
	propChinese             // set apart by handle_chinese_chars
	propMark                // removed by strip_accents
	propSpace               // separates words
	propPunct               // a word of its own
)

// prop holds everything the normalizer asks about one code point.
type prop struct {
	flags uint8
	rank  uint8  // of the canonical combining class; 0 is a starter
	nfd   uint16 // 1 + index into decompositions; 0: none
	lower int32  // difference of the lower case
}

// maxRune is the last code point of Unicode.
const maxRune = 0x10FFFF

// pageBits is the logarithm of the code points in a page of the two-stage
// table. Most pages hold nothing but the default and share one.
const pageBits = 7

type unicodeTable struct {
	index [(maxRune + 1) >> pageBits]uint16
	pages [][1 << pageBits]prop
}

// lowerDotted is U+0130, the one code point whose lower case (i + U+0307) is
// two code points.
const lowerDotted = 0x130

// at returns the properties of r, which must be a valid rune.
func (t *unicodeTable) at(r rune) *prop {
	return &t.pages[t.index[r>>pageBits]][r&(1<<pageBits-1)]
}

// table builds the two-stage table from the generated spans, once.
var table = sync.OnceValue(buildTable)

func buildTable() *unicodeTable {
	flat := make([]prop, maxRune+1)
	set := func(spans []span, flag uint8) {
		for _, s := range spans {
			for r := s.lo; r <= s.hi; r++ {
				flat[r].flags |= flag
			}
		}
	}
	set(dropSpans, propDrop)
	set(blankSpans, propBlank)
	set(chineseSpans, propChinese)
	set(markSpans, propMark)
	set(spaceSpans, propSpace)
	set(punctSpans, propPunct)
	for _, s := range classSpans {
		for r := s.lo; r <= s.hi; r++ {
			flat[r].rank = s.rank
		}
	}
	for _, s := range lowerSpans {
		for r := s.lo; r <= s.hi; r += s.step {
			flat[r].lower = s.delta
		}
	}
	for i, d := range decompositions {
		flat[d.r].nfd = uint16(i + 1)
	}
	// The lower case is a difference, so that equal pages
	// of different scripts are one.
	t := &unicodeTable{}
	seen := map[[1 << pageBits]prop]uint16{}
	for i := range t.index {
		page := [1 << pageBits]prop(flat[i<<pageBits:])
		id, ok := seen[page]
		if !ok {
			id = uint16(len(t.pages))
			seen[page] = id
			t.pages = append(t.pages, page)
		}
		t.index[i] = id
	}
	return t
}

// Hangul syllables decompose by arithmetic (Unicode Standard, section 3.12).
const (
	hangulBase  = 0xAC00
	hangulCount = 11172
	hangulN     = 588 // syllables of one leading consonant
	hangulT     = 28  // syllables of one leading consonant and vowel
	jamoL       = 0x1100
	jamoV       = 0x1161
	jamoT       = 0x11A7
)
