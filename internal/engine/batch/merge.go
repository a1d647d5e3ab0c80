package batch

import (
	"slices"
	"sync/atomic"

	"github.com/fewbit/fewbit/internal/engine"
	"github.com/fewbit/fewbit/internal/tensor"
)

// rule says how requests of a model become one; nil where they must not.
type rule struct {
	spec engine.IOSpec
	// length is the symbolic name of the second dimension that may be padded
	// with zeros, because a mask says what is padding; "" where only requests
	// of equal shapes fit together.
	length string
}

// maskInput is the input that says which positions count, as Hugging Face
// exports call it.
const maskInput = "attention_mask"

// ruleFor reads the rule from the model's interface: the first dimension of
// every input and output is variable and, where it has a name, the same one.
func ruleFor(spec engine.IOSpec) *rule {
	if len(spec.Inputs) == 0 || len(spec.Outputs) == 0 {
		return nil
	}
	name := ""
	for _, io := range slices.Concat(spec.Inputs, spec.Outputs) {
		if len(io.Dims) == 0 || io.Dims[0] >= 0 || io.Type.Bits()%8 != 0 || io.Type.Bits() == 0 {
			return nil
		}
		if len(io.DimNames) > 0 && io.DimNames[0] != "" {
			if name != "" && name != io.DimNames[0] {
				return nil
			}
			name = io.DimNames[0]
		}
	}
	return &rule{spec: spec, length: paddable(spec)}
}

// paddable returns the name of the token dimension of an encoder with a mask.
func paddable(spec engine.IOSpec) string {
	length, mask := "", false
	for _, io := range spec.Inputs {
		if len(io.Dims) != 2 || io.Dims[1] >= 0 || len(io.DimNames) != 2 || io.DimNames[1] == "" || (length != "" && length != io.DimNames[1]) || io.Type.IsFloat() {
			return ""
		}
		length = io.DimNames[1]
		mask = mask || io.Name == maskInput
	}
	if !mask {
		return ""
	}
	for _, io := range spec.Outputs { // only its own second dimension can be cut back
		for i, d := range io.Dims[1:] {
			if d < 0 && (i != 0 || len(io.DimNames) < 2 || io.DimNames[1] != length) {
				return ""
			}
		}
	}
	return length
}

// size returns the rows of a request and the padded size of one row, in values
// of the largest input.
func (r *rule) size(in engine.Feeds) (rows, width int64) {
	width = 1
	for _, io := range r.spec.Inputs {
		t := in[io.Name]
		if t == nil || len(t.Dims) == 0 || t.Dims[0] < 1 { // the session says what is missing
			return 0, 0
		}
		if rows != 0 && rows != t.Dims[0] {
			return 0, 0
		}
		rows = t.Dims[0]
		width = max(width, t.Len()/rows)
	}
	return rows, width
}

// fits reports whether b can join a's batch.
func (r *rule) fits(a, b *request) bool {
	if !slices.Equal(a.outs, b.outs) {
		return false
	}
	for _, io := range r.spec.Inputs {
		x, y := a.feeds[io.Name], b.feeds[io.Name]
		if x.Type != y.Type || len(x.Dims) != len(y.Dims) {
			return false
		}
		from := 1
		if r.length != "" {
			from = 2
		}
		if !slices.Equal(x.Dims[from:], y.Dims[from:]) {
			return false
		}
	}
	return true
}

// join copies the requests' inputs one below the other, rows padded with zeros
// to the longest. into keeps its memory between batches.
func (r *rule) join(group []*request, into map[string]*tensor.Tensor) engine.Feeds {
	feeds := make(engine.Feeds, len(r.spec.Inputs))
	for _, io := range r.spec.Inputs {
		first := group[0].feeds[io.Name]
		dims := slices.Clone(first.Dims)
		dims[0] = 0
		for _, q := range group {
			t := q.feeds[io.Name]
			dims[0] += t.Dims[0]
			if len(dims) > 1 {
				dims[1] = max(dims[1], t.Dims[1])
			}
		}
		n, err := tensor.Elems(dims)
		if err != nil { // sizes were bounded when the requests were read
			return nil
		}
		t := into[io.Name]
		bytes := first.Type.Bytes(n)
		if t == nil || t.Type != first.Type || int64(cap(t.Data)) < bytes {
			if t, err = tensor.New(first.Type, dims...); err != nil {
				return nil
			}
			into[io.Name] = t
		}
		t.Dims, t.Data = dims, t.Data[:bytes]
		width := bytes / dims[0] // of a row
		at := int64(0)
		for _, q := range group {
			src := q.feeds[io.Name]
			have := int64(len(src.Data)) / src.Dims[0]
			if have == width {
				at += int64(copy(t.Data[at:], src.Data))
				continue
			}
			for i := range src.Dims[0] {
				copy(t.Data[at:], src.Data[i*have:(i+1)*have])
				clear(t.Data[at+have : at+width])
				at += width
			}
		}
		feeds[io.Name] = t
	}
	return feeds
}

// shared counts the parts of a result that are still read.
type shared struct {
	res  engine.Result
	refs atomic.Int32
}

// part is one request's rows of a shared result.
type part struct {
	all    *shared
	feeds  engine.Feeds
	closed atomic.Bool
}

func (p *part) Tensors() engine.Feeds { return p.feeds }

func (p *part) Close() {
	if !p.closed.Swap(true) && p.all.refs.Add(-1) == 0 {
		p.all.res.Close()
	}
}

// split cuts a result into the requests' rows, without copying unless padding
// has to be cut off. nil: an output does not have the batch's rows.
func (r *rule) split(res engine.Result, group []*request, rows, width int64) []engine.Result {
	all := &shared{res: res}
	all.refs.Store(int32(len(group)))
	parts := make([]engine.Result, len(group))
	for i := range parts {
		parts[i] = &part{all: all, feeds: make(engine.Feeds, len(r.spec.Outputs))}
	}
	padded := map[string]bool{}
	for _, io := range r.spec.Outputs {
		padded[io.Name] = r.length != "" && len(io.DimNames) > 1 && io.DimNames[1] == r.length
	}
	for name, t := range res.Tensors() {
		if len(t.Dims) == 0 || t.Dims[0] != rows {
			return nil
		}
		if padded[name] && (len(t.Dims) < 2 || t.Dims[1] != width) {
			return nil
		}
		each := int64(len(t.Data)) / rows
		at := int64(0)
		for i, q := range group {
			dims := slices.Clone(t.Dims)
			dims[0] = q.rows
			own := &tensor.Tensor{Type: t.Type, Dims: dims, Data: t.Data[at*each : (at+q.rows)*each]}
			if padded[name] && q.width < width {
				dims[1] = q.width
				cut, err := tensor.New(t.Type, dims...)
				if err != nil {
					return nil
				}
				crop(cut.Data, own.Data, q.rows)
				own = cut
			}
			parts[i].(*part).feeds[name] = own
			at += q.rows
		}
	}
	return parts
}

// crop copies the beginning of each of src's rows to dst.
func crop(dst, src []byte, rows int64) {
	keep, width := int64(len(dst))/rows, int64(len(src))/rows
	for i := range rows {
		copy(dst[i*keep:(i+1)*keep], src[i*width:])
	}
}
