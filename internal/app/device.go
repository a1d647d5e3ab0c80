package app

import (
	"context"
	"log/slog"

	"github.com/fewbit/fewbit/internal/engine"
	"github.com/fewbit/fewbit/internal/engine/cuda"
	"github.com/fewbit/fewbit/internal/telemetry"
)

// gpu is the executor of a server, and what answers when it cannot.
type gpu struct {
	engine   *cuda.Engine
	fallback *cuda.Fallback
}

// openGPU puts the GPU before cpu where the binary and the settings allow it;
// nil leaves models on the CPU. A machine without a GPU is no error.
func openGPU(ctx context.Context, device string, cpu engine.Engine, log *slog.Logger) *gpu {
	if device == DeviceCPU || !cuda.Built {
		return nil
	}
	say := func(p engine.Placement) {
		if p.Reason == "" {
			log.Info("models run on the GPU", "device", p.Device)
			return
		}
		log.Warn("models run on the CPU", "reason", p.Reason, "retry", p.Retry)
	}
	g := &gpu{engine: cuda.New(cuda.Config{})}
	g.fallback = cuda.NewFallback(ctx, cuda.FallbackConfig{GPU: g.engine, CPU: cpu, Changed: say})
	if p := g.fallback.Status(); p.Reason == "" || device == DeviceCUDA {
		say(p)
	}
	return g
}

// meter attributes the energy of a version's runs to it.
func (a *App) meter(model, version string) engine.Meter {
	return func(gpu string, requests int) func(bool) {
		if gpu == "" {
			return a.telemetry.CPUEnergy().Run(telemetry.Packages, model, version, requests)
		}
		return a.telemetry.Energy().Run(gpu, model, version, requests)
	}
}

func (g *gpu) Close() error {
	if g == nil {
		return nil
	}
	g.fallback.Close()
	return g.engine.Close()
}
