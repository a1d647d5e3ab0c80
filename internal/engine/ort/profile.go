package ort

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/fewbit/fewbit/internal/tensor"
)

// Limits of ParseProfile. ONNX Runtime stops at a million events by itself.
const (
	maxProfileEvents = 1 << 21
	maxProfileNodes  = 1 << 18
	maxEventBytes    = 1 << 20
	maxEventName     = 4096
	maxEventMicros   = int64(24 * time.Hour / time.Microsecond)
)

// ErrProfile reports a file that is not a profile of ONNX Runtime.
var ErrProfile = errors.New("bad profile")

// NodeTime is what a profile tells of one node of the graph as it really ran,
// after ONNX Runtime's own optimizations.
type NodeTime struct {
	Node     string // name, made by ONNX Runtime for nodes that it fused
	Op       string // operator, without its domain
	Provider string
	// Inputs and Outputs are element types in order, without absent optional
	// ones; Undefined for what is not a tensor. Of the first run.
	Inputs, Outputs []tensor.DType
	Calls           int
	Total           time.Duration // of all calls; ONNX Runtime rounds each to 1 us
}

// profileTypes names element types as ONNX Runtime's DataTypeImpl::ToString does.
var profileTypes = map[string]tensor.DType{
	"float": tensor.Float32, "uint8": tensor.Uint8, "int8": tensor.Int8, "uint16": tensor.Uint16, "int16": tensor.Int16,
	"int32": tensor.Int32, "int64": tensor.Int64, "string": tensor.String, "bool": tensor.Bool, "float16": tensor.Float16,
	"double": tensor.Float64, "uint32": tensor.Uint32, "uint64": tensor.Uint64, "bfloat16": tensor.BFloat16,
	"float8e4m3fn": tensor.Float8E4M3FN, "float8e4m3fnuz": tensor.Float8E4M3FNUZ, "float8e5m2": tensor.Float8E5M2,
	"float8e5m2fnuz": tensor.Float8E5M2FNUZ, "uint4": tensor.Uint4, "int4": tensor.Int4, "float4e2m1": tensor.Float4E2M1,
}

type profileEvent struct {
	Cat  string          `json:"cat"`
	Name string          `json:"name"`
	Dur  int64           `json:"dur"` // microseconds
	Args json.RawMessage `json:"args"`
}

type profileArgs struct {
	Op       string                       `json:"op_name"`
	Index    string                       `json:"node_index"`
	Provider string                       `json:"provider"`
	Inputs   []map[string]json.RawMessage `json:"input_type_shape"`
	Outputs  []map[string]json.RawMessage `json:"output_type_shape"`
}

const kernelSuffix = "_kernel_time"

// ParseProfile reads a profile that Session.EndProfile named and sums it up by
// node, in the order in which they first ran. It reads one event at a time and
// returns ErrProfile for everything else than such a file.
func ParseProfile(r io.Reader) ([]NodeTime, error) {
	limit := &eventReader{r: r}
	d := json.NewDecoder(limit)
	limit.left = maxEventBytes
	if t, err := d.Token(); err != nil || t != json.Delim('[') {
		return nil, fmt.Errorf("%w: expected a JSON array of events", ErrProfile)
	}
	type key struct{ name, op, index string }
	var nodes []NodeTime
	byKey := make(map[key]int)
	for n := 0; ; n++ {
		limit.left = maxEventBytes
		if !d.More() {
			break
		}
		if n == maxProfileEvents {
			return nil, fmt.Errorf("%w: more than %d events", ErrProfile, maxProfileEvents)
		}
		var e profileEvent
		if err := d.Decode(&e); err != nil {
			return nil, fmt.Errorf("%w: event %d: %w", ErrProfile, n, err)
		}
		name, ok := strings.CutSuffix(e.Name, kernelSuffix)
		if e.Cat != "Node" || !ok {
			continue
		}
		if e.Dur < 0 || e.Dur > maxEventMicros || len(e.Name) > maxEventName {
			return nil, fmt.Errorf("%w: event %d: duration %d us or name of %d bytes out of range", ErrProfile, n, e.Dur, len(e.Name))
		}
		var a profileArgs
		if err := json.Unmarshal(e.Args, &a); err != nil {
			return nil, fmt.Errorf("%w: event %d: args: %w", ErrProfile, n, err)
		}
		k := key{name, a.Op, a.Index}
		i, ok := byKey[k]
		if !ok {
			if i = len(nodes); i == maxProfileNodes {
				return nil, fmt.Errorf("%w: more than %d nodes", ErrProfile, maxProfileNodes)
			}
			byKey[k] = i
			nodes = append(nodes, NodeTime{Node: name, Op: a.Op, Provider: a.Provider,
				Inputs: typesOf(a.Inputs), Outputs: typesOf(a.Outputs)})
		}
		nodes[i].Calls++
		nodes[i].Total += time.Duration(e.Dur) * time.Microsecond
	}
	if t, err := d.Token(); err != nil || t != json.Delim(']') {
		return nil, fmt.Errorf("%w: the file ends within the list of events", ErrProfile)
	}
	return nodes, nil
}

// typesOf reads [{"float":[1,128]},{"uint8":[]}].
func typesOf(l []map[string]json.RawMessage) []tensor.DType {
	ts := make([]tensor.DType, len(l))
	for i, m := range l {
		for name := range m {
			ts[i] = profileTypes[name]
		}
	}
	return ts
}

// eventReader fails when more than left bytes are read for one event, before
// the JSON decoder has collected a huge one in memory.
type eventReader struct {
	r    io.Reader
	left int
}

func (e *eventReader) Read(p []byte) (int, error) {
	if e.left <= 0 {
		return 0, fmt.Errorf("an event is longer than %d bytes", maxEventBytes)
	}
	n, err := e.r.Read(p[:min(len(p), e.left)])
	e.left -= n
	return n, err
}
