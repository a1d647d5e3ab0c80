package plan

import (
	"crypto/sha256"
	"fmt"
	"sync"
	"unsafe"

	"github.com/fewbit/fewbit/internal/graph"
	"github.com/fewbit/fewbit/internal/tensor"
)

// codes is an activation in its integer form: s8 codes with one scale and zero
// point, or one of each for every row.
type codes struct {
	ref Ref
	// nhwc: dense [n, h, w, c] for a value of dimensions [n, c, h, w];
	// otherwise rows of the last dimension, ld codes apart.
	nhwc bool
	ld   int64
	// Of the whole tensor. zero is that of s8 codes.
	scale float32
	zero  int32
	// Of each row, when not NULL: F32 and S32.
	scales, zeros Ref
}

// value is what the builder knows of one of the graph's values. It may lie on
// the device in several layouts; a missing one is made when somebody needs it.
type value struct {
	name  string
	dtype tensor.DType
	dims  []int64
	elems int64
	host  *tensor.Tensor // constants
	dense Ref            // row-major, of the type's device type
	nhwc  Ref            // F32 of rank 4, channels last
	rows  Ref            // F32, rows of the last dimension, ld elements apart
	ld    int64
	codes *codes
	// dq is the DequantizeLinear of a constant that makes the value; it is
	// evaluated only when somebody reads the floats.
	dq *graph.Node
}

func (v *value) last() int64 {
	if len(v.dims) == 0 {
		return 1
	}
	return v.dims[len(v.dims)-1]
}

// builder makes one plan.
type builder struct {
	m        *graph.Model
	g        *graph.Graph
	ix       *graph.Index
	o        Options
	plan     *Plan
	vals     map[string]*value
	original map[*tensor.Tensor]string  // initializers of the Source, by name
	bytes    map[*byte]string           // the same, by their first byte
	weights  map[string]int             // key -> buffer
	uploads  int64                      // bytes of them
	forms    map[*graph.Node]weightForm // of matrix products
	checked  *sync.Map                  // of the Source
	inputs8  map[divided]*codes         // values quantized by row
	inputs16 map[string]Ref             // values as F16
	spaces   map[string]Ref             // workspaces, by entry
	groups   map[*graph.Node]*group
	absorbed map[*graph.Node]bool
	done     map[*graph.Node]bool
}

func newBuilder(m *graph.Model, o Options) *builder {
	return &builder{m: m, g: m.Graph, ix: m.Graph.Index(), o: o, plan: &Plan{Buffers: make([]Buffer, 1)},
		vals: map[string]*value{}, original: map[*tensor.Tensor]string{}, bytes: map[*byte]string{}, weights: map[string]int{},
		forms: map[*graph.Node]weightForm{}, inputs8: map[divided]*codes{}, inputs16: map[string]Ref{},
		spaces: map[string]Ref{}, groups: map[*graph.Node]*group{}, absorbed: map[*graph.Node]bool{}, done: map[*graph.Node]bool{}}
}

func (b *builder) run() error {
	for t, name := range b.original {
		if len(t.Data) > 0 {
			p := unsafe.SliceData(t.Data)
			if have, ok := b.bytes[p]; !ok || name < have { // shared bytes: one name, whatever the order
				b.bytes[p] = name
			}
		}
	}
	for _, v := range b.g.Inputs {
		x, err := b.value(v.Name)
		if err != nil {
			return err
		}
		t, ok := deviceType(x.dtype)
		if !ok {
			return fmt.Errorf("%w: input %q has type %v", ErrUnsupported, x.name, x.dtype)
		}
		x.dense = b.alloc(x.name, x.elems*t.Size())
		b.plan.Inputs = append(b.plan.Inputs, Binding{x.name, x.dtype, x.dims, x.dense, x.elems * t.Size()})
	}
	b.findGroups()
	for _, n := range b.g.Nodes {
		if b.absorbed[n] || b.done[n] {
			continue
		}
		if err := b.emit(n); err != nil {
			return err
		}
		if len(b.plan.Steps) > MaxSteps {
			return fmt.Errorf("%w: more than %d kernel calls", ErrLimit, MaxSteps)
		}
	}
	for _, o := range b.g.Outputs {
		x, err := b.value(o.Name)
		if err != nil {
			return err
		}
		if x.codes != nil && x.dtype != tensor.Float32 {
			return fmt.Errorf("%w: output %q holds codes", ErrUnsupported, o.Name)
		}
		ref, err := b.dense(x)
		if err != nil {
			return err
		}
		t, _ := deviceType(x.dtype)
		b.plan.Outputs = append(b.plan.Outputs, Binding{o.Name, x.dtype, x.dims, ref, x.elems * t.Size()})
	}
	return b.finish()
}

