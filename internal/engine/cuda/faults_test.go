//go:build cuda && cudaemu

package cuda_test

import (
	"context"
	"fmt"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/fewbit/fewbit/internal/engine"
	"github.com/fewbit/fewbit/internal/engine/cuda"
	"github.com/fewbit/fewbit/internal/engine/cuda/driver"
	"github.com/fewbit/fewbit/internal/graph"
	"github.com/fewbit/fewbit/internal/ops/opstest"
	"github.com/fewbit/fewbit/internal/quant"
	"github.com/fewbit/fewbit/internal/tensor"
)

func TestMain(m *testing.M) {
	code := m.Run()
	u := driver.InUse()
	if u.Launches = 0; u != (driver.Use{}) {
		os.Stderr.WriteString("the tests left something open on the device\n")
		code = 1
	}
	os.Exit(code)
}

func inject(t *testing.T, f driver.Faults) {
	t.Helper()
	driver.Inject(f)
	t.Cleanup(func() { driver.Inject(driver.Faults{}) })
}

// stand is a small encoder on the emulated device with ONNX Runtime behind it.
type stand struct {
	t    *testing.T
	f    *cuda.Fallback
	s    engine.Session
	c    *clock
	feed engine.Feeds
	want engine.Feeds // of ONNX Runtime
}

func newStand(t *testing.T, x made) *stand {
	t.Helper()
	cpu := opstest.Engine(t)
	m, feed := x.m, x.feed
	s := &stand{t: t, c: &clock{t: time.Unix(1e9, 0)}, feed: feed}
	path := opstest.Save(t, m)
	s.want = opstest.Run(t, cpu, path, feed)
	e := cuda.New(cuda.Config{Streams: 2})
	ctx := context.Background()
	s.f = cuda.NewFallback(ctx, cuda.FallbackConfig{GPU: e, CPU: cpu, Now: s.c.now})
	var err error
	if s.s, err = s.f.OpenFile(ctx, path, engine.Options{}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		s.f.Close()
		if err := s.s.Close(); err != nil {
			t.Error(err)
		}
		if err := e.Close(); err != nil {
			t.Error(err)
		}
	})
	return s
}

func encoder(t *testing.T) (*graph.Model, engine.Feeds) {
	bert := opstest.BERT{Layers: 1, Hidden: 16, Heads: 2, FFN: 16, Vocab: 40}
	return opstest.Native(t, bert.Model(), quant.INT8Dynamic), bert.Feeds(3, 2, 5)
}

// ask runs one request and checks the answer; it returns who gave it and why.
func (s *stand) ask() (name, why string) {
	s.t.Helper()
	r, err := s.s.Run(context.Background(), s.feed, nil)
	if err != nil {
		s.t.Error(err)
		return "", ""
	}
	defer r.Close()
	for name, w := range s.want {
		if d := difference(r.Tensors()[name], w); d > codeTolerance {
			s.t.Errorf("%s differs by %.2g", name, d)
		}
	}
	return cuda.RanOn(r)
}

func (s *stand) on(engine, reason string) {
	s.t.Helper()
	name, why := s.ask()
	if name != engine || !strings.Contains(why, reason) || (reason == "" && why != "") {
		s.t.Errorf("answered by %q (%s), want %q (%s)", name, why, engine, reason)
	}
}

// recover waits until the GPU answers again.
func (s *stand) recover() {
	s.t.Helper()
	for end := time.Now().Add(20 * time.Second); time.Now().Before(end); time.Sleep(time.Millisecond) {
		if name, _ := s.ask(); name == "cuda" {
			return
		}
	}
	s.t.Errorf("the GPU does not answer again: %v", s.s.(*cuda.Session).Placement())
}

func TestNoDevice(t *testing.T) {
	for name, f := range map[string]driver.Faults{"absent": {Absent: true}, "init fails": {InitError: 802}, "none": {NoDevices: true}} {
		t.Run(name, func(t *testing.T) {
			inject(t, f)
			s := newStand(t, must(encoder(t)))
			s.on("ort-cpu", "CUDA")
			if st := s.f.Status(); st.Reason == "" || !st.Retry.IsZero() {
				t.Errorf("%+v", st)
			}
		})
	}
}

type made struct {
	m    *graph.Model
	feed engine.Feeds
}

func must(m *graph.Model, feed engine.Feeds) made { return made{m, feed} }

