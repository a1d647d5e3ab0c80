package ort

import (
	"testing"

	"github.com/fewbit/fewbit/internal/engine"
	"github.com/fewbit/fewbit/internal/tensor"
)

func TestAdd(t *testing.T) {
	s := open(t, add("n", 2), engine.Options{})
	in := engine.Feeds{"a": tensor.From([]float32{1, 2, 3, 4}, 2, 2), "b": tensor.From([]float32{10, 20, 30, 40}, 2, 2)}
	y := run(t, s, in).Tensors()["sum"]
	t.Log(tensor.View[float32](y), s.Spec(), newEngine(t))
}

