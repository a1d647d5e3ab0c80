package wordpiece

import (
	"sort"
	"strings"
	"unicode/utf8"
)

// added is a token that is searched in the text before anything else.
type added struct {
	text           string
	id             int32
	lstrip, rstrip bool // takes the white space on this side with it
}

// addedSet finds added tokens: the leftmost, of these the longest.
type addedSet struct {
	byFirst map[byte][]added // by first byte, longest first
	firsts  string           // the keys of byFirst
}

// match is a found token and the bytes of the text it replaces; without one,
// start is the end of the text.
type match struct {
	start, end int
	id         int32
	ok         bool
}

func (s *addedSet) add(a added) {
	if s.byFirst == nil {
		s.byFirst = map[byte][]added{}
	}
	s.byFirst[a.text[0]] = append(s.byFirst[a.text[0]], a)
}

func (s *addedSet) done() {
	var keys []byte
	for k, list := range s.byFirst {
		sort.SliceStable(list, func(i, j int) bool { return len(list[i].text) > len(list[j].text) })
		keys = append(keys, k)
	}
	s.firsts = string(keys)
}

func (s *addedSet) empty() bool { return len(s.byFirst) == 0 }

func (s *addedSet) find(text string) match {
	none := match{start: len(text), end: len(text)}
	if s.empty() {
		return none
	}
	for i := 0; i < len(text); i++ {
		if len(s.firsts) == 1 {
			j := strings.IndexByte(text[i:], s.firsts[0])
			if j < 0 {
				return none
			}
			i += j
		}
		for _, a := range s.byFirst[text[i]] {
			if !strings.HasPrefix(text[i:], a.text) {
				continue
			}
			m := match{start: i, end: i + len(a.text), id: a.id, ok: true}
			if a.lstrip {
				m.start = trimSpaceEnd(text[:m.start])
			}
			if a.rstrip {
				m.end += spaceStart(text[m.end:])
			}
			return m
		}
	}
	return none
}

// trimSpaceEnd returns the length of s without white space at its end.
func trimSpaceEnd(s string) int {
	for len(s) > 0 {
		r, n := utf8.DecodeLastRuneInString(s)
		if table().at(r).flags&propSpace == 0 {
			break
		}
		s = s[:len(s)-n]
	}
	return len(s)
}

// spaceStart returns the bytes of white space at the start of s.
func spaceStart(s string) int {
	n := 0
	for n < len(s) {
		r, size := utf8.DecodeRuneInString(s[n:])
		if table().at(r).flags&propSpace == 0 {
			break
		}
		n += size
	}
	return n
}
