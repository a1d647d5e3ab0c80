package cuda_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/fewbit/fewbit/internal/engine"
	"github.com/fewbit/fewbit/internal/engine/cuda"
	"github.com/fewbit/fewbit/internal/engine/cuda/device"
	"github.com/fewbit/fewbit/internal/engine/cuda/plan"
	"github.com/fewbit/fewbit/internal/engine/fake"
	"github.com/fewbit/fewbit/internal/tensor"
)

// gpu is an engine whose device a test breaks. It answers x + 1, as the CPU does.
type gpu struct {
	fake.Engine
	probe, run, open, reset atomic.Pointer[error]
	resets, opens, runs     atomic.Int64
}

func fail(p *atomic.Pointer[error], err error) {
	if err == nil {
		p.Store(nil)
	} else {
		p.Store(&err)
	}
}

func now(p *atomic.Pointer[error]) error {
	if e := p.Load(); e != nil {
		return *e
	}
	return nil
}

func (g *gpu) Name() string { return "gpu" }

func (g *gpu) Probe(context.Context) (engine.Device, error) {
	return engine.Device{Name: "test device", UUID: "GPU-1"}, now(&g.probe)
}

func (g *gpu) OpenFile(ctx context.Context, path string, o engine.Options) (engine.Session, error) {
	g.opens.Add(1)
	if err := now(&g.open); err != nil {
		return nil, err
	}
	return g.Engine.OpenFile(ctx, path, o)
}

func (g *gpu) Reset() error {
	g.resets.Add(1)
	return now(&g.reset)
}

type cpu struct{ fake.Engine }

func (*cpu) Name() string { return "cpu" }

// clock is the time of a test.
type clock struct {
	mu sync.Mutex
	t  time.Time
}

func (c *clock) now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.t
}

func (c *clock) pass(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.t = c.t.Add(d)
}

type bench struct {
	t   *testing.T
	gpu *gpu
	cpu *cpu
	c   *clock
	f   *cuda.Fallback
	s   engine.Session
}

func plusOne(in engine.Feeds) (engine.Feeds, error) {
	v := tensor.View[float32](in["x"])
	r := make([]float32, len(v))
	for i := range v {
		r[i] = v[i] + 1
	}
	return engine.Feeds{"y": tensor.From(r, int64(len(r)))}, nil
}

var spec = engine.IOSpec{
	Inputs:  []engine.IO{{Name: "x", Type: tensor.Float32, Dims: []int64{-1}}},
	Outputs: []engine.IO{{Name: "y", Type: tensor.Float32, Dims: []int64{-1}}},
}

// newBench opens a model; breakAt may break the GPU before.
func newBench(t *testing.T, breakAt func(*gpu)) *bench {
	b := &bench{t: t, gpu: &gpu{}, cpu: &cpu{}, c: &clock{t: time.Unix(1e9, 0)}}
	b.gpu.Add(fake.Any, fake.Model{Spec: spec, Run: func(in engine.Feeds) (engine.Feeds, error) {
		b.gpu.runs.Add(1)
		if err := now(&b.gpu.run); err != nil {
			return nil, err
		}
		return plusOne(in)
	}})
	b.cpu.Add(fake.Any, fake.Model{Spec: spec, Run: plusOne})
	if breakAt != nil {
		breakAt(b.gpu)
	}
	b.f = cuda.NewFallback(context.Background(), cuda.FallbackConfig{GPU: b.gpu, CPU: b.cpu, Now: b.c.now})
	t.Cleanup(b.f.Close)
	var err error
	if b.s, err = b.f.OpenFile(context.Background(), "model.onnx", engine.Options{}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = b.s.Close() })
	return b
}

// ask runs one request, checks the answer, and returns who gave it and why.
func (b *bench) ask() (name, why string) {
	b.t.Helper()
	r, err := b.s.Run(context.Background(), engine.Feeds{"x": tensor.From([]float32{1, 2}, 2)}, nil)
	if err != nil {
		b.t.Fatal(err)
	}
	defer r.Close()
	if y := tensor.View[float32](r.Tensors()["y"]); len(y) != 2 || y[0] != 2 || y[1] != 3 {
		b.t.Errorf("got %v", y)
	}
	return cuda.RanOn(r)
}

