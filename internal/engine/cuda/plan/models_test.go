package plan_test

import (
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/fewbit/fewbit/internal/engine/cuda/plan"
	"github.com/fewbit/fewbit/internal/engine/cuda/plan/reference"
	"github.com/fewbit/fewbit/internal/graph"
	"github.com/fewbit/fewbit/internal/ops/opstest"
	"github.com/fewbit/fewbit/internal/quant"
	"github.com/fewbit/fewbit/internal/tensor"
)

// TestRealModels: the models that `make deps` brings can be planned in the native
// form, into few steps, and the small one computes what ONNX Runtime does.
func TestRealModels(t *testing.T) {
	ids := func(batch, length int64) map[string]*tensor.Tensor {
		n := batch * length
		v, mask, types := make([]int64, n), make([]int64, n), make([]int64, n)
		for i := range v {
			v[i], mask[i] = int64(1000+i*37%20000), 1
			if int64(i)%length > length*3/4 && int64(i) > length {
				mask[i] = 0
			}
		}
		return map[string]*tensor.Tensor{"input_ids": tensor.From(v, batch, length), "attention_mask": tensor.From(mask, batch, length), "token_type_ids": tensor.From(types, batch, length)}
	}
	image := newSmall(17).random(tensor.Float32, 1, 3, 224, 224)
	for _, c := range []struct {
		path   string
		scheme quant.Scheme
		feeds  map[string]*tensor.Tensor
		steps  string
		run    bool
	}{
		{"minilm", quant.INT8Dynamic, ids(2, 12), "cast 1, binary 2, embed 1, layer_norm 13, gemm_s8 25, attention 6, quantize_rows 13, gather 1, unary 1", true},
		{"bert-base", quant.INT8Dynamic, ids(1, 128), "embed 1, layer_norm 25, cast 1, binary 2, gemm_s8 49, attention 12, quantize_rows 25, gather 1, unary 1", false},
		{"efficientnet-lite0", quant.INT8, map[string]*tensor.Tensor{"input": image},
			"nchw_to_nhwc_s8 1, conv_s8 49, dequantize_tensor 19, binary 9, quantize_tensor 9, global_average_f32 1, quantize_rows 1, gemm_s8 1", false},
	} {
		t.Run(c.path+" "+string(c.scheme), func(t *testing.T) {
			path := filepath.Join("../../../../.deps/models", c.path, "model.onnx")
			if _, err := os.Stat(path); err != nil {
				t.Skipf("needs %s (make deps)", path)
			}
			m, err := graph.Open(path)
			if err != nil {
				t.Fatal(err)
			}
			defer m.Close()
			q := opstest.Native(t, m, c.scheme)
			start := time.Now()
			src, err := plan.New(q)
			if err != nil {
				t.Fatal(err)
			}
			prepared := time.Since(start)
			p, err := src.Plan(dimsOf(c.feeds), plan.Options{})
			if err != nil {
				t.Fatal(err)
			}
			first := time.Since(start) - prepared
			if _, err := src.Plan(dimsOf(c.feeds), plan.Options{}); err != nil {
				t.Fatal(err)
			}
			check(t, p)
			t.Logf("%d steps: %s; arena %d; prepared in %v, planned in %v, again in %v", len(p.Steps), count(p), p.Arena, prepared, first, time.Since(start)-prepared-first)
			if count(p) != c.steps {
				t.Errorf("steps %s, want %s", count(p), c.steps)
			}
			if !c.run {
				return
			}
			got, err := reference.Run(p, c.feeds)
			if err != nil {
				t.Fatal(err)
			}
			// Where a float lies between two codes its last bit decides, and the layers
			// behind it widen that: ONNX Runtime with and without its optimizations is
			// 0.04 apart here. What quantization itself costs is the yardstick.
			float := opstest.Run(t, opstest.Engine(t), path, c.feeds)
			for name, w := range opstest.Run(t, opstest.Engine(t), opstest.Save(t, q), c.feeds) {
				d, noise := difference(got[name], w), difference(float[name], w)
				t.Logf("%s: difference %.2g, from the float model %.2g", name, d, noise)
				if d > noise {
					t.Errorf("%s differs by %.2g, quantization cost %.2g", name, d, noise)
				}
			}
		})
	}
}
