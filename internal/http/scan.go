package http

import (
	"bytes"
	"math"
	"strconv"
	"unicode/utf16"
	"unicode/utf8"
	"unsafe"
)

// scanner reads JSON (RFC 8259) from a byte slice without building a tree.
// Every method leaves i after what it read and returns a 400 that names the
// offset otherwise.
type scanner struct {
	b []byte
	i int
	// maxCopy bounds a string whose escapes make a copy of it necessary; 0 is no bound.
	maxCopy int
	// passed, when set, is told how far long strings have been read.
	passed func(i int)
}

func (s *scanner) errf(format string, args ...any) error {
	return badf("bad JSON at byte %d: "+format, append([]any{s.i}, args...)...)
}

// ws skips white space and returns the byte it stops at, 0 at the end.
func (s *scanner) ws() byte {
	for s.i < len(s.b) {
		switch c := s.b[s.i]; c {
		case ' ', '\n', '\t', '\r':
			s.i++
		default:
			return c
		}
	}
	return 0
}

// what describes the next byte, for errors.
func (s *scanner) what() string {
	if s.i >= len(s.b) {
		return "the end of the body"
	}
	return strconv.QuoteRune(rune(s.b[s.i]))
}

func (s *scanner) expect(c byte) error {
	if s.ws() != c || s.i >= len(s.b) {
		return s.errf("expected %q, got %s", string(c), s.what())
	}
	s.i++
	return nil
}

// end returns an error unless only white space is left.
func (s *scanner) end() error {
	if s.ws(); s.i < len(s.b) {
		return s.errf("expected the end of the body, got %s", s.what())
	}
	return nil
}

// null reads null when it is next.
func (s *scanner) null() bool {
	if s.ws() == 'n' && bytes.HasPrefix(s.b[s.i:], []byte("null")) {
		s.i += 4
		return true
	}
	return false
}

func (s *scanner) bool() (bool, error) {
	switch s.ws() {
	case 't':
		if bytes.HasPrefix(s.b[s.i:], []byte("true")) {
			s.i += 4
			return true, nil
		}
	case 'f':
		if bytes.HasPrefix(s.b[s.i:], []byte("false")) {
			s.i += 5
			return false, nil
		}
	}
	return false, s.errf("expected true or false, got %s", s.what())
}

// str reads a string. The result shares memory with the body unless the string
// has escapes.
func (s *scanner) str() ([]byte, error) {
	if s.ws() != '"' {
		return nil, s.errf("expected a string, got %s", s.what())
	}
	start := s.i + 1
	for i := start; i < len(s.b); i++ {
		switch c := s.b[i]; {
		case c == '"':
			v := s.b[start:i]
			if !utf8.Valid(v) {
				return nil, s.errf("the string is not UTF-8")
			}
			s.i = i + 1
			return v, nil
		case c == '\\':
			return s.escaped(start, i)
		case c < 0x20:
			s.i = i
			return nil, s.errf("control character in a string")
		}
	}
	s.i = len(s.b)
	return nil, s.errf("the string does not end")
}

// escaped reads the rest of a string whose first backslash is at i.
func (s *scanner) escaped(start, i int) ([]byte, error) {
	out := append(make([]byte, 0, i-start+8), s.b[start:i]...)
	for i < len(s.b) {
		c := s.b[i]
		switch {
		case c == '"':
			if !utf8.Valid(out) {
				return nil, s.errf("the string is not UTF-8")
			}
			s.i = i + 1
			return out, nil
		case c < 0x20:
			s.i = i
			return nil, s.errf("control character in a string")
		case c != '\\':
			out = append(out, c)
			i++
			continue
		}
		r, n := escapeAt(s.b[i:])
		if n == 0 {
			s.i = i
			return nil, s.badEscape()
		}
		if s.maxCopy > 0 && len(out) > s.maxCopy {
			s.i = i
			return nil, s.errf("a string with escapes is longer than %d bytes", s.maxCopy)
		}
		out = utf8.AppendRune(out, r)
		i += n
	}
	s.i = len(s.b)
	return nil, s.errf("the string does not end")
}

// badEscape words the escape at i, which is none.
func (s *scanner) badEscape() error {
	switch {
	case s.i+1 >= len(s.b):
		s.i = len(s.b)
		return s.errf("the string does not end")
	case s.b[s.i+1] == 'u':
		return s.errf("bad \\u escape")
	}
	return s.errf("bad escape \\%c", s.b[s.i+1])
}

// maxEscape is the longest escape: two halves of a surrogate pair.
const maxEscape = 12

// escapeAt reads the escape that b begins with, of n bytes; 0 when it is none.
func escapeAt(b []byte) (r rune, n int) {
	if len(b) < 2 {
		return 0, 0
	}
	switch e := b[1]; e {
	case '"', '\\', '/':
		return rune(e), 2
	case 'b':
		return '\b', 2
	case 'f':
		return '\f', 2
	case 'n':
		return '\n', 2
	case 'r':
		return '\r', 2
	case 't':
		return '\t', 2
	case 'u':
		r, n = hex4(b[2:]), 6
		if utf16.IsSurrogate(r) {
			low := rune(-1)
			if len(b) >= maxEscape && b[6] == '\\' && b[7] == 'u' {
				low = hex4(b[8:])
			}
			if r, n = utf16.DecodeRune(r, low), maxEscape; r == utf8.RuneError {
				return 0, 0
			}
		}
		if r < 0 {
			return 0, 0
		}
		return r, n
	}
	return 0, 0
}

