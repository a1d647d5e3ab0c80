package http

import (
	"net/http"

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
