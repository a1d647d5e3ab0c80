package pipeline

import (
	"cmp"
	"context"
	"sync"
	"sync/atomic"

	"github.com/fewbit/fewbit/internal/engine"
	"github.com/fewbit/fewbit/internal/graph"
	"github.com/fewbit/fewbit/internal/onnx/pb"
	"github.com/fewbit/fewbit/internal/quant"
	"github.com/fewbit/fewbit/internal/tensor"
)

// The lab multiplies with the engine's own kernels: a model of one operator each,
// on one thread. Large products are cut into tiles of a fixed size, so that the
// result does not depend on how many threads there are.
var _ quant.Algebra = (*Lab)(nil)

const (
	rowTile  = 32 // least rows of a product, of which there are rowTiles at most
	rowTiles = 8
	gramTile = 256 // columns of a Gram matrix
	// gramStripe is how many rows are turned into columns at a time, so that their
	// values stay in the first cache.
	gramStripe = 16
)

// atOnce is how many matrices are worked on at a time, since of each some steps take
// one core; below a ceiling, which predicts what one takes, it is one.
func (l *Lab) atOnce() int {
	if l.limits != nil {
		return 1
	}
	return min(2, l.threads())
}

// MatMul implements quant.GEMM.
func (l *Lab) MatMul(ctx context.Context, a []float32, m, k int, b []float32, n int) ([]float32, error) {
	y := make([]float32, m*n)
	// The kernel copies b for each tile, into its own order.
	tile := max(rowTile, (m+rowTiles-1)/rowTiles)
	err := l.tiles(m, tile, func(from, to int) error {
		return l.product(ctx, tensor.Float32, "MatMul", tensor.From(a[from*k:to*k], int64(to-from), int64(k)), tensor.From(b, int64(k), int64(n)), func(t *tensor.Tensor) error {
			v, err := t.F32()
			copy(y[from*n:to*n], v)
			return err
		})
	})
	return y, err
}

// AddGram implements quant.Algebra: with x rounded to BF16 where the model that x comes
// from is observed in it, whose own products have rounded it so.
func (l *Lab) AddGram(ctx context.Context, sum, x []float32, k int) error {
	_, bf16, err := l.Precision.resolve(l.Engine)
	if err != nil {
		return err
	}
	if bf16 != nil {
		if size := bf16.BF16Size(len(x)/k, k); size > 0 {
			packed, _ := l.packed.Get().(*[]byte)
			if packed == nil || cap(*packed) < size {
				packed = new(make([]byte, size))
			}
			defer l.packed.Put(packed)
			return bf16.AddGramBF16(sum, x, k, (*packed)[:size], l.threads())
		}
	}
	return l.addGram(ctx, sum, x, k)
}

// exact is a lab whose Gram matrices are always those of FP32 values.
type exact struct{ *Lab }

var _ quant.Algebra = exact{}

// AddGram implements quant.Algebra.
func (e exact) AddGram(ctx context.Context, sum, x []float32, k int) error {
	return e.addGram(ctx, sum, x, k)
}

// addGram is AddGram in FP32. A tile is some columns of the lower triangle.
func (l *Lab) addGram(ctx context.Context, sum, x []float32, k int) error {
	rows := len(x) / k
	columns := make([]float32, len(x)) // [k, rows]: what a tile reads lies together
	err := l.tiles(k, gramTile, func(from, to int) error {
		for r := 0; r < rows; r += gramStripe {
			for c := from; c < to; c++ {
				column := columns[c*rows : (c+1)*rows]
				for i := r; i < min(r+gramStripe, rows); i++ {
					column[i] = x[i*k+c]
				}
			}
		}
		return nil
	})
	if err != nil {
		return err
	}
	return l.tiles(k, gramTile, func(from, to int) error {
		part := func(from, to int) *tensor.Tensor {
			return tensor.From(columns[from*rows:to*rows], int64(to-from), int64(rows))
		}
		return l.product(ctx, tensor.Float32, "Gemm", part(from, k), part(from, to), func(t *tensor.Tensor) error {
			v, err := t.F32()
			w := to - from
			for i := range len(v) / w {
				begin, own := quant.TriangleRow(from+i)+from, min(i+1, w)
				row := sum[begin : begin+own]
				for j, p := range v[i*w : i*w+own] {
					row[j] += p
				}
			}
			return err
		}, graph.AttrInt("transB", 1))
	})
}

