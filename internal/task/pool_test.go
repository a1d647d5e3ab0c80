package task

import (
	"errors"
	"math"
	"os"
	"path/filepath"
	"testing"

	"github.com/fewbit/fewbit/internal/engine"
	"github.com/fewbit/fewbit/internal/tensor"
)

func TestReadPooling(t *testing.T) {
	for text, want := range map[string]Pooling{
		"":                                MeanPooling,
		`{"pooling_mode_cls_token":true}`: CLSPooling,
		`{"pooling_mode_mean_tokens":true,"word_embedding_dimension":384}`: MeanPooling,
		`{"pooling_mode_max_tokens":true}`:                                 MaxPooling,
		`{"pooling_mode_cls_token":true,"pooling_mode_max_tokens":true}`:   "",
		`{"pooling_mode_lasttoken":true}`:                                  "",
		`{`:                                                                "",
	} {
		dir := t.TempDir()
		if text != "" {
			if err := os.MkdirAll(filepath.Join(dir, "1_Pooling"), 0o755); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(filepath.Join(dir, filepath.FromSlash(PoolingFile)), []byte(text), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		got, err := ReadPooling(dir)
		if got != want || (want == "") != errors.Is(err, ErrConfig) {
			t.Errorf("%s: %q, %v; want %q", text, got, err, want)
		}
	}
}

func TestPool(t *testing.T) {
	// Two texts of 2 and 1 tokens; the padding must not count.
	x := tensor.From([]float32{1, -4, 3, 2, 5, 6, 99, 99}, 2, 2, 2)
	for p, want := range map[Pooling][]float32{MeanPooling: {2, -1, 5, 6}, CLSPooling: {1, -4, 5, 6}, MaxPooling: {3, 2, 5, 6}} {
		got, err := p.Pool(x, []int{2, 1})
		if err != nil || got[0][0] != want[0] || got[0][1] != want[1] || got[1][0] != want[2] || got[1][1] != want[3] {
			t.Errorf("%s: %v, %v; want %v", p, got, err, want)
		}
	}
	if got, err := MeanPooling.Pool(tensor.From([]float32{3, 4}, 1, 2), []int{7}); err != nil || got[0][1] != 4 {
		t.Errorf("a pooled output: %v, %v", got, err)
	}
	for _, bad := range []*tensor.Tensor{tensor.From([]float32{1}, 1), tensor.From([]float32{1, 2}, 2, 1), tensor.From([]float32{1, 2}, 1, 2, 1)} {
		if _, err := MeanPooling.Pool(bad, []int{3}); !errors.Is(err, ErrNotEmbedding) {
			t.Errorf("shape %v: %v", bad.Dims, err)
		}
	}
}

func TestNormalize(t *testing.T) {
	v := []float32{3, 4}
	Normalize(v)
	if math.Abs(float64(v[0])-0.6) > 1e-7 || math.Abs(float64(v[1])-0.8) > 1e-7 {
		t.Error(v)
	}
	zero := []float32{0, 0}
	if Normalize(zero); zero[0] != 0 {
		t.Error(zero)
	}
}

func TestEmbeddingOutput(t *testing.T) {
	out := func(name string, rank int) engine.IO {
		return engine.IO{Name: name, Type: tensor.Float32, Dims: make([]int64, rank)}
	}
	for _, c := range []struct {
		outs   []engine.IO
		name   string
		pooled bool
	}{
		{[]engine.IO{out("last_hidden_state", 3), out("pooler_output", 2)}, "last_hidden_state", false},
		{[]engine.IO{out("token_embeddings", 3), out("sentence_embedding", 2)}, "sentence_embedding", true},
		{[]engine.IO{out("y", 2)}, "y", true},
		{[]engine.IO{out("a", 2), out("b", 2)}, "", false},
		{nil, "", false},
	} {
		name, pooled, err := EmbeddingOutput(engine.IOSpec{Outputs: c.outs})
		if name != c.name || pooled != c.pooled || (err != nil) != (c.name == "") {
			t.Errorf("%v: %q %v %v", c.outs, name, pooled, err)
		}
	}
}
