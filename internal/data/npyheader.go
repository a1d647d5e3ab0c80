package data

import (
	"encoding/binary"
	"fmt"
	"io"
	"strconv"
	"strings"

	"github.com/fewbit/fewbit/internal/tensor"
)

// npyMagic begins every .npy file
// (https://numpy.org/doc/stable/reference/generated/numpy.lib.format.html).
const npyMagic = "\x93NUMPY"

// Limits of an .npy header.
const (
	maxNPYHeader = 64 << 10      // bytes of the dictionary; numpy itself stops at 10,000
	maxRowBytes  = 1 << 30       // bytes of one sample of one array
	maxRows      = 1 << 24       // samples
	npyPrefixLen = len(npyMagic) // before the two version bytes
)

// npyHeader describes an array.
type npyHeader struct {
	dtype   tensor.DType
	descr   string // as numpy writes it: "<f4"
	dims    []int64
	dataAt  int64 // bytes before the elements
	rowLen  int64 // elements of one row
	rowSize int64 // bytes of one row
}

func (h *npyHeader) rows() int { return int(h.dims[0]) }

// dataSize returns the bytes of all elements.
func (h *npyHeader) dataSize() int64 { return h.dims[0] * h.rowSize }

func (h *npyHeader) String() string { return fmt.Sprintf("%v%v", h.dtype, h.dims) }

// npyTypes maps numpy's type strings, without the byte order, to ours.
var npyTypes = map[string]tensor.DType{
	"f2": tensor.Float16, "f4": tensor.Float32, "f8": tensor.Float64,
	"i1": tensor.Int8, "i2": tensor.Int16, "i4": tensor.Int32, "i8": tensor.Int64,
	"u1": tensor.Uint8, "u2": tensor.Uint16, "u4": tensor.Uint32, "u8": tensor.Uint64,
	"b1": tensor.Bool, "?": tensor.Bool,
}

// readNPYHeader reads the header of an .npy stream and stops at the first
// element. Errors do not name the file.
func readNPYHeader(r io.Reader) (*npyHeader, error) {
	var fixed [npyPrefixLen + 2]byte
	if _, err := io.ReadFull(r, fixed[:]); err != nil {
		return nil, fmt.Errorf("%w: it ends within the .npy magic", ErrFormat)
	}
	if string(fixed[:npyPrefixLen]) != npyMagic {
		return nil, fmt.Errorf("%w: it does not begin with the .npy magic", ErrFormat)
	}
	var sizeBytes []byte
	switch major := fixed[npyPrefixLen]; major {
	case 1:
		sizeBytes = make([]byte, 2)
	case 2, 3:
		sizeBytes = make([]byte, 4)
	default:
		return nil, fmt.Errorf("%w: .npy version %d.%d, expected 1 to 3", ErrUnsupported, major, fixed[npyPrefixLen+1])
	}
	if _, err := io.ReadFull(r, sizeBytes); err != nil {
		return nil, fmt.Errorf("%w: it ends within the .npy header", ErrFormat)
	}
	var n uint32
	if len(sizeBytes) == 2 {
		n = uint32(binary.LittleEndian.Uint16(sizeBytes))
	} else {
		n = binary.LittleEndian.Uint32(sizeBytes)
	}
	if n > maxNPYHeader {
		return nil, fmt.Errorf("%w: an .npy header of %d bytes, at most %d", ErrFormat, n, maxNPYHeader)
	}
	dict := make([]byte, n)
	if _, err := io.ReadFull(r, dict); err != nil {
		return nil, fmt.Errorf("%w: it ends within the .npy header of %d bytes", ErrFormat, n)
	}
	h, err := parseNPYDict(string(dict))
	if err != nil {
		return nil, err
	}
	h.dataAt = int64(len(fixed)+len(sizeBytes)) + int64(n)
	return h, nil
}

func parseNPYDict(s string) (*npyHeader, error) {
	d, err := parseDict(s)
	if err != nil {
		return nil, fmt.Errorf("%w: .npy header: %w", ErrFormat, err)
	}
	h := &npyHeader{}
	descr, ok := d["descr"].(string)
	if !ok {
		if d["descr"] != nil {
			return nil, fmt.Errorf("%w: a structured array (records); save plain arrays", ErrUnsupported)
		}
		return nil, fmt.Errorf(`%w: .npy header without "descr"`, ErrFormat)
	}
	h.descr = descr
	order, code := byte('|'), descr
	if descr != "" && strings.IndexByte("<>|=", descr[0]) >= 0 {
		order, code = descr[0], descr[1:]
	}
	if h.dtype, ok = npyTypes[code]; !ok {
		switch {
		case strings.HasPrefix(code, "O"):
			return nil, fmt.Errorf("%w: an array of Python objects (pickled), which is never loaded; save numbers, with all rows of one length", ErrUnsupported)
		case strings.HasPrefix(code, "U"), strings.HasPrefix(code, "S"):
			return nil, fmt.Errorf("%w: an array of strings (%.20q); save class numbers, or texts as .jsonl", ErrUnsupported, descr)
		}
		return nil, fmt.Errorf("%w: element type %.20q; save FP32, INT64 or another plain number type", ErrUnsupported, descr)
	}
	if order == '>' && h.dtype.Bits() > 8 {
		return nil, fmt.Errorf("%w: big-endian numbers (%q); save x.astype(%q)", ErrUnsupported, descr, "<"+code)
	}
	shape, ok := d["shape"].([]int64)
	if !ok {
		return nil, fmt.Errorf(`%w: .npy header without "shape"`, ErrFormat)
	}
	h.dims = shape
	elems, err := tensor.Elems(shape)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrFormat, err)
	}
	if len(shape) == 0 {
		return nil, fmt.Errorf("%w: a single number without a sample axis; the first axis must be the samples", ErrMismatch)
	}
	fortran, ok := d["fortran_order"].(bool)
	if !ok {
		return nil, fmt.Errorf(`%w: .npy header without "fortran_order"`, ErrFormat)
	}
	if fortran && !oneAxis(shape) {
		return nil, fmt.Errorf("%w: an array in Fortran order; save np.ascontiguousarray(x)", ErrUnsupported)
	}
	if shape[0] > maxRows {
		return nil, fmt.Errorf("%w: %d samples, at most %d", ErrTooLarge, shape[0], maxRows)
	}
	h.rowLen = 1
	if elems == 0 { // the product of the others may be anything
		h.rowLen, err = tensor.Elems(shape[1:])
		if err != nil {
			return nil, fmt.Errorf("%w: %w", ErrFormat, err)
		}
	} else {
		h.rowLen = elems / shape[0]
	}
	h.rowSize = h.dtype.Bytes(h.rowLen)
	if h.rowSize > maxRowBytes {
		return nil, fmt.Errorf("%w: one sample of %v%v has %d bytes, at most %d", ErrTooLarge, h.dtype, shape, h.rowSize, maxRowBytes)
	}
	return h, nil
}

