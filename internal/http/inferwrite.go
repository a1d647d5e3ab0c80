package http

import (
	"encoding/binary"
	"math"
	"strconv"
	"unicode/utf8"

	"github.com/fewbit/fewbit/internal/tensor"
)

// inferAnswer is an encoded answer: the JSON part, then the binary tensors.
type inferAnswer struct {
	json  []byte
	parts [][]byte // in the order of the outputs; they may lie in engine memory
	size  int      // of all parts
}

// outputRef is one output to write.
type outputRef struct {
	name   string
	tensor *tensor.Tensor
	binary bool
}

// encode writes the answer's JSON into buf (its contents are replaced) and
// collects the binary tensors, which are not copied.
func encodeAnswer(buf []byte, model, version string, id []byte, outs []outputRef) (inferAnswer, error) {
	ans := inferAnswer{}
	b := append(buf[:0], `{"model_name":`...)
	b = appendString(b, model)
	b = append(b, `,"model_version":`...)
	b = appendString(b, version)
	if id != nil {
		b = append(b, `,"id":`...)
		b = appendString(b, view(id))
	}
	b = append(b, `,"outputs":[`...)
	for i, o := range outs {
		if i > 0 {
			b = append(b, ',')
		}
		b = append(b, `{"name":`...)
		b = appendString(b, o.name)
		b = append(b, `,"datatype":"`...)
		b = append(b, o.tensor.Type.String()...)
		b = append(b, `","shape":[`...)
		for j, d := range o.tensor.Dims {
			if j > 0 {
				b = append(b, ',')
			}
			b = strconv.AppendInt(b, d, 10)
		}
		b = append(b, ']')
		if o.binary {
			part := binaryTensor(o.tensor)
			b = append(b, `,"parameters":{"binary_data_size":`...)
			b = strconv.AppendInt(b, int64(len(part)), 10)
			b = append(b, '}')
			ans.parts = append(ans.parts, part)
			ans.size += len(part)
		} else {
			b = append(b, `,"data":[`...)
			var err error
			if b, err = appendData(b, o.name, o.tensor); err != nil {
				return ans, err
			}
			b = append(b, ']')
		}
		b = append(b, '}')
	}
	ans.json = append(b, "]}"...)
	return ans, nil
}

// binaryTensor returns the little-endian bytes of t.
func binaryTensor(t *tensor.Tensor) []byte {
	if t.Type != tensor.String {
		return t.Data
	}
	n := 0
	for _, s := range t.Strings {
		n += 4 + len(s)
	}
	b := make([]byte, 0, n)
	for _, s := range t.Strings {
		b = binary.LittleEndian.AppendUint32(b, uint32(len(s)))
		b = append(b, s...)
	}
	return b
}

// appendData writes the elements of t, flat. JSON has no NaN and no infinity:
// they are written as null.
func appendData(b []byte, name string, t *tensor.Tensor) ([]byte, error) {
	switch t.Type {
	case tensor.Float32:
		for i, v := range tensor.View[float32](t) {
			b = appendFloat(comma(b, i), float64(v), 32)
		}
	case tensor.Float64:
		for i, v := range tensor.View[float64](t) {
			b = appendFloat(comma(b, i), v, 64)
		}
	case tensor.Bool:
		for i, v := range t.Data {
			b = strconv.AppendBool(comma(b, i), v != 0)
		}
	case tensor.String:
		for i, s := range t.Strings {
			if !utf8.Valid(s) {
				return b, badf("output %q holds bytes that are not UTF-8: ask for it with binary_data", name)
			}
			b = appendString(comma(b, i), view(s))
		}
	case tensor.Int8:
		b = appendInts(b, tensor.View[int8](t))
	case tensor.Int16:
		b = appendInts(b, tensor.View[int16](t))
	case tensor.Int32:
		b = appendInts(b, tensor.View[int32](t))
	case tensor.Int64:
		b = appendInts(b, tensor.View[int64](t))
	case tensor.Uint8:
		b = appendUints(b, tensor.View[uint8](t))
	case tensor.Uint16:
		b = appendUints(b, tensor.View[uint16](t))
	case tensor.Uint32:
		b = appendUints(b, tensor.View[uint32](t))
	case tensor.Uint64:
		b = appendUints(b, tensor.View[uint64](t))
	default:
		return b, badf("output %q is %v, which has no JSON form: ask for it with binary_data", name, t.Type)
	}
	return b, nil
}

func comma(b []byte, i int) []byte {
	if i > 0 {
		return append(b, ',')
	}
	return b
}

func appendInts[T ~int8 | ~int16 | ~int32 | ~int64](b []byte, v []T) []byte {
	for i, x := range v {
		b = strconv.AppendInt(comma(b, i), int64(x), 10)
	}
	return b
}

func appendUints[T ~uint8 | ~uint16 | ~uint32 | ~uint64](b []byte, v []T) []byte {
	for i, x := range v {
		b = strconv.AppendUint(comma(b, i), uint64(x), 10)
	}
	return b
}

func appendFloat(b []byte, v float64, bits int) []byte {
	if math.IsNaN(v) || math.IsInf(v, 0) {
		return append(b, "null"...)
	}
	return strconv.AppendFloat(b, v, 'g', -1, bits)
}

// appendString writes s as a JSON string. s is valid UTF-8 or invalid bytes
// become U+FFFD.
func appendString(b []byte, s string) []byte {
	const hex = "0123456789abcdef"
	b = append(b, '"')
	for i := 0; i < len(s); i++ {
		switch c := s[i]; {
		case c == '"' || c == '\\':
			b = append(b, '\\', c)
		case c < 0x20 || c == 0x7f || c == '<' || c == '>' || c == '&':
			b = append(b, '\\', 'u', '0', '0', hex[c>>4], hex[c&15])
		case c < utf8.RuneSelf:
			b = append(b, c)
		default:
			r, n := utf8.DecodeRuneInString(s[i:])
			b = utf8.AppendRune(b, r)
			i += n - 1
		}
	}
	return append(b, '"')
}
