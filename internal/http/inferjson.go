package http

import (
	"net/http"
	"strconv"
	"unsafe"

	"github.com/fewbit/fewbit/internal/tensor"
)

// inferRequest is one parsed inference request of the Open Inference Protocol.
// Its slices are reused, and its bytes lie in the request's body and arena.
type inferRequest struct {
	id      []byte
	timeout int64 // microseconds, 0 for none
	binary  bool  // binary_data_output
	inputs  []inferInput
	outputs []inferOutput
}

type inferInput struct {
	name   []byte
	shape  []int64
	dtype  tensor.DType
	binary int64 // binary_data_size, -1 when absent
	data   span  // of the JSON data, until it is parsed
	parsed bool
	tensor tensor.Tensor
}

type inferOutput struct {
	name   []byte
	binary int8 // -1 as the request says, 0 JSON, 1 binary
}

// span is a part of the body; end is 0 when it is absent.
type span struct{ start, end int }

func (r *inferRequest) reset() {
	r.id, r.timeout, r.binary = nil, 0, false
	r.inputs, r.outputs = r.inputs[:0], r.outputs[:0]
}

// input appends an input, reusing its memory.
func (r *inferRequest) input() *inferInput {
	if len(r.inputs) < cap(r.inputs) {
		r.inputs = r.inputs[:len(r.inputs)+1]
	} else {
		r.inputs = append(r.inputs, inferInput{})
	}
	in := &r.inputs[len(r.inputs)-1]
	*in = inferInput{shape: in.shape[:0], binary: -1}
	return in
}

// seen notices duplicate keys: one bit per known key.
type seen uint32

func (k *seen) once(bit uint, s *scanner, key string) error {
	if *k&(1<<bit) != 0 {
		return s.errf("duplicate key %q", key)
	}
	*k |= 1 << bit
	return nil
}

// parseInfer reads the JSON part of an inference request. Tensors given as
// JSON are complete afterwards; binary ones are read by attachBinary.
func parseInfer(body []byte, r *inferRequest, a *arena) error {
	s := &scanner{b: body}
	if len(body) == 0 {
		return badf("the body is empty: expected a JSON object with inputs")
	}
	var keys seen
	err := s.object(func(key []byte) error {
		switch view(key) {
		case "id":
			if err := keys.once(0, s, "id"); err != nil || s.null() {
				return err
			}
			id, err := s.str()
			if err != nil {
				return err
			}
			if len(id) > MaxRequestID {
				return badf("id has %d bytes, at most %d are allowed", len(id), MaxRequestID)
			}
			r.id = id
			return nil
		case "parameters":
			if err := keys.once(1, s, "parameters"); err != nil || s.null() {
				return err
			}
			return parseRequestParams(s, r)
		case "inputs":
			if err := keys.once(2, s, "inputs"); err != nil {
				return err
			}
			return s.array(func(n int) error {
				if n >= MaxTensors {
					return badf("more than %d inputs", MaxTensors)
				}
				return parseInput(s, r.input(), a)
			})
		case "outputs":
			if err := keys.once(3, s, "outputs"); err != nil || s.null() {
				return err
			}
			return s.array(func(n int) error {
				if n >= MaxTensors {
					return badf("more than %d outputs", MaxTensors)
				}
				return parseOutput(s, r)
			})
		}
		return s.skip()
	})
	if err != nil {
		return err
	}
	if err := s.end(); err != nil {
		return err
	}
	if len(r.inputs) == 0 {
		return badf("the request has no inputs")
	}
	for i := range r.inputs {
		for j := range r.inputs[:i] {
			if string(r.inputs[i].name) == string(r.inputs[j].name) {
				return badf("input %s is given twice", clip(r.inputs[i].name))
			}
		}
	}
	for i := range r.outputs {
		for j := range r.outputs[:i] {
			if string(r.outputs[i].name) == string(r.outputs[j].name) {
				return badf("output %s is requested twice", clip(r.outputs[i].name))
			}
		}
	}
	return nil
}

func parseRequestParams(s *scanner, r *inferRequest) error {
	var keys seen
	return s.object(func(key []byte) error {
		switch view(key) {
		case "timeout":
			if err := keys.once(0, s, "timeout"); err != nil {
				return err
			}
			v, err := s.int()
			if err != nil {
				return err
			}
			if v < 0 || v > MaxTimeoutMicros {
				return badf("parameter timeout is %d, expected microseconds between 0 and %d", v, MaxTimeoutMicros)
			}
			r.timeout = v
			return nil
		case "binary_data_output":
			if err := keys.once(1, s, "binary_data_output"); err != nil {
				return err
			}
			v, err := s.bool()
			r.binary = v
			return err
		}
		return s.skip()
	})
}

// unsupported refuses parameters that change the answer and are not
// implemented, rather than ignoring them.
func unsupported(key []byte) error {
	switch view(key) {
	case "shared_memory_region", "shared_memory_offset", "shared_memory_byte_size", "classification":
		return failf(http.StatusNotImplemented, "parameter %s is not supported", view(key))
	}
	return nil
}

