//go:build !cuda

package main

import "github.com/fewbit/fewbit/internal/engine/cuda/device"

func cublasLt(*device.Device) string { return "" }
