package capture

import (
	"encoding/binary"
	"encoding/json"
	"fmt"
	"slices"
	"time"

	"github.com/fewbit/fewbit/internal/engine"
	"github.com/fewbit/fewbit/internal/tensor"
)

// A record is one sample before it is sealed:
//
//	u32   length of the header
//	JSON  header: time, route, version, inputs with name, type and dimensions
//	...   the elements of the inputs, in that order; nothing for redacted ones
//
// Numbers are little-endian. The seal keeps it from being changed; the limits
// hold all the same.

// maxHeader bounds the header of a record.
const maxHeader = 1 << 20

// maxInputs bounds the inputs of a record.
const maxInputs = 256

type recordHeader struct {
	Time    time.Time     `json:"time"`
	Route   string        `json:"route"`
	Version string        `json:"version"`
	Inputs  []recordInput `json:"inputs"`
}

type recordInput struct {
	Name     string  `json:"name"`
	Type     string  `json:"type"`
	Dims     []int64 `json:"dims"`
	Redacted bool    `json:"redacted,omitempty"`
}

// rowDims are the dimensions of one row of t: the first one is 1 where it is
// the batch.
func rowDims(t *tensor.Tensor, rows int64) []int64 {
	dims := slices.Clone(t.Dims)
	if rows > 1 {
		dims[0] = 1
	}
	return dims
}

// rowBytes is the size of the elements of one row of feeds.
func rowBytes(feeds engine.Feeds, rows int64) int64 {
	n := int64(0)
	for _, t := range feeds {
		n += int64(len(t.Data)) / rows
	}
	return n
}

// encodeRow makes the record of row i of feeds, which have so many rows.
func encodeRow(h recordHeader, inputs []Input, feeds engine.Feeds, i, rows int64) ([]byte, error) {
	h.Inputs = make([]recordInput, len(inputs))
	size := 0
	for j, in := range inputs {
		t := feeds[in.Name]
		h.Inputs[j] = recordInput{Name: in.Name, Type: in.Datatype, Dims: rowDims(t, rows), Redacted: in.Redacted}
		size += len(t.Data) / int(rows)
	}
	head, err := json.Marshal(h)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrFormat, err)
	}
	b := make([]byte, 0, 4+len(head)+size)
	b = append(binary.LittleEndian.AppendUint32(b, uint32(len(head))), head...)
	for _, in := range inputs {
		if in.Redacted {
			continue
		}
		d := feeds[in.Name].Data
		n := int64(len(d)) / rows
		b = append(b, d[i*n:(i+1)*n]...)
	}
	return b, nil
}

// decodeRecord reads a record.
func decodeRecord(b []byte) (Sample, error) {
	bad := func(format string, args ...any) (Sample, error) {
		return Sample{}, fmt.Errorf("%w: %s", ErrFormat, fmt.Sprintf(format, args...))
	}
	if len(b) < 4 {
		return bad("%d bytes", len(b))
	}
	n := binary.LittleEndian.Uint32(b)
	if n > maxHeader || int(n) > len(b)-4 {
		return bad("a header of %d bytes in %d", n, len(b))
	}
	var h recordHeader
	if err := json.Unmarshal(b[4:4+n], &h); err != nil {
		return bad("its header: %v", err)
	}
	if len(h.Inputs) == 0 || len(h.Inputs) > maxInputs {
		return bad("%d inputs", len(h.Inputs))
	}
	s := Sample{Time: h.Time, Route: h.Route, Version: h.Version, Feeds: make(map[string]*tensor.Tensor, len(h.Inputs))}
	rest := b[4+n:]
	total := int64(0)
	for _, in := range h.Inputs {
		dt, ok := tensor.ParseDType(in.Type)
		if !ok || dt == tensor.String {
			return bad("input %.40q has the type %.40q", in.Name, in.Type)
		}
		elems, err := tensor.Elems(in.Dims)
		if err != nil {
			return bad("input %.40q: %v", in.Name, err)
		}
		size := dt.Bytes(elems)
		if s.Feeds[in.Name] != nil || size > MaxSampleBytes-total {
			return bad("input %.40q stands twice, or the inputs have more than %d bytes", in.Name, MaxSampleBytes)
		}
		total += size
		t, err := tensor.New(dt, in.Dims...) // aligned, as engines want it
		if err != nil {
			return bad("input %.40q: %v", in.Name, err)
		}
		s.Feeds[in.Name] = t
		if in.Redacted {
			continue
		}
		if size > int64(len(rest)) {
			return bad("input %.40q is cut off", in.Name)
		}
		rest = rest[copy(t.Data, rest[:size]):]
	}
	if len(rest) != 0 {
		return bad("%d bytes too many", len(rest))
	}
	return s, nil
}