// on checks who answers one request, and that the reason says so.
func (b *bench) on(engine, reason string) {
	b.t.Helper()
	name, why := b.ask()
	if name != engine || !strings.Contains(why, reason) || (reason == "" && why != "") {
		b.t.Errorf("answered by %q (%s), want %q (%s)", name, why, engine, reason)
	}
}

// until waits for what an attempt in the background does.
func (b *bench) until(done func() bool) {
	b.t.Helper()
	for end := time.Now().Add(10 * time.Second); time.Now().Before(end); time.Sleep(time.Millisecond) {
		if done() {
			return
		}
	}
	b.t.Fatalf("it did not happen: %v", b.status())
}

// wait asks until the GPU answers.
func (b *bench) wait() {
	b.t.Helper()
	b.until(func() bool {
		name, _ := b.ask()
		return name == "gpu"
	})
}

func (b *bench) status() engine.Placement { return b.s.(*cuda.Session).Placement() }

func TestOnGPU(t *testing.T) {
	b := newBench(t, nil)
	b.on("gpu", "")
	st := b.status()
	if st.Engine != "gpu" || st.Device != "test device" || st.GPU != 1 || st.CPU != 0 || st.Reason != "" {
		t.Errorf("%+v", st)
	}
	if d, err := b.f.Probe(context.Background()); err != nil || d.Name != "test device" {
		t.Errorf("%v %v", d, err)
	}
	// What is wrong with the request stays so, and the CPU is not asked.
	for _, in := range []engine.Feeds{{}, {"x": tensor.From([]int64{1}, 1)}} {
		if _, err := b.s.Run(context.Background(), in, nil); !errors.Is(err, engine.ErrInput) {
			t.Errorf("got %v", err)
		}
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if _, err := b.s.Run(ctx, engine.Feeds{"x": tensor.From([]float32{1}, 1)}, nil); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
	if runs, _ := b.cpu.Runs(); runs != 0 {
		t.Errorf("the CPU was asked %d times", runs)
	}
	if err := b.s.Close(); err != nil {
		t.Error(err)
	}
	if _, err := b.s.Run(context.Background(), engine.Feeds{"x": tensor.From([]float32{1}, 1)}, nil); !errors.Is(err, engine.ErrClosed) {
		t.Errorf("after Close: %v", err)
	}
}

// TestAbsent: without a device nothing is tried again, and the reason is there.
func TestAbsent(t *testing.T) {
	b := newBench(t, func(g *gpu) { fail(&g.probe, fmt.Errorf("%w: no driver", device.ErrNoDevice)) })
	b.on("cpu", "no driver")
	b.c.pass(time.Hour)
	b.on("cpu", "no driver")
	st := b.f.Status()
	if st.Engine != "cpu" || !st.Retry.IsZero() || b.gpu.opens.Load() != 0 {
		t.Errorf("%+v, %d opens", st, b.gpu.opens.Load())
	}
	if d, err := b.f.Probe(context.Background()); err != nil || d.Name != "fake" {
		t.Errorf("%v %v", d, err)
	}
}

// TestRefused: a model or shape that the executor lacks something for runs on
// the CPU, others go on.
func TestRefused(t *testing.T) {
	b := newBench(t, func(g *gpu) { fail(&g.open, fmt.Errorf("%w: CumSum \"n\"", plan.ErrUnsupported)) })
	b.on("cpu", "CumSum")
	b.c.pass(time.Hour)
	b.on("cpu", "CumSum")
	if b.gpu.opens.Load() != 1 || !b.status().Retry.IsZero() {
		t.Errorf("%d opens, %+v", b.gpu.opens.Load(), b.status())
	}

	b = newBench(t, nil)
	fail(&b.gpu.run, fmt.Errorf("%w: this shape", plan.ErrUnsupported))
	b.on("cpu", "this shape")
	if st := b.status(); st.Engine != "cpu" || !strings.Contains(st.Reason, "this shape") || !st.Retry.IsZero() {
		t.Errorf("%+v", st)
	}
	fail(&b.gpu.run, nil)
	b.on("gpu", "") // at once
	if st := b.status(); st.Engine != "gpu" || st.Reason != "" {
		t.Errorf("%+v", st)
	}
}

// TestMemory: after the device ran out of memory it is left alone for a while,
// longer each time.
func TestMemory(t *testing.T) {
	b := newBench(t, nil)
	fail(&b.gpu.run, fmt.Errorf("%w: 3 bytes", device.ErrOutOfMemory))
	b.on("cpu", "3 bytes")
	for i, pause := range []time.Duration{time.Second, 2 * time.Second, 4 * time.Second} {
		before := b.gpu.runs.Load()
		b.c.pass(pause - time.Millisecond)
		b.on("cpu", "3 bytes")
		if b.gpu.runs.Load() != before {
			t.Errorf("attempt %d came early", i)
		}
		b.c.pass(time.Millisecond)
		b.on("cpu", "3 bytes")
		if b.gpu.runs.Load() != before+1 {
			t.Errorf("no attempt %d after %v", i, pause)
		}
	}
	if st := b.status(); st.Engine != "cpu" || st.Retry.IsZero() {
		t.Errorf("%+v", st)
	}
	fail(&b.gpu.run, nil)
	b.c.pass(time.Hour)
	b.on("gpu", "")
	b.on("gpu", "")
	if st := b.status(); st.Engine != "gpu" || st.Reason != "" || !st.Retry.IsZero() {
		t.Errorf("%+v", st)
	}
	// The pauses start over.
	fail(&b.gpu.run, errors.New("something else"))
	b.on("cpu", "something else")
	fail(&b.gpu.run, nil)
	b.c.pass(time.Second)
	b.on("gpu", "")
}

// TestMemoryAtOpen: a model that did not fit is opened when it does.
func TestMemoryAtOpen(t *testing.T) {
	b := newBench(t, func(g *gpu) { fail(&g.open, device.ErrOutOfMemory) })
	b.on("cpu", "out of device memory")
	fail(&b.gpu.open, nil)
	b.on("cpu", "out of device memory")
	b.c.pass(time.Second)
	b.wait()
}

// TestLost: a sticky error takes all models off the device; it is reset and they
// are opened again when its time has come.
func TestLost(t *testing.T) {
	b := newBench(t, nil)
	other, err := b.f.OpenFile(context.Background(), "other.onnx", engine.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close()
	b.on("gpu", "")
	fail(&b.gpu.run, fmt.Errorf("%w: illegal address", device.ErrLost))
	b.on("cpu", "illegal address") // the same request, answered
	fail(&b.gpu.run, nil)
	b.on("cpu", "illegal address")
	for _, st := range []engine.Placement{b.f.Status(), b.status(), other.(*cuda.Session).Placement()} {
		if st.Engine != "cpu" || !strings.Contains(st.Reason, "illegal address") || !st.Retry.Equal(b.c.now().Add(time.Second)) {
			t.Errorf("%+v", st)
		}
	}
	fail(&b.gpu.reset, errors.New("fell off the bus"))
	b.c.pass(time.Second)
	b.until(func() bool {
		b.ask()
		return strings.Contains(b.f.Status().Reason, "bus")
	})
	b.on("cpu", "fell off the bus")
	if st := b.f.Status(); !st.Retry.Equal(b.c.now().Add(2 * time.Second)) {
		t.Errorf("retry %v after now", st.Retry.Sub(b.c.now()))
	}
	fail(&b.gpu.reset, nil)
	late, err := b.f.OpenFile(context.Background(), "late.onnx", engine.Options{}) // while lost
	if err != nil {
		t.Fatal(err)
	}
	defer late.Close()
	b.c.pass(2 * time.Second)
	b.wait()
	for _, s := range []engine.Session{other, late} {
		b.until(func() bool { return s.(*cuda.Session).Placement().Engine == "gpu" })
		b.s, s = s, b.s
		b.on("gpu", "")
		b.s, s = s, b.s
	}
	// Proven again, the next loss pauses for a second only.
	fail(&b.gpu.run, device.ErrLost)
	b.on("cpu", "lost")
	if st := b.f.Status(); !st.Retry.Equal(b.c.now().Add(time.Second)) {
		t.Errorf("retry %v after now", st.Retry.Sub(b.c.now()))
	}
}

// TestOptions: what only ONNX Runtime can do keeps the model there.
func TestOptions(t *testing.T) {
	b := newBench(t, nil)
	opens := b.gpu.opens.Load()
	s, err := b.f.OpenFile(context.Background(), "m", engine.Options{DisableOptimization: true})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	b.s, s = s, b.s
	b.on("cpu", "options")
	if b.gpu.opens.Load() != opens {
		t.Error("opened on the GPU")
	}
	b.s = s
	b.cpu.Add("bad", fake.Model{OpenErr: engine.ErrModel})
	if _, err := b.f.OpenFile(context.Background(), "bad", engine.Options{}); !errors.Is(err, engine.ErrModel) {
		t.Errorf("got %v", err)
	}
}

// TestManyRequests: while the device comes and goes, every request of many is
// answered right, and one attempt runs at a time.
func TestManyRequests(t *testing.T) {
	b := newBench(t, nil)
	var stop atomic.Bool
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Add(1)
		go func() {
			defer wg.Done()
			for n := 0; !stop.Load(); n++ {
				b.ask()
				if i == 0 && n%16 == 0 {
					s, err := b.f.OpenFile(context.Background(), "m", engine.Options{})
					if err != nil {
						t.Error(err)
						return
					}
					_ = s.Close()
				}
			}
		}()
	}
	for _, err := range []error{device.ErrLost, nil, device.ErrOutOfMemory, nil, errors.New("odd"), nil, device.ErrLost, plan.ErrUnsupported, nil} {
		fail(&b.gpu.run, err)
		for range 20 {
			time.Sleep(time.Millisecond)
			b.c.pass(time.Second)
		}
	}
	b.c.pass(time.Hour)
	stop.Store(true)
	wg.Wait()
	b.wait()
	if st := b.status(); st.GPU == 0 || st.CPU == 0 {
		t.Errorf("%+v", st)
	}
}

// TestMeter: each attempt on the GPU is measured with the requests that it is for,
// and told whether it answered them; what the CPU does is not.
func TestMeter(t *testing.T) {
	b := newBench(t, nil)
	var told []string
	meter := func(gpu string, requests int) func(bool) {
		return func(answered bool) { told = append(told, fmt.Sprint(gpu, " ", requests, " ", answered)) }
	}
	s, err := b.f.OpenFile(context.Background(), "model.onnx", engine.Options{Meter: meter})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	ask := func(ctx context.Context) {
		t.Helper()
		r, err := s.Run(ctx, engine.Feeds{"x": tensor.From([]float32{1}, 1)}, nil)
		if err != nil {
			t.Fatal(err)
		}
		r.Close()
	}
	ctx := context.Background()
	ask(ctx)
	ask(engine.WithRequests(ctx, 7))
	ask(engine.WithRequests(ctx, 0))
	fail(&b.gpu.run, fmt.Errorf("%w: this shape", plan.ErrUnsupported))
	ask(engine.WithRequests(ctx, 3))
	fail(&b.gpu.run, device.ErrLost)
	ask(ctx)
	ask(ctx) // on the CPU at once
	want := []string{"GPU-1 1 true", "GPU-1 7 true", "GPU-1 0 true", "GPU-1 3 false", "GPU-1 1 false"}
	if fmt.Sprint(told) != fmt.Sprint(want) {
		t.Errorf("%q, want %q", told, want)
	}
	if st := s.(*cuda.Session).Placement(); st.GPU != 8 || st.CPU != 5 {
		t.Errorf("%d requests on the GPU and %d on the CPU, want 8 and 5", st.GPU, st.CPU)
	}
}