// raw skips a string and returns where its text lies, escapes and all. It accepts what
// str accepts, and copies nothing.
func (s *scanner) raw() (from, to int, escapes bool, err error) {
	const window = 4 << 20
	if s.ws() != '"' {
		return 0, 0, false, s.errf("expected a string, got %s", s.what())
	}
	from = s.i + 1
	for i := from; i < len(s.b); {
		for end := min(i+window, len(s.b)); i < end; {
			switch c := s.b[i]; {
			case c == '"':
				s.i = i + 1
				return from, i, escapes, nil
			case c == '\\':
				escapes = true
				_, n := escapeAt(s.b[i:])
				if n == 0 {
					s.i = i
					return 0, 0, false, s.badEscape()
				}
				i += n
			case c < 0x20:
				s.i = i
				return 0, 0, false, s.errf("control character in a string")
			case c < utf8.RuneSelf:
				i++
			default:
				r, n := utf8.DecodeRune(s.b[i:])
				if r == utf8.RuneError && n < 2 {
					s.i = i
					return 0, 0, false, s.errf("the string is not UTF-8")
				}
				i += n
			}
		}
		if s.passed != nil {
			s.passed(i)
		}
	}
	s.i = len(s.b)
	return 0, 0, false, s.errf("the string does not end")
}

// hex4 decodes four hexadecimal digits, -1 when they are not.
func hex4(b []byte) rune {
	if len(b) < 4 {
		return -1
	}
	var r rune
	for _, c := range b[:4] {
		switch {
		case '0' <= c && c <= '9':
			c -= '0'
		case 'a' <= c && c <= 'f':
			c -= 'a' - 10
		case 'A' <= c && c <= 'F':
			c -= 'A' - 10
		default:
			return -1
		}
		r = r<<4 | rune(c)
	}
	return r
}

// number reads a number and returns its text.
func (s *scanner) number() ([]byte, error) {
	s.ws()
	start := s.i
	i := numberEnd(s.b, start)
	if i < 0 {
		return nil, s.errf("expected a number, got %s", s.what())
	}
	s.i = i
	return s.b[start:i], nil
}

// numberEnd returns the index after the JSON number at b[i:], -1 when there is
// none: -?(0|[1-9][0-9]*)(\.[0-9]+)?([eE][+-]?[0-9]+)?
func numberEnd(b []byte, i int) int {
	digits := func() bool {
		from := i
		for i < len(b) && b[i]-'0' <= 9 {
			i++
		}
		return i > from
	}
	if i < len(b) && b[i] == '-' {
		i++
	}
	if i < len(b) && b[i] == '0' {
		i++
		if i < len(b) && b[i]-'0' <= 9 {
			return -1
		}
	} else if !digits() {
		return -1
	}
	if i < len(b) && b[i] == '.' {
		i++
		if !digits() {
			return -1
		}
	}
	if i < len(b) && b[i]|0x20 == 'e' {
		i++
		if i < len(b) && (b[i] == '+' || b[i] == '-') {
			i++
		}
		if !digits() {
			return -1
		}
	}
	return i
}

// int reads an integer that fits int64.
func (s *scanner) int() (int64, error) {
	at := s.ws()
	start := s.i
	text, err := s.number()
	if err != nil {
		if at == '"' || at == '{' || at == '[' || at == 't' || at == 'f' || at == 'n' {
			return 0, s.errf("expected an integer, got %s", s.what())
		}
		return 0, err
	}
	v, err := strconv.ParseInt(view(text), 10, 64)
	if err != nil {
		s.i = start
		return 0, s.errf("expected an integer within 64 bits, got %s", clip(text))
	}
	return v, nil
}

// object calls f with every key; f reads the value. Duplicate keys that f
// wants to refuse are f's to notice: it gets each in turn.
func (s *scanner) object(f func(key []byte) error) error {
	if err := s.expect('{'); err != nil {
		return err
	}
	if s.ws() == '}' {
		s.i++
		return nil
	}
	for {
		key, err := s.str()
		if err != nil {
			return err
		}
		if err := s.expect(':'); err != nil {
			return err
		}
		if err := f(key); err != nil {
			return err
		}
		switch s.ws() {
		case ',':
			s.i++
		case '}':
			s.i++
			return nil
		default:
			return s.errf("expected ',' or '}', got %s", s.what())
		}
	}
}

// array calls f before every element; f reads it.
func (s *scanner) array(f func(n int) error) error {
	if err := s.expect('['); err != nil {
		return err
	}
	if s.ws() == ']' {
		s.i++
		return nil
	}
	for n := 0; ; n++ {
		if err := f(n); err != nil {
			return err
		}
		switch s.ws() {
		case ',':
			s.i++
		case ']':
			s.i++
			return nil
		default:
			return s.errf("expected ',' or ']', got %s", s.what())
		}
	}
}

