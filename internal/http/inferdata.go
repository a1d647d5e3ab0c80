package http

import (
	"strconv"
	"unsafe"

	"github.com/fewbit/fewbit/internal/tensor"
)

// sliceBytes is what an element of BYTES takes beside its text.
const sliceBytes = int64(unsafe.Sizeof([]byte(nil)))

// parseData reads the JSON data of an input, nested or flat, into in.tensor.
func (in *inferInput) parseData(s *scanner, a *arena) error {
	n, err := tensor.Elems(in.shape)
	if err != nil {
		return badf("an input's shape is refused: %v", err)
	}
	// Every element takes at least one byte and a separator, so a short body
	// cannot make a large shape allocate.
	if n > int64(len(s.b)-s.i)/2+1 {
		return badf("shape %v has %d elements, the body is too short for them", in.shape, n)
	}
	in.tensor = tensor.Tensor{Type: in.dtype, Dims: in.shape}
	d := dataReader{s: s, shape: in.shape, n: int(n)}
	switch in.dtype {
	case tensor.Float16, tensor.BFloat16:
		return badf("datatype %v has no JSON form: send it as binary data", in.dtype)
	case tensor.String:
		if err := a.take(n * sliceBytes); err != nil {
			return err
		}
		in.tensor.Strings = make([][]byte, n)
		return d.read(func(i int) error {
			s.ws()
			from := s.i
			v, err := s.str()
			if err != nil {
				return err
			}
			in.tensor.Strings[i] = v
			if s.i-from != len(v)+len(`""`) { // its escapes made it a copy
				return a.take(int64(cap(v)))
			}
			return nil
		})
	}
	if err := a.take(in.dtype.Bytes(n)); err != nil {
		return err
	}
	in.tensor.Data = a.bytes(int(in.dtype.Bytes(n)))
	t := &in.tensor
	switch in.dtype {
	case tensor.Float32:
		v := tensor.View[float32](t)
		return d.read(func(i int) error {
			f, err := s.float(32)
			v[i] = float32(f)
			return err
		})
	case tensor.Float64:
		v := tensor.View[float64](t)
		return d.read(func(i int) (err error) {
			v[i], err = s.float(64)
			return err
		})
	case tensor.Bool:
		return d.read(func(i int) error {
			b, err := s.bool()
			if in.tensor.Data[i] = 0; b {
				in.tensor.Data[i] = 1
			}
			return err
		})
	case tensor.Int8:
		return readInts(&d, tensor.View[int8](t), 8)
	case tensor.Int16:
		return readInts(&d, tensor.View[int16](t), 16)
	case tensor.Int32:
		return readInts(&d, tensor.View[int32](t), 32)
	case tensor.Int64:
		return readInts(&d, tensor.View[int64](t), 64)
	case tensor.Uint8:
		return readUints(&d, tensor.View[uint8](t), 8)
	case tensor.Uint16:
		return readUints(&d, tensor.View[uint16](t), 16)
	case tensor.Uint32:
		return readUints(&d, tensor.View[uint32](t), 32)
	case tensor.Uint64:
		return readUints(&d, tensor.View[uint64](t), 64)
	}
	return badf("datatype %v is not supported", in.dtype)
}

// float reads a number as a float of the given bits. NaN, infinity and
// numbers past the type's range are refused.
func (s *scanner) float(bits int) (float64, error) {
	s.ws()
	v, next, ok := parseFloat(s.b, s.i, bits)
	if !ok {
		if end := numberEnd(s.b, s.i); end > 0 {
			return 0, s.errf("%s does not fit FP%d", clip(s.b[s.i:end]), bits)
		}
		return 0, s.errf("expected a number, got %s", s.what())
	}
	s.i = next
	return v, nil
}

func readInts[T ~int8 | ~int16 | ~int32 | ~int64](d *dataReader, v []T, bits int) error {
	s := d.s
	return d.read(func(i int) error {
		text, err := s.number()
		if err != nil {
			return err
		}
		x, ok := smallInt(text)
		if !ok {
			if x, err = strconv.ParseInt(view(text), 10, bits); err != nil {
				return s.errf("%s is not an integer of %d bits", clip(text), bits)
			}
		}
		if v[i] = T(x); int64(v[i]) != x {
			return s.errf("%s is not an integer of %d bits", clip(text), bits)
		}
		return nil
	})
}

func readUints[T ~uint8 | ~uint16 | ~uint32 | ~uint64](d *dataReader, v []T, bits int) error {
	s := d.s
	return d.read(func(i int) error {
		text, err := s.number()
		if err != nil {
			return err
		}
		x, err := strconv.ParseUint(view(text), 10, bits)
		if err != nil {
			return s.errf("%s is not an unsigned integer of %d bits", clip(text), bits)
		}
		v[i] = T(x)
		return nil
	})
}

// smallInt parses integers of up to 18 characters.
func smallInt(b []byte) (int64, bool) {
	neg := b[0] == '-'
	if neg {
		b = b[1:]
	}
	if len(b) > 17 {
		return 0, false
	}
	var v int64
	for _, c := range b {
		if c-'0' > 9 {
			return 0, false
		}
		v = v*10 + int64(c-'0')
	}
	if neg {
		v = -v
	}
	return v, true
}

// dataReader walks flat or nested JSON arrays whose leaves are n elements in
// row-major order. Nested arrays must have exactly the shape's form.
type dataReader struct {
	s     *scanner
	shape []int64
	n     int
}

// read calls elem for elements 0..n-1 in order.
func (d *dataReader) read(elem func(i int) error) error {
	s := d.s
	if s.ws() != '[' {
		return s.errf("data must be an array, got %s", s.what())
	}
	// leaf is the depth at which elements stand: 1 for flat data, the rank for
	// nested data. The first element decides.
	rank, leaf := max(len(d.shape), 1), 0
	var count [tensor.MaxRank + 1]int64 // elements or arrays seen at each depth
	depth, done, value := 0, 0, false   // value: an element or array has just ended
	for {
		c := s.ws()
		switch {
		case c == ']' && depth > 0 && (value || count[depth] == 0):
			if leaf == 0 { // an empty array: only right for a dimension of 0
				if depth != 1 && d.shape[depth-1] != 0 {
					return s.errf("data is nested unlike shape %v", d.shape)
				}
			} else if leaf != 1 && count[depth] != d.shape[depth-1] {
				return s.errf("data has %d elements in dimension %d of shape %v", count[depth], depth-1, d.shape)
			}
			s.i++
			if depth--; depth == 0 {
				if done != d.n {
					return badf("data has %d elements, shape %v has %d", done, d.shape, d.n)
				}
				return nil
			}
			value = true
			count[depth]++
			continue
		case c == ',' && value:
			s.i++
			value = false
			continue
		case value || c == ',' || c == ']':
			return s.errf("expected ',' or ']' or an element, got %s", s.what())
		case c == '[':
			if depth++; depth > rank || leaf != 0 && depth > leaf {
				return s.errf("data is nested deeper than shape %v", d.shape)
			}
			s.i++
			count[depth] = 0
			continue
		}
		if leaf == 0 {
			if depth != 1 && depth != rank {
				return s.errf("data is nested unlike shape %v", d.shape)
			}
			leaf = depth
		}
		if depth != leaf {
			return s.errf("data is nested unlike shape %v", d.shape)
		}
		if done >= d.n {
			return badf("data has more elements than the %d of shape %v", d.n, d.shape)
		}
		if err := elem(done); err != nil {
			return err
		}
		done++
		count[depth]++
		value = true
	}
}
