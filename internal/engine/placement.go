package engine

import (
	"fmt"
	"time"
)

// Placement says which engine answers for a model, and why it is not another.
type Placement struct {
	// Engine is the name of the engine that answers now: "cuda" or "ort-cpu".
	Engine string `json:"engine" doc:"the engine that answers now"`
	// Device is where it runs, "" on the CPU.
	Device string `json:"device,omitempty" doc:"the GPU it runs on"`
	// Reason says why what the model's form is for does not answer (the GPU, or
	// fewbit's kernels on the CPU), "" when it does.
	Reason string `json:"reason,omitempty" doc:"why the GPU, or fewbit's kernels on the CPU, do not answer"`
	// Since is when Engine or Reason last changed.
	Since time.Time `json:"since" doc:"when engine or reason last changed"`
	// Retry is the earliest time at which the GPU is tried again, zero: never,
	// or it answers.
	Retry time.Time `json:"retry,omitzero" doc:"when the GPU is tried again"`
	// GPU and CPU count the requests that each answered.
	GPU uint64 `json:"gpu_requests" doc:"requests that the GPU answered"`
	CPU uint64 `json:"cpu_requests" doc:"requests that the CPU answered"`
}

// Placed is a session that knows its placement.
type Placed interface{ Placement() Placement }

// String is for logs: "cuda on NVIDIA H100" or "onnxruntime: no CUDA device".
func (s Placement) String() string {
	if s.Reason == "" {
		return fmt.Sprintf("%s on %s", s.Engine, s.Device)
	}
	return fmt.Sprintf("%s: %s", s.Engine, s.Reason)
}