// oneAxis reports whether at most one dimension differs from 1, when both
// orders of storage are the same.
func oneAxis(dims []int64) bool {
	n := 0
	for _, d := range dims {
		if d != 1 {
			n++
		}
	}
	return n <= 1
}

// parseDict parses the literal of a Python dictionary as numpy writes it:
// string keys; values that are strings, booleans or tuples of integers. Lists
// (structured types) are skipped and come out as []any.
func parseDict(s string) (map[string]any, error) {
	p := &literal{s: s}
	d := map[string]any{}
	if !p.take('{') {
		return nil, p.fail("expected {")
	}
	for !p.take('}') {
		key, err := p.str()
		if err != nil {
			return nil, err
		}
		if !p.take(':') {
			return nil, p.fail("expected :")
		}
		v, err := p.value(0)
		if err != nil {
			return nil, err
		}
		if _, ok := d[key]; ok {
			return nil, p.fail("the key " + strconv.Quote(key) + " stands twice")
		}
		d[key] = v
		if !p.take(',') && !p.at('}') {
			return nil, p.fail("expected , or }")
		}
	}
	p.space()
	if p.i != len(p.s) {
		return nil, p.fail("text after the dictionary")
	}
	return d, nil
}

// maxNesting bounds lists within lists in a header.
const maxNesting = 8

type literal struct {
	s string
	i int
}

func (p *literal) fail(what string) error { return fmt.Errorf("%s at byte %d", what, p.i) }

func (p *literal) space() {
	for p.i < len(p.s) && strings.IndexByte(" \t\r\n\x00", p.s[p.i]) >= 0 {
		p.i++
	}
}

func (p *literal) at(c byte) bool {
	p.space()
	return p.i < len(p.s) && p.s[p.i] == c
}

func (p *literal) take(c byte) bool {
	if p.at(c) {
		p.i++
		return true
	}
	return false
}

func (p *literal) str() (string, error) {
	p.space()
	if p.i >= len(p.s) || (p.s[p.i] != '\'' && p.s[p.i] != '"') {
		return "", p.fail("expected a string")
	}
	quote := p.s[p.i]
	p.i++
	end := strings.IndexByte(p.s[p.i:], quote)
	if end < 0 {
		return "", p.fail("unterminated string")
	}
	v := p.s[p.i : p.i+end]
	if strings.IndexByte(v, '\\') >= 0 {
		return "", p.fail("escaped string")
	}
	p.i += end + 1
	return v, nil
}

func (p *literal) value(depth int) (any, error) {
	p.space()
	rest := p.s[p.i:]
	switch {
	case rest == "":
		return nil, p.fail("unexpected end")
	case rest[0] == '\'' || rest[0] == '"':
		return p.str()
	case strings.HasPrefix(rest, "True"):
		p.i += len("True")
		return true, nil
	case strings.HasPrefix(rest, "False"):
		p.i += len("False")
		return false, nil
	case rest[0] == '(':
		return p.tuple(depth)
	case rest[0] == '[':
		return p.list(depth)
	}
	return nil, p.fail("unexpected value")
}

// tuple parses integers in parentheses; a tuple of anything else (within a
// structured type) comes out as []any.
func (p *literal) tuple(depth int) (any, error) {
	start := p.i
	p.i++
	dims := []int64{}
	for !p.take(')') {
		p.space()
		from := p.i
		for p.i < len(p.s) && (p.s[p.i] >= '0' && p.s[p.i] <= '9' || p.i == from && p.s[p.i] == '-') {
			p.i++
		}
		v, err := strconv.ParseInt(p.s[from:p.i], 10, 64)
		if err != nil {
			p.i = start
			return p.list(depth)
		}
		if p.i < len(p.s) && p.s[p.i] == 'L' { // Python 2
			p.i++
		}
		if len(dims) == tensor.MaxRank {
			return nil, p.fail("more than " + strconv.Itoa(tensor.MaxRank) + " dimensions")
		}
		dims = append(dims, v)
		if !p.take(',') && !p.at(')') {
			return nil, p.fail("expected , or )")
		}
	}
	return dims, nil
}

func (p *literal) list(depth int) (any, error) {
	if depth >= maxNesting {
		return nil, p.fail("nested too deeply")
	}
	end := byte(']')
	if p.s[p.i] == '(' {
		end = ')'
	}
	p.i++
	for !p.take(end) {
		if _, err := p.value(depth + 1); err != nil {
			return nil, err
		}
		if !p.take(',') && !p.at(end) {
			return nil, p.fail("expected , or the end of the list")
		}
	}
	return []any{}, nil
}