// TestOutOfMemory: weights, working memory or pinned memory that do not fit, at
// every size.
func TestOutOfMemory(t *testing.T) {
	inject(t, driver.Faults{Memory: 10 << 10})
	s := newStand(t, must(encoder(t)))
	s.on("ort-cpu", "out of device memory")
	gpu := 0
	for bytes := int64(4 << 10); bytes <= 96<<10; bytes += 4 << 10 {
		for _, f := range []driver.Faults{{Memory: bytes}, {PinnedMemory: bytes}} {
			driver.Inject(f)
			s.c.pass(time.Hour)
			if name, _ := s.ask(); name == "cuda" {
				gpu++
			}
		}
	}
	t.Logf("%d of 48 on the GPU", gpu)
	driver.Inject(driver.Faults{})
	s.c.pass(time.Hour)
	s.on("cuda", "")
	s.on("cuda", "")
}

// TestStickyError: a kernel that faults anywhere in a run, launched or recorded,
// loses the device; the request is answered all the same, and the device comes
// back when its time has come.
func TestStickyError(t *testing.T) {
	for after := range 14 {
		t.Run(fmt.Sprint(after), func(t *testing.T) {
			s := newStand(t, must(encoder(t)))
			if after%2 == 1 {
				s.on("cuda", "")
				s.on("cuda", "") // recorded by now
			}
			inject(t, driver.Faults{LaunchError: 700, AfterLaunches: after})
			for range 4 {
				s.ask()
			}
			s.on("ort-cpu", "lost")
			if st := s.f.Status(); st.Retry.IsZero() || st.Engine != "ort-cpu" {
				t.Errorf("%+v", st)
			}
			driver.Inject(driver.Faults{})
			s.c.pass(time.Second)
			s.recover()
			s.on("cuda", "")
		})
	}
}

// TestLaunchFails: one launch that finds no memory costs that request the GPU.
func TestLaunchFails(t *testing.T) {
	s := newStand(t, must(encoder(t)))
	inject(t, driver.Faults{LaunchError: 2})
	s.on("ort-cpu", "out of device memory")
	s.c.pass(time.Second)
	driver.Inject(driver.Faults{GraphError: 2})
	s.on("ort-cpu", "graph")
	driver.Inject(driver.Faults{})
	s.c.pass(time.Minute)
	s.on("cuda", "")
}

// TestBusGone: the device falls off the bus while many requests run, and comes
// back.
func TestBusGone(t *testing.T) {
	s := newStand(t, must(encoder(t)))
	stop := make(chan struct{})
	var wg sync.WaitGroup
	for range 4 {
		wg.Add(1)
		go func() {
			defer wg.Done()
			for {
				select {
				case <-stop:
					return
				default:
					s.ask()
				}
			}
		}()
	}
	for range 3 {
		time.Sleep(20 * time.Millisecond)
		driver.Inject(driver.Faults{Lost: true})
		for end := time.Now().Add(10 * time.Second); s.f.Status().Reason == "" && time.Now().Before(end); {
			time.Sleep(time.Millisecond)
		}
		driver.Inject(driver.Faults{})
		s.c.pass(time.Hour)
		s.recover()
	}
	close(stop)
	wg.Wait()
	st := s.s.(*cuda.Session).Placement()
	if st.GPU == 0 || st.CPU == 0 {
		t.Errorf("%+v", st)
	}
	t.Logf("%d answered on the GPU, %d on the CPU", st.GPU, st.CPU)
}

// TestUnsupported: a model with an operator that no kernel computes, and a shape
// that passes a limit, are answered on the CPU.
func TestUnsupported(t *testing.T) {
	v := &graph.Value{Name: "x", Type: tensor.Float32, Dims: []graph.Dim{{N: -1}}}
	m := &graph.Model{IR: 8, Opsets: map[string]int64{"": 17}, Metadata: map[string]string{}, Graph: &graph.Graph{Name: "g", Info: map[string]*graph.Value{},
		Inputs: []*graph.Value{v}, Outputs: []*graph.Value{{Name: "y", Type: tensor.Float32}},
		Nodes: []*graph.Node{graph.NewNode("", "CumSum", "sum", []string{"x", "axis"}, []string{"y"})}}}
	m.Graph.SetInit("axis", tensor.From([]int64{0}))
	s := newStand(t, made{m, engine.Feeds{"x": tensor.From([]float32{1, 2, 3}, 3)}})
	s.on("ort-cpu", `CumSum "sum"`)
	s.on("ort-cpu", `CumSum "sum"`)
	if st := s.f.Status(); st.Engine != "cuda" { // the device itself is well
		t.Errorf("%+v", st)
	}
}
