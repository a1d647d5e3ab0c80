package app

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/fewbit/fewbit/internal/engine"
	"github.com/fewbit/fewbit/internal/engine/ort"
	"github.com/fewbit/fewbit/internal/tensor"
)

// peakCommand is the hidden argument of both binaries under which they measure
// one model's memory: a peak belongs to a process, so each model gets its own.
const peakCommand = "peak-memory"

// PeakMemory runs this program again to measure the peak resident size in
// bytes of a process that opens the model at path and runs it. library is the
// ONNX Runtime to use, "" looks for it.
func PeakMemory(ctx context.Context, library, path string) (int64, error) {
	exe, err := os.Executable()
	if err != nil {
		return 0, fmt.Errorf("measure memory: %w", err)
	}
	cmd := exec.CommandContext(ctx, exe, peakCommand, path)
	cmd.WaitDelay = time.Second
	if library != "" {
		cmd.Env = append(os.Environ(), ort.EnvLibrary+"="+library)
	}
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil {
		if ctx.Err() != nil {
			return 0, ctx.Err()
		}
		return 0, fmt.Errorf("measure memory: %w: %s", err, strings.TrimSpace(stderr.String()))
	}
	n, err := strconv.ParseInt(strings.TrimSpace(stdout.String()), 10, 64)
	if err != nil || n <= 0 {
		return 0, errors.New("measure memory: the measuring process gave no number")
	}
	return n, nil
}

func peakMemoryIn(library string) func(context.Context, string) (int64, error) {
	return func(ctx context.Context, path string) (int64, error) { return PeakMemory(ctx, library, path) }
}

// NewPeakMemoryCommand returns the hidden command that PeakMemory runs. Both
// binaries add it to their root command.
func NewPeakMemoryCommand() *cobra.Command {
	return &cobra.Command{
		Use: peakCommand + " MODEL.onnx", Hidden: true, Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error { return measurePeak(cmd.Context(), cmd.OutOrStdout(), args[0]) },
	}
}

// Sizes that stand for variable dimensions: the first is the batch.
const (
	peakBatch  = 1
	peakLength = 128
	peakRuns   = 3
)

// measurePeak opens and runs the model and writes this process's peak resident
// size, in bytes.
func measurePeak(ctx context.Context, w io.Writer, path string) error {
	e, err := ort.New(ort.Config{})
	if err != nil {
		return err
	}
	s, err := e.OpenFile(ctx, path, engine.Options{})
	if err != nil {
		return err
	}
	defer s.Close()
	feeds, err := stand(s.Spec())
	if err != nil {
		return err
	}
	for range peakRuns {
		r, err := s.Run(ctx, feeds, nil)
		if err != nil {
			return err
		}
		r.Close()
	}
	m, err := engine.ReadMemory()
	if err != nil {
		return err
	}
	_, err = fmt.Fprintln(w, m.Peak)
	return err
}

// stand returns inputs of zeros, and of ones for attention masks: they are
// valid token ids and positions for every model.
func stand(spec engine.IOSpec) (engine.Feeds, error) {
	in := engine.Feeds{}
	for _, io := range spec.Inputs {
		dims := make([]int64, len(io.Dims))
		for i, d := range io.Dims {
			switch {
			case d >= 0:
				dims[i] = d
			case i == 0:
				dims[i] = peakBatch
			default:
				dims[i] = peakLength
			}
		}
		t, err := tensor.New(io.Type, dims...)
		if err != nil {
			return nil, fmt.Errorf("input %s: %w", io.Name, err)
		}
		if strings.Contains(strings.ToLower(io.Name), "mask") {
			t = ones(t)
		}
		in[io.Name] = t
	}
	return in, nil
}

// ones returns t with every element 1, where it has a type that masks have.
func ones(t *tensor.Tensor) *tensor.Tensor {
	n := int(t.Len())
	switch t.Type {
	case tensor.Int64:
		return tensor.From(slices.Repeat([]int64{1}, n), t.Dims...)
	case tensor.Int32:
		return tensor.From(slices.Repeat([]int32{1}, n), t.Dims...)
	case tensor.Float32:
		return tensor.From(slices.Repeat([]float32{1}, n), t.Dims...)
	}
	return t
}
