package cuda

import (
	"github.com/fewbit/fewbit/internal/calib"
	"github.com/fewbit/fewbit/internal/engine/cuda/observe"
	"github.com/fewbit/fewbit/internal/engine/cuda/plan"
)

// Config says how an Engine uses its device. The zero value is the default.
type Config struct {
	// Ordinal is the number of the GPU, in the order of CUDA_VISIBLE_DEVICES.
	Ordinal int
	// Streams is how many requests of one model run at a time, each with working
	// memory of its own; 0 is 2: one computes while the other copies.
	Streams int
	// Shapes is how many sets of input shapes of one model are kept planned; 0 is 64.
	Shapes int
	// Scores is how attention multiplies queries and keys: plan.F32, the zero
	// value, by float32 fma; plan.F16 on tensor cores; plan.S8 on codes.
	Scores plan.Type
	// Products is how float products multiply; plan.FP32, the zero value, is exact.
	Products plan.Arithmetic
	// MaxMemory bounds the working memory of one stream in bytes; 0 is
	// plan.MaxArena.
	MaxMemory int64
	// NoGraphs launches each kernel by itself instead of recording CUDA graphs.
	NoGraphs bool

	//lint:ignore U1000 watch.go sets it, in builds with CUDA
	keepInputs bool // they are observed
}

// WatchConfig says what a Watch observes. Names are those of the model's inputs
// and outputs.
type WatchConfig struct {
	Specs map[string]calib.Spec
	// Rows take samples of the rows (the last axis) of tensors.
	Rows map[string]observe.Rows
}
