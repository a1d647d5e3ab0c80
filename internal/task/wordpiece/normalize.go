package wordpiece

import (
	"slices"
	"unicode/utf8"
)

// normalizer is BertNormalizer: clean_text, handle_chinese_chars,
// strip_accents and lowercase, in this order.
type normalizer struct {
	cleanText, chinese, stripAccents, lowercase bool
}

// mark is a code point waiting for its place in canonical order.
type mark struct {
	r    rune
	rank uint8
}

// append appends the normalized form of s to dst. Bytes of s that are not
// UTF-8 count as U+FFFD.
func (n *normalizer) append(dst []byte, s string) []byte {
	t := table()
	var waiting [32]mark
	w := writer{dst: dst, n: n, t: t, marks: waiting[:0]}
	for i := 0; i < len(s); {
		c := s[i]
		if c < utf8.RuneSelf {
			i++
			p := t.at(rune(c))
			if n.cleanText {
				if p.flags&propDrop != 0 {
					continue
				}
				if p.flags&propBlank != 0 {
					c = ' '
				}
			}
			if len(w.marks) > 0 {
				w.flush()
			}
			if n.lowercase && 'A' <= c && c <= 'Z' {
				c += 'a' - 'A'
			}
			w.dst = append(w.dst, c)
			continue
		}
		r, size := utf8.DecodeRuneInString(s[i:])
		i += size
		p := t.at(r)
		if n.cleanText {
			if p.flags&propDrop != 0 {
				continue
			}
			if p.flags&propBlank != 0 {
				w.starter(' ', t.at(' '))
				continue
			}
		}
		if n.chinese && p.flags&propChinese != 0 {
			w.starter(' ', t.at(' '))
			w.decompose(r, p)
			w.starter(' ', t.at(' '))
			continue
		}
		w.decompose(r, p)
	}
	w.flush()
	return w.dst
}

// writer appends code points in canonical order, without nonspacing marks and
// in lower case, as far as the normalizer asks for these.
type writer struct {
	dst   []byte
	n     *normalizer
	t     *unicodeTable
	marks []mark // nonstarters since the last starter
}

func (w *writer) decompose(r rune, p *prop) {
	switch {
	case !w.n.stripAccents:
		w.emit(r, p)
	case p.nfd != 0:
		for _, d := range decompositions[p.nfd-1].nfd {
			w.ordered(d, w.t.at(d))
		}
	case r >= hangulBase && r < hangulBase+hangulCount:
		s := r - hangulBase
		w.starter(jamoL+s/hangulN, w.t.at(jamoL))
		w.starter(jamoV+s%hangulN/hangulT, w.t.at(jamoV))
		if s%hangulT != 0 {
			w.starter(jamoT+s%hangulT, w.t.at(jamoT))
		}
	default:
		w.ordered(r, p)
	}
}

func (w *writer) ordered(r rune, p *prop) {
	if p.rank == 0 {
		w.starter(r, p)
		return
	}
	w.marks = append(w.marks, mark{r, p.rank})
}

func (w *writer) starter(r rune, p *prop) {
	if len(w.marks) > 0 {
		w.flush()
	}
	w.emit(r, p)
}

// flush writes the waiting marks, stably sorted by combining class.
func (w *writer) flush() {
	sortMarks(w.marks)
	for _, m := range w.marks {
		w.emit(m.r, w.t.at(m.r))
	}
	w.marks = w.marks[:0]
}

func (w *writer) emit(r rune, p *prop) {
	if w.n.stripAccents && p.flags&propMark != 0 {
		return
	}
	if w.n.lowercase {
		if r == lowerDotted {
			w.dst = append(w.dst, "i\u0307"...)
			return
		}
		r += p.lower
	}
	w.dst = utf8.AppendRune(w.dst, r)
}

// sortMarks sorts by rank, keeping the order of equals. Insertion sort is
// right for the usual one to three; hostile text may have thousands in a row.
func sortMarks(m []mark) {
	if len(m) > 32 {
		slices.SortStableFunc(m, func(a, b mark) int { return int(a.rank) - int(b.rank) })
		return
	}
	for i := 1; i < len(m); i++ {
		for j := i; j > 0 && m[j].rank < m[j-1].rank; j-- {
			m[j], m[j-1] = m[j-1], m[j]
		}
	}
}
