package http

import (
	"encoding/binary"
	"errors"
	"net/http"
	"strconv"
	"unsafe"

	"github.com/fewbit/fewbit/internal/engine"
	"github.com/fewbit/fewbit/internal/tensor"
)

// headerLength is the header of the binary tensor extension: the bytes of
// JSON in front of the tensors.
const headerLength = "Inference-Header-Content-Length"

// jsonLength reads the header: -1 when it is absent.
func jsonLength(h http.Header) (int64, error) {
	values := h[headerLength]
	if len(values) == 0 {
		return -1, nil
	}
	if len(values) > 1 {
		return 0, badf("%s is given %d times", headerLength, len(values))
	}
	n, ok := parseHeaderLength(values[0])
	if !ok {
		return 0, badf("%s is %s, expected the bytes of JSON as a decimal number", headerLength, clip([]byte(values[0])))
	}
	return n, nil
}

// parseHeaderLength accepts decimal digits only: no sign, no space.
func parseHeaderLength(s string) (int64, bool) {
	if s == "" || len(s) > 18 {
		return 0, false
	}
	for i := range len(s) {
		if s[i]-'0' > 9 {
			return 0, false
		}
	}
	n, err := strconv.ParseInt(s, 10, 64)
	return n, err == nil
}

// attachBinary gives the inputs with binary_data_size their bytes, which follow
// each other in data in the order of the JSON. All of data must be used.
func attachBinary(r *inferRequest, data []byte, a *arena) error {
	for i := range r.inputs {
		in := &r.inputs[i]
		if in.binary < 0 {
			continue
		}
		if in.binary > int64(len(data)) {
			return badf("input %s: binary_data_size is %d, only %d bytes are left in the body", clip(in.name), in.binary, len(data))
		}
		if err := in.setBytes(data[:in.binary], a); err != nil {
			return err
		}
		data = data[in.binary:]
	}
	if len(data) > 0 {
		return badf("%d bytes are left in the body after the binary tensors", len(data))
	}
	return nil
}

// setBytes makes the input's tensor from its little-endian bytes.
func (in *inferInput) setBytes(b []byte, a *arena) error {
	n, err := tensor.Elems(in.shape)
	if err != nil {
		return badf("input %s: its shape is refused: %v", clip(in.name), err)
	}
	in.tensor = tensor.Tensor{Type: in.dtype, Dims: in.shape}
	if in.dtype == tensor.String {
		in.tensor.Strings, err = splitBytes(b, n, a)
		var worded *httpError
		if errors.As(err, &worded) && worded.status == http.StatusBadRequest {
			return badf("input %s: %v", clip(in.name), err)
		}
		return err
	}
	if want := in.dtype.Bytes(n); want != int64(len(b)) {
		return badf("input %s: %v%v needs %d bytes, binary_data_size is %d", clip(in.name), in.dtype, in.shape, want, len(b))
	}
	if in.dtype == tensor.Bool {
		for _, x := range b {
			if x > 1 {
				return badf("input %s: a BOOL is one byte, 0 or 1, got %d", clip(in.name), x)
			}
		}
	}
	in.tensor.Data = aligned(b, in.dtype.Bits()/8, a)
	return nil
}

// aligned returns b, copied when it does not start on a multiple of size.
func aligned(b []byte, size int, a *arena) []byte {
	if len(b) == 0 || uintptr(unsafe.Pointer(&b[0]))%uintptr(size) == 0 {
		return b
	}
	c := a.bytes(len(b))
	copy(c, b)
	return c
}

// splitBytes reads n BYTES elements: a 32-bit little-endian length and as many
// bytes each. They share memory with b.
func splitBytes(b []byte, n int64, a *arena) ([][]byte, error) {
	if n > int64(len(b))/4 {
		return nil, badf("%d BYTES elements need at least %d bytes, got %d", n, 4*n, len(b))
	}
	if err := a.take(n * sliceBytes); err != nil {
		return nil, err
	}
	out := make([][]byte, n)
	for i := range out {
		if len(b) < 4 {
			return nil, badf("BYTES element %d has no length", i)
		}
		size := binary.LittleEndian.Uint32(b)
		b = b[4:]
		if uint64(size) > uint64(len(b)) {
			return nil, badf("BYTES element %d has length %d, only %d bytes are left", i, size, len(b))
		}
		out[i] = b[:size:size]
		b = b[size:]
	}
	if len(b) > 0 {
		return nil, badf("%d bytes are left after %d BYTES elements", len(b), n)
	}
	return out, nil
}

// rawInput makes the one input of a request whose whole body is a tensor
// (header length 0): its type and shape come from the model, and one variable
// dimension from the size of the body.
func rawInput(r *inferRequest, spec engine.IOSpec, body []byte, a *arena) error {
	if len(spec.Inputs) != 1 {
		return badf("%s is 0 but the model has %d inputs: a raw body needs a model with one", headerLength, len(spec.Inputs))
	}
	io := spec.Inputs[0]
	in := r.input()
	in.name, in.dtype = []byte(io.Name), io.Type
	free := -1
	for i, d := range io.Dims {
		if d < 0 {
			if free >= 0 && io.Type != tensor.String {
				return badf("a raw body needs at most one variable dimension, input %q is %v", io.Name, io.Dims)
			}
			free, d = i, 1
		}
		in.shape = append(in.shape, d)
	}
	known, err := tensor.Elems(in.shape)
	if err != nil {
		return err
	}
	if io.Type == tensor.String { // one element, without a length in front
		if known != 1 {
			return badf("a raw BYTES body is one element, input %q is %v", io.Name, io.Dims)
		}
		in.tensor = tensor.Tensor{Type: io.Type, Dims: in.shape, Strings: [][]byte{body}}
		return nil
	}
	if free >= 0 {
		unit := io.Type.Bytes(known)
		if unit == 0 || int64(len(body))%unit != 0 {
			return badf("a raw body of %d bytes is no multiple of the %d bytes of %v%v", len(body), unit, io.Type, io.Dims)
		}
		in.shape[free] = int64(len(body)) / unit
	}
	r.binary = true
	in.binary = int64(len(body))
	return in.setBytes(body, a)
}