// deviceType is the device type of plain values: booleans are bytes.
func deviceType(d tensor.DType) (Type, bool) {
	switch d {
	case tensor.Float32:
		return F32, true
	case tensor.Float16:
		return F16, true
	case tensor.Int64:
		return S64, true
	case tensor.Int32:
		return S32, true
	case tensor.Bool:
		return Bool, true
	case tensor.Uint8:
		return U8, true
	case tensor.Int8:
		return S8, true
	}
	return 0, false
}

// unsupported says which node cannot be planned and why.
func unsupported(n *graph.Node, format string, args ...any) error {
	op := n.Op
	if n.Domain != "" {
		op = n.Domain + "." + op
	}
	name := n.Name
	if name == "" && len(n.Outputs) > 0 {
		name = n.Outputs[0]
	}
	return fmt.Errorf("%w: %s %q: %s", ErrUnsupported, op, name, fmt.Sprintf(format, args...))
}

// value returns what is known of a value; its type and dimensions always are.
func (b *builder) value(name string) (*value, error) {
	if v := b.vals[name]; v != nil {
		return v, nil
	}
	v := &value{name: name}
	if t := b.g.Init(name); t != nil {
		v.host, v.dtype, v.dims = t, t.Type, t.Dims
	} else {
		info := b.g.Info[name]
		for _, in := range b.g.Inputs {
			if in.Name == name {
				info = in
			}
		}
		if info == nil || info.Type == tensor.Undefined || info.Dims == nil {
			return nil, fmt.Errorf("%w: the size of %q is not known%s", ErrUnsupported, name, b.maker(name))
		}
		v.dtype, v.dims = info.Type, make([]int64, len(info.Dims))
		for i, d := range info.Dims {
			if v.dims[i] = d.N; d.N < 0 {
				return nil, fmt.Errorf("%w: the size of %q is not known%s", ErrUnsupported, name, b.maker(name))
			}
		}
	}
	n, err := tensor.Elems(v.dims)
	if err != nil {
		return nil, fmt.Errorf("%w: %q: %v", ErrUnsupported, name, err)
	}
	for _, d := range v.dims {
		if d == 0 || d > MaxDim {
			return nil, fmt.Errorf("%w: %q has dimensions %v%s", ErrUnsupported, name, v.dims, b.maker(name))
		}
	}
	v.elems = n
	b.vals[name] = v
	return v, nil
}

func (b *builder) maker(name string) string {
	if n := b.ix.Producer(name); n != nil {
		return fmt.Sprintf(" (made by %s %q)", n.Op, n.Name)
	}
	return ""
}

// in returns input i of n, an error when it is absent.
func (b *builder) in(n *graph.Node, i int) (*value, error) {
	if n.In(i) == "" {
		return nil, unsupported(n, "input %d is missing", i)
	}
	return b.value(n.In(i))
}

// out returns output i of n.
func (b *builder) out(n *graph.Node, i int) (*value, error) {
	if i >= len(n.Outputs) || n.Outputs[i] == "" {
		return nil, unsupported(n, "output %d is missing", i)
	}
	return b.value(n.Outputs[i])
}

// ends returns input 0 of n and its result.
func (b *builder) ends(n *graph.Node) (x, y *value, err error) {
	if x, err = b.in(n, 0); err == nil {
		y, err = b.out(n, 0)
	}
	return x, y, err
}

// alloc makes an arena buffer.
func (b *builder) alloc(name string, bytes int64) Ref {
	b.plan.Buffers = append(b.plan.Buffers, Buffer{Kind: Arena, Bytes: bytes, Name: name})
	return Ref{Buf: len(b.plan.Buffers) - 1}
}

// fresh gives v a dense buffer of its own.
func (b *builder) fresh(v *value) Ref {
	t, _ := deviceType(v.dtype)
	v.dense = b.alloc(v.name, v.elems*t.Size())
	return v.dense
}

func (b *builder) step(s Step) { b.plan.Steps = append(b.plan.Steps, s) }