func parseInput(s *scanner, in *inferInput, a *arena) error {
	var keys seen
	err := s.object(func(key []byte) error {
		switch view(key) {
		case "name":
			if err := keys.once(0, s, "name"); err != nil {
				return err
			}
			return parseTensorName(s, &in.name)
		case "shape":
			if err := keys.once(1, s, "shape"); err != nil {
				return err
			}
			return parseShape(s, in)
		case "datatype":
			if err := keys.once(2, s, "datatype"); err != nil {
				return err
			}
			name, err := s.str()
			if err != nil {
				return err
			}
			in.dtype = protocolType(name)
			if in.dtype == tensor.Undefined {
				return badf("unknown datatype %s, expected one of BOOL, UINT8..UINT64, INT8..INT64, FP16, BF16, FP32, FP64, BYTES", clip(name))
			}
			return nil
		case "parameters":
			if err := keys.once(3, s, "parameters"); err != nil || s.null() {
				return err
			}
			return parseInputParams(s, in)
		case "data":
			if err := keys.once(4, s, "data"); err != nil || s.null() {
				return err
			}
			in.data.start = s.i
			if keys&(1<<1|1<<2) == 1<<1|1<<2 { // shape and datatype are known: one pass is enough
				if err := in.parseData(s, a); err != nil {
					return err
				}
				in.parsed = true
			} else if err := s.skip(); err != nil {
				return err
			}
			in.data.end = s.i
			return nil
		}
		return s.skip()
	})
	if err != nil {
		return err
	}
	for bit, key := range []string{"name", "shape", "datatype"} {
		if keys&(1<<bit) == 0 {
			return badf("an input has no %q", key)
		}
	}
	switch {
	case in.data.end != 0 && in.binary >= 0:
		return badf("input %s has both data and binary_data_size", clip(in.name))
	case in.data.end == 0 && in.binary < 0:
		return badf("input %s has neither data nor binary_data_size", clip(in.name))
	case in.data.end != 0 && !in.parsed:
		again := &scanner{b: s.b[:in.data.end], i: in.data.start}
		return in.parseData(again, a)
	}
	return nil
}

func parseTensorName(s *scanner, name *[]byte) error {
	v, err := s.str()
	if err != nil {
		return err
	}
	if len(v) == 0 || len(v) > MaxTensorName {
		return badf("a tensor's name has %d bytes, expected 1 to %d", len(v), MaxTensorName)
	}
	*name = v
	return nil
}

func parseShape(s *scanner, in *inferInput) error {
	return s.array(func(n int) error {
		if n >= tensor.MaxRank {
			return badf("a shape has more than %d dimensions", tensor.MaxRank)
		}
		d, err := s.int()
		if err != nil {
			return err
		}
		if d < 0 {
			return badf("a shape has the negative dimension %d", d)
		}
		in.shape = append(in.shape, d)
		return nil
	})
}

func parseInputParams(s *scanner, in *inferInput) error {
	var keys seen
	return s.object(func(key []byte) error {
		if view(key) != "binary_data_size" {
			if err := unsupported(key); err != nil {
				return err
			}
			return s.skip()
		}
		if err := keys.once(0, s, "binary_data_size"); err != nil {
			return err
		}
		v, err := s.int()
		if err != nil {
			return err
		}
		if v < 0 {
			return badf("binary_data_size is %d, expected 0 or more", v)
		}
		in.binary = v
		return nil
	})
}

func parseOutput(s *scanner, r *inferRequest) error {
	out := inferOutput{binary: -1}
	var keys seen
	err := s.object(func(key []byte) error {
		switch view(key) {
		case "name":
			if err := keys.once(0, s, "name"); err != nil {
				return err
			}
			return parseTensorName(s, &out.name)
		case "parameters":
			if err := keys.once(1, s, "parameters"); err != nil || s.null() {
				return err
			}
			var params seen
			return s.object(func(key []byte) error {
				if view(key) != "binary_data" {
					if err := unsupported(key); err != nil {
						return err
					}
					return s.skip()
				}
				if err := params.once(0, s, "binary_data"); err != nil {
					return err
				}
				v, err := s.bool()
				if out.binary = 0; v {
					out.binary = 1
				}
				return err
			})
		}
		return s.skip()
	})
	if err != nil {
		return err
	}
	if out.name == nil {
		return badf("a requested output has no \"name\"")
	}
	r.outputs = append(r.outputs, out)
	return nil
}

// protocolType maps a datatype of the Open Inference Protocol to ONNX's.
func protocolType(name []byte) tensor.DType {
	switch string(name) {
	case "FP32":
		return tensor.Float32
	case "INT64":
		return tensor.Int64
	case "UINT8":
		return tensor.Uint8
	case "INT8":
		return tensor.Int8
	case "INT32":
		return tensor.Int32
	case "BYTES":
		return tensor.String
	case "BOOL":
		return tensor.Bool
	case "UINT16":
		return tensor.Uint16
	case "UINT32":
		return tensor.Uint32
	case "UINT64":
		return tensor.Uint64
	case "INT16":
		return tensor.Int16
	case "FP16":
		return tensor.Float16
	case "BF16":
		return tensor.BFloat16
	case "FP64":
		return tensor.Float64
	}
	return tensor.Undefined
}

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
