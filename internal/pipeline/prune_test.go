package pipeline

import (
	"context"
	"errors"
	"path/filepath"
	"strings"
	"testing"

	"github.com/fewbit/fewbit/internal/graph"
	"github.com/fewbit/fewbit/internal/onnx"
	"github.com/fewbit/fewbit/internal/quant"
	"github.com/fewbit/fewbit/internal/tensor"
)

// TestPruneThenQuantize prunes both networks, and finds the zeros in the codes of
// every form made of the result.
func TestPruneThenQuantize(t *testing.T) {
	p := testPipeline(t)
	ctx := context.Background()
	for _, k := range cases() {
		src, calib := save(t, k.m), npy(t, 3, k.data...)
		for _, method := range quant.PruneMethods {
			out := filepath.Join(t.TempDir(), "sparse.onnx")
			rep, err := p.Prune(ctx, PruneRequest{Model: src, Out: out, Sparsity: quant.Sparsity{Share: .5, Pattern: k.name == "mlp"}, Method: method, Calib: calib, Samples: 60}, nil)
			if err != nil {
				t.Fatalf("%s, %s: %v", k.name, method, err)
			}
			s := rep.Sparsity
			if share := float64(s.Zeros) / float64(s.Elements); share < .49 || share > .501 || s.CompressedAfter >= s.CompressedBefore {
				t.Errorf("%s, %s: %+v", k.name, method, s)
			}
			for _, c := range []quant.Config{{}, {Target: quant.QDQ, Weights: quant.MSEWeights}, {Scheme: quant.INT4}} {
				small := filepath.Join(t.TempDir(), "small.onnx")
				if _, err := p.Quantize(ctx, Request{Model: out, Out: small, Calib: calib, Samples: 60, Config: c, Force: true, NoLatency: true}, nil); err != nil {
					t.Fatalf("%s, %s, %+v: %v", k.name, method, c, err)
				}
				m, err := graph.Open(small)
				if err != nil {
					t.Fatal(err)
				}
				codes, zeros := 0, 0
				for _, name := range m.Graph.Inits() {
					w := m.Graph.Init(name)
					switch {
					case w.Type == tensor.Int8 && w.Len() >= 512:
						for _, b := range w.Data {
							codes++
							if b == 0 {
								zeros++
							}
						}
					case w.Type == tensor.Uint8 && len(w.Dims) == 3:
						for _, b := range w.Data { // two codes a byte, 8 stands for 0
							codes += 2
							if b&15 == 8 {
								zeros++
							}
							if b>>4 == 8 {
								zeros++
							}
						}
					}
				}
				// The depthwise convolution and the padding of blocks are in none of both.
				if k.name == "mlp" && (codes == 0 || zeros*2 < codes) {
					t.Errorf("%s, %s, %+v: %d of %d codes are zero", k.name, method, c, zeros, codes)
				}
				m.Close()
			}
		}
	}
}

// TestPruneRefusesData: what the data do not suffice for names the operator and
// what to do, and writes nothing.
func TestPruneRefusesData(t *testing.T) {
	p := testPipeline(t)
	ctx := context.Background()
	src, calib := save(t, cnn()), npy(t, 3, 4, 3, 16, 16)
	out := filepath.Join(t.TempDir(), "sparse.onnx")
	half := quant.Sparsity{Share: .5}
	dead := cnn() // its head reads zeros only
	dead.Graph.SetInit("six", tensor.From([]float32{0}))
	for i, v := range tensor.View[float32](dead.Graph.Init("b3")) {
		tensor.View[float32](dead.Graph.Init("b3"))[i] = 0 * v
	}
	for name, c := range map[string]struct {
		req  PruneRequest
		want error
		text string
	}{
		"no data":   {PruneRequest{Model: src, Sparsity: half, Method: quant.Wanda}, quant.ErrConfig, "looks at the operators' inputs"},
		"dead":      {PruneRequest{Model: save(t, dead), Sparsity: half, Calib: calib, Method: quant.SparseGPT}, quant.ErrSingular, "always zero"},
		"all left":  {PruneRequest{Model: src, Sparsity: half, Exclude: []string{"Conv", "Gemm"}}, quant.ErrNothing, "excluded by the user"},
		"a pattern": {PruneRequest{Model: src, Sparsity: quant.Sparsity{Share: .3, Pattern: true}}, quant.ErrConfig, "not 0.3 of them"},
	} {
		c.req.Out = out
		if _, err := p.Prune(ctx, c.req, nil); !errors.Is(err, c.want) || !strings.Contains(err.Error(), c.text) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := onnx.Open(out); err == nil {
		t.Error("a refused run wrote a model")
	}
}