// skip reads one value of any kind, checking its grammar. It does not recurse:
// the kinds of the open containers are bits of one word.
func (s *scanner) skip() error {
	var open uint64 // bit 0 is the innermost container: 1 object, 0 array
	depth := 0
	for {
		// One value, or the start of a container.
		switch c := s.ws(); c {
		case '{', '[':
			if depth++; depth > MaxJSONDepth {
				return s.errf("nested deeper than %d", MaxJSONDepth)
			}
			s.i++
			open <<= 1
			if c == '{' {
				open |= 1
			}
			if next := s.ws(); next == c+2 { // '}' and ']' are two after their opening
				break
			}
			if c == '{' {
				if err := s.key(); err != nil {
					return err
				}
			}
			continue
		case '"':
			if _, _, _, err := s.raw(); err != nil {
				return err
			}
		case 't', 'f':
			if _, err := s.bool(); err != nil {
				return err
			}
		case 'n':
			if !s.null() {
				return s.errf("expected a value, got %s", s.what())
			}
		default:
			if _, err := s.number(); err != nil {
				return s.errf("expected a value, got %s", s.what())
			}
		}
		// After a value: close containers, then go on with the next element.
		for {
			if depth == 0 {
				return nil
			}
			object := open&1 == 1
			c := s.ws()
			if object && c == '}' || !object && c == ']' {
				s.i++
				depth--
				open >>= 1
				continue
			}
			if c != ',' {
				return s.errf("expected ',' or the end of the container, got %s", s.what())
			}
			s.i++
			if object {
				if err := s.key(); err != nil {
					return err
				}
			}
			break
		}
	}
}

func (s *scanner) key() error {
	if _, err := s.str(); err != nil {
		return err
	}
	return s.expect(':')
}

// view returns b as a string without copying; the string must not outlive b.
func view(b []byte) string { return unsafe.String(unsafe.SliceData(b), len(b)) }

// clip shortens text from a client for an error message.
func clip(b []byte) string {
	const most = 64
	if len(b) > most {
		return strconv.Quote(string(b[:most])) + "..."
	}
	return strconv.Quote(string(b))
}

// Powers of ten that a float64 holds exactly.
var pow10 = [...]float64{1e0, 1e1, 1e2, 1e3, 1e4, 1e5, 1e6, 1e7, 1e8, 1e9, 1e10, 1e11,
	1e12, 1e13, 1e14, 1e15, 1e16, 1e17, 1e18, 1e19, 1e20, 1e21, 1e22}

// parseFloat reads the JSON number at b[i:] and returns it rounded to the
// nearest number of the given bits (32 or 64), with the index after it.
// The result equals strconv.ParseFloat's bit for bit.
//
// The fast path (Clinger 1990): a mantissa below 2^53 and a power of ten up to
// 10^22 are both exact, so one multiplication or division rounds correctly to
// float64. Rounding that again to float32 is right unless the float64 lies
// exactly between two float32 (its low 29 bits are 1 followed by zeros) or the
// result is subnormal; those go to strconv, like every other number.
func parseFloat(b []byte, i, bits int) (v float64, next int, ok bool) {
	start := i
	neg := i < len(b) && b[i] == '-'
	if neg {
		i++
	}
	from := i
	var m uint64
	for i < len(b) && b[i]-'0' <= 9 {
		m = m*10 + uint64(b[i]-'0') // a wrap is noticed by the digit count
		i++
	}
	digits := i - from
	if digits == 0 || digits > 1 && b[from] == '0' {
		return 0, start, false
	}
	exp := 0
	if i < len(b) && b[i] == '.' {
		i++
		from = i
		for i < len(b) && b[i]-'0' <= 9 {
			m = m*10 + uint64(b[i]-'0')
			i++
		}
		if i == from {
			return 0, start, false
		}
		exp = from - i
		digits += i - from
	}
	slow := digits > 19
	if i < len(b) && b[i]|0x20 == 'e' {
		i++
		eneg := false
		if i < len(b) && (b[i] == '+' || b[i] == '-') {
			eneg = b[i] == '-'
			i++
		}
		from = i
		e := 0
		for i < len(b) && b[i]-'0' <= 9 {
			if e < 10000 {
				e = e*10 + int(b[i]-'0')
			}
			i++
		}
		if i == from {
			return 0, start, false
		}
		if eneg {
			e = -e
		}
		exp += e
	}
	if !slow && m < 1<<53 && exp >= -22 && exp <= 22 {
		v = float64(m)
		if exp < 0 {
			v /= pow10[-exp]
		} else if exp > 0 {
			v *= pow10[exp]
		}
		if bits == 64 || v == 0 || v >= 0x1p-126 && v < 0x1p127 && math.Float64bits(v)&(1<<29-1) != 1<<28 {
			if bits == 32 {
				v = float64(float32(v))
			}
			if neg {
				v = -v
			}
			return v, i, true
		}
	}
	v, err := strconv.ParseFloat(view(b[start:i]), bits)
	if err != nil {
		return 0, start, false // out of range: the grammar was checked above
	}
	return v, i, true
}