// work gives a step the scratch memory it asks for: steps run one after the
// other, so those of one entry share it.
func (b *builder) work(s Step) (Ref, int64) {
	if b.o.Workspace == nil {
		return Ref{}, 0
	}
	n := b.o.Workspace(s)
	if n <= 0 {
		return Ref{}, 0
	}
	ref, ok := b.spaces[s.Entry()]
	if !ok {
		b.plan.Buffers = append(b.plan.Buffers, Buffer{Kind: Workspace, Name: "workspace", Key: s.Entry()})
		ref = Ref{Buf: len(b.plan.Buffers) - 1}
		b.spaces[s.Entry()] = ref
	}
	x := &b.plan.Buffers[ref.Buf]
	x.Bytes = max(x.Bytes, n)
	return ref, n
}

// fault returns the word that lookups set.
func (b *builder) fault() Ref {
	if b.plan.Fault == (Ref{}) {
		b.plan.Fault = b.alloc("fault", 4)
	}
	return b.plan.Fault
}

// dense returns v row-major on the device.
func (b *builder) dense(v *value) (Ref, error) {
	switch none := (Ref{}); {
	case v.dense != none:
	case v.host != nil:
		t, ok := deviceType(v.dtype)
		if !ok {
			return none, fmt.Errorf("%w: constant %q has type %v", ErrUnsupported, v.name, v.dtype)
		}
		host := v.host
		v.dense = b.weight(host, "", v.elems*t.Size(), func() []byte { return host.Data })
	case v.dq != nil:
		d := v.dq
		f := func() []byte { return bytesOf(b.hostDequantize(d)) }
		if !b.dequantizable(d) {
			return none, unsupported(d, "form of its scale or zero point")
		}
		v.dense = b.keyed(b.keyOf(b.g.Init(d.In(0)))+"|times "+b.keyOf(b.g.Init(d.In(1))), v.elems*4, f)
	case v.nhwc != none && sameOrder(v.dims):
		v.dense = v.nhwc
	case v.nhwc != none:
		x := v.nhwc
		if err := b.transpose(4, x, nhwcOf(v.dims), []int{0, 3, 1, 2}, b.fresh(v)); err != nil {
			return none, err
		}
	case v.rows != none:
		k := v.last()
		dims := []int64{v.elems / k, k}
		src := View{dims, []int64{v.ld, 1}}
		x := v.rows
		b.step(&Copy{Size: 4, Src: src, Dst: View{dims, []int64{k, 1}}, X: x, Y: b.fresh(v)})
	case v.codes != nil && v.dtype == tensor.Float32:
		return b.dequantized(v)
	default:
		return none, fmt.Errorf("%w: %q%s is only there as codes", ErrUnsupported, v.name, b.maker(v.name))
	}
	return v.dense, nil
}

// transpose copies x, dense of dims, so that dimension i of y is perm[i] of x.
func (b *builder) transpose(size int64, x Ref, dims []int64, perm []int, y Ref) error {
	strides := dense(dims)
	to, from := make([]int64, len(perm)), make([]int64, len(perm))
	for i, p := range perm {
		to[i], from[i] = dims[p], strides[p]
	}
	d, s, ok := collapse(to, from, dense(to))
	if !ok {
		return fmt.Errorf("%w: transposition of %v", ErrUnsupported, dims)
	}
	b.step(&Copy{Size: size, Src: View{d, s[0]}, Dst: View{d, s[1]}, X: x, Y: y})
	return nil
}

// sameOrder reports whether [n, c, h, w] lies in memory as [n, h, w, c] does.
func sameOrder(d []int64) bool { return d[1] == 1 || d[2]*d[3] == 1 }

func nhwcOf(d []int64) []int64 { return []int64{d[0], d[2], d[3], d[1]} }

// channelsLast returns v as NHWC F32 when that costs no transposition, NULL
// otherwise.
func (b *builder) channelsLast(v *value) Ref {
	if v.nhwc == (Ref{}) && v.dense == (Ref{}) && v.codes != nil && v.codes.nhwc && v.dtype == tensor.Float32 {
		y := b.alloc(v.name, v.elems*4)
		b.step(&DequantizeTensor{N: v.elems, Scale: v.codes.scale, Zero: v.codes.zero, Q: v.codes.ref, X: y})
		v.nhwc = y
	}
	return v.nhwc
}

