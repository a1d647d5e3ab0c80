//go:build cuda

package cuda_test

import (
	"bytes"
	"context"
	"errors"
	"math"
	"slices"
	"testing"

	"github.com/fewbit/fewbit/internal/calib"
	"github.com/fewbit/fewbit/internal/engine"
	"github.com/fewbit/fewbit/internal/engine/cuda"
	"github.com/fewbit/fewbit/internal/engine/cuda/observe"
	"github.com/fewbit/fewbit/internal/engine/cuda/plan"
	"github.com/fewbit/fewbit/internal/graph"
	"github.com/fewbit/fewbit/internal/ops/opstest"
	"github.com/fewbit/fewbit/internal/quant"
	"github.com/fewbit/fewbit/internal/tensor"
)

// watched is a float model with the inner values that are observed as outputs.
type watched struct {
	path  string
	specs map[string]calib.Spec
	rows  map[string]int
	feeds []engine.Feeds
}

func withOutputs(m *graph.Model, names ...string) *graph.Model {
	m.Graph.Outputs = nil
	for _, n := range names {
		m.Graph.Outputs = append(m.Graph.Outputs, &graph.Value{Name: n, Type: tensor.Float32})
	}
	return m
}

func watchedBERT(t testing.TB) watched {
	bert := opstest.BERT{Layers: 1, Hidden: 32, Heads: 2, FFN: 48, Vocab: 60}
	inner := calib.Spec{ChannelMax: true, Axis: -1, MovingAverage: true}
	w := watched{path: opstest.Save(t, withOutputs(bert.Model(), "embeddings.norm", "layer.0.ffn.gelu", "layer.0.ffn.norm")),
		specs: map[string]calib.Spec{"embeddings.norm": inner, "layer.0.ffn.gelu": inner, "layer.0.ffn.norm": {}},
		rows:  map[string]int{"embeddings.norm": 32, "layer.0.ffn.gelu": 48}}
	for i := range 7 { // lengths differ, and one comes back
		w.feeds = append(w.feeds, bert.Feeds(uint64(i), 1+i%2, 3+i%4))
	}
	return w
}

// watchedCNN observes its input as well, which the first step would overwrite.
func watchedCNN(t testing.TB) watched {
	cnn := opstest.TinyCNN
	m := cnn.Model()
	var names []string
	for _, n := range m.Graph.Nodes {
		if n.Is("Clip") {
			names = append(names, n.Outputs[0])
		}
	}
	w := watched{specs: map[string]calib.Spec{"image": {}}, rows: map[string]int{}}
	for _, n := range names {
		w.specs[n] = calib.Spec{ChannelMax: true, Axis: 1}
	}
	w.path = opstest.Save(t, withOutputs(m, names...))
	for i := range 3 {
		w.feeds = append(w.feeds, cnn.Feeds(uint64(i), 1))
	}
	return w
}

func (w watched) samples() map[string]*quant.Rows {
	all := map[string]*quant.Rows{}
	for name, k := range w.rows {
		all[name] = quant.NewRows(k)
	}
	return all
}

// onHost observes the same model's outputs after they were copied out.
func (w watched) onHost(t *testing.T, e *cuda.Engine) (*calib.Collector, map[string]*quant.Rows) {
	t.Helper()
	c, rows := calib.NewCollector(1, w.specs), w.samples()
	s := open(t, e, w.path)
	for _, f := range w.feeds {
		id := calib.SampleHash(f)
		all := run(t, s, f)
		for name, x := range f {
			all[name] = x
		}
		check(t, c.Observe(context.Background(), all, id))
		for name, r := range rows {
			check(t, r.Observe(keyOf(id), tensor.View[float32](all[name])))
		}
	}
	return c, rows
}

func keyOf(id calib.SampleID) (key uint64) {
	for i := range 8 {
		key |= uint64(id[i]) << (8 * i)
	}
	return key
}