// Loops are the engine's, nil when it has none.
func (l *Lab) Loops() quant.Loops {
	loops, _ := l.Engine.(quant.Loops)
	return loops
}

// SubProduct implements quant.Algebra.
func (l *Lab) SubProduct(ctx context.Context, c, a []float64, stride, m, k int, b []float64, n int) error {
	return l.tiles(m, 4*rowTile, func(from, to int) error {
		rows := a[from*stride:]
		if stride != k { // the engine takes what lies together
			buf, _ := l.rows.Get().(*[]float64)
			if buf == nil || cap(*buf) < (to-from)*k {
				buf = new(make([]float64, (to-from)*k))
			}
			defer l.rows.Put(buf)
			rows = (*buf)[:(to-from)*k]
			for i := range to - from {
				copy(rows[i*k:(i+1)*k], a[(from+i)*stride:])
			}
		}
		return l.product(ctx, tensor.Float64, "Gemm", tensor.From(rows[:(to-from)*k], int64(to-from), int64(k)), tensor.From(b, int64(n), int64(k)), func(t *tensor.Tensor) error {
			row := c[from*n : to*n]
			for i, v := range tensor.View[float64](t) {
				row[i] -= v
			}
			return nil
		}, graph.AttrInt("transB", 1))
	})
}

// tiles calls f for each tile of [0,n), on as many goroutines as the lab has threads.
func (l *Lab) tiles(n, size int, f func(from, to int) error) error {
	return eachOf((n+size-1)/size, l.threads(), func(i int) error { return f(i*size, min((i+1)*size, n)) })
}

// eachOf calls f for each of n items on as many goroutines as workers, this one among
// them. After an error, of which it returns the first item's, it begins no more.
func eachOf(n, workers int, f func(i int) error) error {
	errs := make([]error, n)
	var next atomic.Int64
	work := func() {
		for i := int(next.Add(1) - 1); i < n; i = int(next.Add(1) - 1) {
			if errs[i] = f(i); errs[i] != nil {
				next.Store(int64(n))
			}
		}
	}
	var wg sync.WaitGroup
	for range min(workers, n) - 1 {
		wg.Go(work)
	}
	work()
	wg.Wait()
	return cmp.Or(errs...)
}

// product runs the operator on a and b and hands its result over while it is valid.
func (l *Lab) product(ctx context.Context, typ tensor.DType, op string, a, b *tensor.Tensor, use func(*tensor.Tensor) error, attrs ...*pb.AttributeProto) error {
	s, err := l.kernel(ctx, typ, op, attrs)
	if err != nil {
		return err
	}
	r, err := s.Run(ctx, engine.Feeds{"a": a, "b": b}, nil)
	if err != nil {
		return err
	}
	defer r.Close()
	return use(r.Tensors()["y"])
}

// kernel opens the model of one operator, once.
func (l *Lab) kernel(ctx context.Context, typ tensor.DType, op string, attrs []*pb.AttributeProto) (engine.Session, error) {
	key := typ.String() + op
	for _, a := range attrs {
		key += a.GetName()
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if s := l.kernels[key]; s != nil {
		return s, nil
	}
	value := func(name string) *graph.Value {
		return &graph.Value{Name: name, Type: typ, Dims: []graph.Dim{{N: -1, Name: name + "0"}, {N: -1, Name: name + "1"}}}
	}
	m := &graph.Model{IR: 8, Opsets: map[string]int64{graph.DomainONNX: 13}, Graph: &graph.Graph{
		Name: "product", Inputs: []*graph.Value{value("a"), value("b")}, Outputs: []*graph.Value{value("y")},
		Nodes: []*graph.Node{graph.NewNode("", op, "", []string{"a", "b"}, []string{"y"}, attrs...)},
	}}
	s, err := l.Open(ctx, m, nil, engine.Options{Threads: 1})
	if err != nil {
		return nil, err
	}
	if l.kernels == nil {
		l.kernels = map[string]engine.Session{}
	}
	l.kernels[key] = s
	return s, nil
}
