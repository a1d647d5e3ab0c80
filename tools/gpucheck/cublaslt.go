//go:build cuda

package main

import (
	"github.com/fewbit/fewbit/cuda"
	"github.com/fewbit/fewbit/internal/engine/cuda/device"
)

// cublasLt says which cuBLASLt the float products use.
func cublasLt(d *device.Device) (about string) {
	_ = d.Do(func() error { _, about = cuda.CublasLt(); return nil }) // an error leaves it ""
	return about
}