func check(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func (w watched) watch(t testing.TB, e *cuda.Engine, rows map[string]*quant.Rows) *cuda.Watch {
	t.Helper()
	c := cuda.WatchConfig{Specs: w.specs, Rows: map[string]observe.Rows{}}
	for name, r := range rows {
		c.Rows[name] = r
	}
	x, err := e.Watch(context.Background(), w.path, c)
	check(t, err)
	t.Cleanup(func() { check(t, x.Close()) })
	return x
}

func table(t *testing.T, c *calib.Collector) string {
	t.Helper()
	x := c.Table("")
	check(t, x.Fill(calib.U8, calib.MethodMinMax, calib.MethodEntropy))
	var b bytes.Buffer
	check(t, x.Write(&b))
	return b.String()
}

// TestWatch: what is counted on the device is, byte for byte, what calib counts of
// the outputs on the host, with the thresholds and the sampled rows.
func TestWatch(t *testing.T) {
	for name, make := range map[string]func(testing.TB) watched{"bert": watchedBERT, "cnn": watchedCNN} {
		t.Run(name, func(t *testing.T) {
			e := newEngine(t, cuda.Config{})
			w := make(t)
			host, hostRows := w.onHost(t, e)
			rows := w.samples()
			x := w.watch(t, e, rows)
			for _, f := range w.feeds {
				check(t, x.Run(context.Background(), f, calib.SampleHash(f)))
			}
			found, err := x.Entropy(calib.U8)
			check(t, err)
			c := calib.NewCollector(1, w.specs)
			check(t, x.Collect(c))
			for n := range w.specs {
				want, err := host.Stats(n).Threshold(calib.MethodEntropy, calib.U8)
				check(t, err)
				if found[n] != want {
					t.Errorf("%s: threshold %v, want %v", n, found[n], want)
				}
			}
			if got, want := table(t, c), table(t, host); got != want {
				t.Errorf("on the device:\n%s\non the host:\n%s", got, want)
			}
			for n, r := range rows {
				if r.Len() == 0 || !slices.Equal(r.Values(), hostRows[n].Values()) {
					t.Errorf("%s: %d rows differ from the %d of the host", n, r.Len(), hostRows[n].Len())
				}
			}
			// It starts anew.
			again := calib.NewCollector(1, w.specs)
			check(t, x.Run(context.Background(), w.feeds[0], calib.SampleHash(w.feeds[0])))
			check(t, x.Collect(again))
			if again.Samples() != 1 {
				t.Errorf("%d samples after one", again.Samples())
			}
		})
	}
}

// TestWatchArithmetic: rounded operands of products and convolutions move the
// ranges a little, and not at all where they are exact.
func TestWatchArithmetic(t *testing.T) {
	bert := watchedBERT(t)
	bert.feeds = nil
	for i := range 3 { // tensor cores begin at 9 rows
		bert.feeds = append(bert.feeds, opstest.BERT{Vocab: 60}.Feeds(uint64(i), 4, 6))
	}
	cnn := watched{path: opstest.Save(t, withOutputs(opstest.TinyCNN.Model(), "head.relu")), specs: map[string]calib.Spec{"head.relu": {}}}
	for i := range 3 {
		cnn.feeds = append(cnn.feeds, opstest.TinyCNN.Feeds(uint64(i), 1))
	}
	for _, c := range []struct {
		w    watched
		name string
	}{{bert, "layer.0.ffn.norm"}, {cnn, "head.relu"}} {
		ranges := map[plan.Arithmetic]float32{}
		for _, a := range []plan.Arithmetic{plan.FP32, plan.TF32, plan.FP16} {
			e := newEngine(t, cuda.Config{Products: a})
			x := c.w.watch(t, e, nil)
			for _, f := range c.w.feeds {
				check(t, x.Run(context.Background(), f, calib.SampleHash(f)))
			}
			n := calib.NewCollector(1, c.w.specs)
			check(t, x.Collect(n))
			r, _ := n.Stats(c.name).Histogram().MinMax()
			ranges[a] = r.Hi
		}
		exact := ranges[plan.FP32]
		for a, hi := range ranges {
			d := math.Abs(float64(hi-exact)) / float64(exact)
			t.Logf("%s, %v: up to %v, off by %.2g", c.name, a, hi, d)
			if (a == plan.FP32) != (d == 0) || d > 2e-3 { // 2^-11 of each operand
				t.Errorf("%s, arithmetic %v: up to %v, exact %v", c.name, a, hi, exact)
			}
		}
	}
}

func TestWatchRefuses(t *testing.T) {
	w := watchedBERT(t)
	e := newEngine(t, cuda.Config{})
	ctx := context.Background()
	x := w.watch(t, e, nil)
	far := engine.Feeds(opstest.BERT{Vocab: 60}.Feeds(1, 1, 3))
	far["input_ids"] = tensor.From([]int64{0, 1 << 40, 1}, 1, 3)
	check(t, x.Run(ctx, far, calib.SampleHash(far))) // is told when the device has looked
	if err := x.Collect(calib.NewCollector(1, w.specs)); !errors.Is(err, engine.ErrInput) {
		t.Errorf("a token outside the table: %v", err)
	}
	if err := x.Run(ctx, engine.Feeds{}, calib.SampleID{}); !errors.Is(err, engine.ErrInput) {
		t.Errorf("no feeds: %v", err)
	}
	gone, cancel := context.WithCancel(ctx)
	cancel()
	if err := x.Run(gone, w.feeds[0], calib.SampleID{}); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
	if _, err := e.Watch(ctx, w.path, cuda.WatchConfig{Specs: map[string]calib.Spec{"x": {ChannelMean: true}}}); !errors.Is(err, observe.ErrUnsupported) {
		t.Errorf("means: %v", err)
	}
	if _, err := e.Watch(ctx, w.path+"x", cuda.WatchConfig{Specs: w.specs}); !errors.Is(err, engine.ErrModel) {
		t.Errorf("no file: %v", err)
	}
	ids := opstest.BERT{Layers: 1, Hidden: 32, Heads: 2, FFN: 48, Vocab: 60}
	wrong, err := e.Watch(ctx, w.path, cuda.WatchConfig{Specs: map[string]calib.Spec{"input_ids": {}}})
	check(t, err)
	if err := wrong.Run(ctx, ids.Feeds(1, 1, 3), calib.SampleID{}); !errors.Is(err, plan.ErrUnsupported) {
		t.Errorf("integers are observed: %v", err)
	}
	check(t, wrong.Close())
}
