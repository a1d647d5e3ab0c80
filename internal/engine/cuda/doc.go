// Package cuda is the engine that executes models on an NVIDIA GPU with
// fewbit's own kernels, and the Fallback that puts ONNX Runtime behind it.
//
// A model is planned for each set of input shapes (package plan), its weights
// are uploaded once, and the steps of a plan are recorded as a CUDA graph that a
// request launches (package device). Without the build tag cuda, New returns an
// engine that is unavailable and says so; Fallback then answers on the CPU.
package cuda
