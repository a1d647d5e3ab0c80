package batch

import (
	"context"
	"errors"
	"testing"

	"github.com/fewbit/fewbit/internal/engine"
	"github.com/fewbit/fewbit/internal/engine/fake"
	"github.com/fewbit/fewbit/internal/tensor"
)

// TestIndependent: which models' requests may share a run is tried out, since shapes
// do not tell.
func TestIndependent(t *testing.T) {
	rows := engine.IOSpec{
		Inputs:  []engine.IO{{Name: "x", Type: tensor.Float32, Dims: []int64{-1, 4}, DimNames: []string{"n", ""}}},
		Outputs: []engine.IO{{Name: "y", Type: tensor.Float32, Dims: []int64{-1, 4}, DimNames: []string{"n", ""}}},
	}
	texts := engine.IOSpec{
		Inputs: []engine.IO{
			{Name: "input_ids", Type: tensor.Int64, Dims: []int64{-1, -1}, DimNames: []string{"n", "seq"}},
			{Name: "attention_mask", Type: tensor.Int64, Dims: []int64{-1, -1}, DimNames: []string{"n", "seq"}},
		},
		Outputs: []engine.IO{{Name: "y", Type: tensor.Float32, Dims: []int64{-1, 1}, DimNames: []string{"n", ""}}},
	}
	images := engine.IOSpec{
		Inputs:  []engine.IO{{Name: "x", Type: tensor.Float32, Dims: []int64{-1, 3, -1, -1}, DimNames: []string{"n", "", "h", "w"}}},
		Outputs: []engine.IO{{Name: "y", Type: tensor.Float32, Dims: []int64{-1, 1}, DimNames: []string{"n", ""}}},
	}
	// each maps the elements of every row of a matrix, all of them at once.
	each := func(f func(x []float32, rows int)) func(engine.Feeds) (engine.Feeds, error) {
		return func(in engine.Feeds) (engine.Feeds, error) {
			y := in["x"].Clone()
			f(tensor.View[float32](y), int(y.Dims[0]))
			return engine.Feeds{"y": y}, nil
		}
	}
	// count adds up the tokens of every row that a mask leaves, or all of them.
	count := func(masked bool) func(engine.Feeds) (engine.Feeds, error) {
		return func(in engine.Feeds) (engine.Feeds, error) {
			ids, mask := in["input_ids"], tensor.View[int64](in["attention_mask"])
			y, err := tensor.New(tensor.Float32, ids.Dims[0], 1)
			for i, v := range tensor.View[int64](ids) {
				if !masked || mask[i] != 0 {
					tensor.View[float32](y)[int64(i)/ids.Dims[1]] += float32(v + 1)
				}
			}
			return engine.Feeds{"y": y}, err
		}
	}
	codes := engine.IOSpec{Inputs: rows.Inputs, Outputs: []engine.IO{{Name: "y", Type: tensor.Int8, Dims: []int64{-1, 1}, DimNames: []string{"n", ""}}}}
	code := func(of func(rows int) int8) func(engine.Feeds) (engine.Feeds, error) {
		return func(in engine.Feeds) (engine.Feeds, error) {
			n := in["x"].Dims[0]
			y := make([]int8, n)
			for i := range y {
				y[i] = of(int(n))
			}
			return engine.Feeds{"y": tensor.From(y, n, 1)}, nil
		}
	}
	for _, c := range []struct {
		name string
		spec engine.IOSpec
		run  func(engine.Feeds) (engine.Feeds, error)
		want bool
	}{
		{"each row by itself", rows, each(func(x []float32, _ int) {
			for i := range x {
				x[i] *= 3
			}
		}), true},
		{"roundings differ", rows, each(func(x []float32, rows int) {
			for i := range x {
				x[i] += 1e-3 * float32(rows)
			}
		}), true},
		{"centred over the rows", rows, each(func(x []float32, rows int) {
			for c := range 4 {
				sum := float32(0)
				for r := range rows {
					sum += x[r*4+c]
				}
				for r := range rows {
					x[r*4+c] -= sum / float32(rows)
				}
			}
		}), false},
		{"summed up over the rows", rows, each(func(x []float32, _ int) {
			for i := 4; i < len(x); i++ {
				x[i] += x[i-4]
			}
		}), false},
		{"a mask that counts", texts, count(true), true},
		{"a mask that does not", texts, count(false), false},
		{"one row only", rows, func(in engine.Feeds) (engine.Feeds, error) {
			if in["x"].Dims[0] > 1 {
				return nil, errors.New("one row, please")
			}
			return engine.Feeds{"y": in["x"]}, nil
		}, false},
		{"codes a step apart", codes, code(func(rows int) int8 { return int8(100 - rows%2) }), true},
		{"codes of the batch", codes, code(func(rows int) int8 { return int8(40 * rows) }), false},
		{"images of some size", images, func(in engine.Feeds) (engine.Feeds, error) {
			x := in["x"]
			if x.Dims[2] < 64 {
				return nil, errors.New("too small")
			}
			y, err := tensor.New(tensor.Float32, x.Dims[0], 1)
			n := x.Len() / x.Dims[0]
			for i, v := range tensor.View[float32](x) {
				tensor.View[float32](y)[int64(i)/n] += v
			}
			return engine.Feeds{"y": y}, err
		}, true},
		{"nothing runs", rows, func(engine.Feeds) (engine.Feeds, error) { return nil, errors.New("no") }, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			e := &fake.Engine{}
			e.Add(fake.Any, fake.Model{Spec: c.spec, Run: c.run})
			s, err := e.OpenFile(t.Context(), "m.onnx", engine.Options{})
			if err != nil {
				t.Fatal(err)
			}
			defer s.Close()
			if got, err := Independent(t.Context(), s); err != nil || got != c.want {
				t.Errorf("got %v, %v, want %v", got, err, c.want)
			}
			ctx, cancel := context.WithCancel(t.Context())
			cancel()
			if _, err := Independent(ctx, s); !errors.Is(err, context.Canceled) {
				t.Errorf("after the end of its context: %v", err)
			}
		})
	}
}