// dequantized makes the dense float form of codes.
func (b *builder) dequantized(v *value) (Ref, error) {
	c := v.codes
	switch {
	case c.scales != (Ref{}):
		return Ref{}, fmt.Errorf("%w: %q: codes with a scale for each row are read as floats", ErrUnsupported, v.name)
	case c.nhwc:
		q := c.ref
		d := v.dims
		b.step(&DequantizeToNCHW{N: d[0], C: d[1], HW: d[2] * d[3], LdC: d[1], Scale: c.scale, Zero: c.zero, Q: q, X: b.fresh(v)})
	case c.ld == v.last():
		q := c.ref
		b.step(&DequantizeTensor{N: v.elems, Scale: c.scale, Zero: c.zero, Q: q, X: b.fresh(v)})
	default:
		rows := v.elems / v.last()
		y := b.alloc(v.name+" (rows)", rows*c.ld*4)
		b.step(&DequantizeTensor{N: rows * c.ld, Scale: c.scale, Zero: c.zero, Q: c.ref, X: y})
		v.rows, v.ld = y, c.ld
		return b.dense(v)
	}
	return v.dense, nil
}

// weight returns constant memory with the given layout of t, which fill makes.
// It is uploaded once however many steps and plans read it.
func (b *builder) weight(t *tensor.Tensor, layout string, bytes int64, fill func() []byte) Ref {
	return b.keyed(b.keyOf(t)+layout, bytes, fill)
}

func (b *builder) keyed(key string, bytes int64, fill func() []byte) Ref {
	if i, ok := b.weights[key]; ok {
		return Ref{Buf: i}
	}
	b.plan.Buffers = append(b.plan.Buffers, Buffer{Kind: Weight, Bytes: bytes, Name: key, Key: key, Fill: fill})
	b.uploads += bytes
	b.weights[key] = len(b.plan.Buffers) - 1
	return Ref{Buf: len(b.plan.Buffers) - 1}
}

// keyOf names a constant: an initializer of the file by its name, which is the
// same in all plans; what folding made, by its contents.
func (b *builder) keyOf(t *tensor.Tensor) string {
	name, ok := b.original[t]
	if !ok && len(t.Data) > 0 {
		name, ok = b.bytes[unsafe.SliceData(t.Data)]
	}
	if ok {
		return fmt.Sprintf("%s%v%v", name, t.Type, t.Dims)
	}
	h := sha256.Sum256(t.Data)
	return fmt.Sprintf("sha256:%x%v%v", h[:8], t.Type, t.Dims)
}

// dense strides of row-major dims.
func dense(dims []int64) []int64 {
	s := make([]int64, len(dims))
	n := int64(1)
	for i := len(dims) - 1; i >= 0; i-- {
		s[i] = n
		n *= dims[i]
	}
	return s
}

// broadcast returns the dimensions that a and b broadcast to (numpy's rule).
func broadcast(a, b []int64) ([]int64, bool) {
	if len(a) < len(b) {
		a, b = b, a
	}
	r := append([]int64(nil), a...)
	for i, d := range b {
		at := len(a) - len(b) + i
		switch {
		case r[at] == d || d == 1:
		case r[at] == 1:
			r[at] = d
		default:
			return nil, false
		}
	}
	return r, true
}

// strides with which a dense tensor of dims from is read under dims to.
func stridesOver(from, to []int64) []int64 {
	s := make([]int64, len(to))
	d := dense(from)
	for i := range from {
		if from[i] != 1 {
			s[len(to)-len(from)+i] = d[i]
		}
	}
	return s
}

// collapse drops dimensions of 1 and merges neighbours that every set of
// strides walks as one; ok is false when more than Rank are left.
func collapse(dims []int64, strides ...[]int64) (d []int64, s [][]int64, ok bool) {
	s = make([][]int64, len(strides))
	for i := range dims {
		if dims[i] == 1 {
			continue
		}
		if n := len(d); n > 0 {
			merge := true
			for k := range strides {
				merge = merge && s[k][n-1] == strides[k][i]*dims[i]
			}
			if merge {
				d[n-1] *= dims[i]
				for k := range strides {
					s[k][n-1] = strides[k][i]
				}
				continue
			}
		}
		d = append(d, dims[i])
		for k := range strides {
			s[k] = append(s[k], strides[k][i])
		}
	}
	if len(d) == 0 {
		d = []int64{1}
		for k := range s {
			s[k] = []int64{0}
		}
	}
	return d, s, len(d) <= Rank
}

func round16(k int64) int64 { return (k + 15) &^ 15 }
