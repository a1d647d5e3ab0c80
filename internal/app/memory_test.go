package app

import (
	"fmt"
	"os"
	"strconv"
	"testing"
	"time"

	"github.com/fewbit/fewbit/internal/engine"
	"github.com/fewbit/fewbit/internal/graph"
	"github.com/fewbit/fewbit/internal/http"
	"github.com/fewbit/fewbit/internal/tensor"
)

// heavy is a model y = x W with n MiB of weights, each number different.
func heavy(t testing.TB, n int) []byte {
	t.Helper()
	const cols = 1024
	w := make([]float32, n<<20/4)
	for i := range w {
		w[i] = float32(i%8191) / 8191
	}
	rows := len(w) / cols
	g := &graph.Graph{Name: "heavy",
		Inputs:  []*graph.Value{value("x", tensor.Float32, "batch", rows)},
		Outputs: []*graph.Value{value("y", tensor.Float32, "batch", cols)},
		Nodes:   []*graph.Node{graph.NewNode("", "MatMul", "product", []string{"x", "w"}, []string{"y"})},
	}
	g.SetInit("w", tensor.From(w, int64(rows), cols))
	return onnxBytes(t, model(g))
}

// askHeavy sends zeros, as many as the model takes, in binary.
func (c client) askHeavy(name string, n int) answer {
	rows := n << 20 / 4 / 1024
	head := fmt.Sprintf(`{"inputs":[{"name":"x","shape":[1,%d],"datatype":"FP32","parameters":{"binary_data_size":%d}}]}`, rows, 4*rows)
	return c.do("POST", "/v2/models/"+name+"/infer", append([]byte(head), make([]byte, 4*rows)...), "Inference-Header-Content-Length", fmt.Sprint(len(head)))
}

func anonymous(t testing.TB) int64 {
	t.Helper()
	m, err := engine.ReadMemory()
	if err != nil {
		t.Skip(err)
	}
	return m.Anon
}

// TestModelsShareTheirMemory: more models than fit answer one after the other,
// and the process never holds more than the budget.
func TestModelsShareTheirMemory(t *testing.T) {
	const weights, models = 24, 6
	s := start(t, "", func(c *Config) { c.MemoryBudget = 128 << 20; c.Pin = []string{"m0"}; c.Lazy = true })
	body := heavy(t, weights)
	base := anonymous(t)
	for i := range models {
		s.do("PUT", fmt.Sprint("/models/m", i), body).into(t, 201, nil)
	}
	// Two fit beside one that is being opened: 2 * (8 + 24) + 32 + 1.6 * 24 MiB.
	budget := int64(128 << 20)
	for round := range 3 {
		for i := range models {
			s.askHeavy(fmt.Sprint("m", i), weights).into(t, 200, nil)
			if m := s.loaded.Memory(); m.Used > budget {
				t.Errorf("round %d, model %d: %d MiB are charged, the budget is %d", round, i, m.Used>>20, budget>>20)
			}
			// All six would be past it before the first load's own memory.
			if now := anonymous(t); now-base > budget {
				t.Errorf("round %d, model %d: the process has grown by %d MiB, the budget is %d", round, i, (now-base)>>20, budget>>20)
			}
		}
	}
	var index []http.ModelInfo
	s.do("POST", "/v2/repository/index", nil).into(t, 200, &index)
	ready := 0
	for _, m := range index {
		if m.State == http.StateReady {
			ready++
		} else if !m.Lazy || m.Reason == "" {
			t.Errorf("%+v", m)
		}
		s.do("GET", "/v2/models/"+m.Name+"/ready", nil).into(t, 200, nil) // the next request is answered
	}
	if index[0].State != http.StateReady || ready < 2 || ready > 3 {
		t.Errorf("%d are ready: %+v", ready, index)
	}
	var seen struct {
		Memory struct {
			Budget    int64 `json:"budget_bytes"`
			Used      int64 `json:"used_bytes"`
			Evictions int64 `json:"evictions"`
		} `json:"model_memory"`
	}
	s.do("GET", "/telemetry", nil).into(t, 200, &seen)
	if seen.Memory.Budget != budget || seen.Memory.Used <= 0 || seen.Memory.Evictions < models {
		t.Errorf("telemetry: %+v", seen)
	}
	s.do("PUT", "/models/large", heavy(t, 100)).into(t, 201, nil) // kept, but it cannot be served
	a := s.askHeavy("large", 100).into(t, 507, nil)
	s.refused(t, a, 507, "193 MiB", "128 MiB", "--memory-budget")
}

// cycles is how often TestLoadAndUnload loads and unloads: a short form, or the
// number in FEWBIT_CYCLES (make test-cycles).
func cycles(t *testing.T) int {
	n, err := strconv.Atoi(os.Getenv("FEWBIT_CYCLES"))
	if err != nil || n < 1 {
		return 60
	}
	return n
}

const (
	// settledCycles are those after which memory is taken as the base: pools
	// and arenas have their size by then.
	settledCycles = 20
	// cycleGrowth is how much more memory than at the base is a leak, and
	// cycleNoise what a small process may differ by anyhow.
	cycleGrowth = 0.05
	cycleNoise  = 4 << 20
)

// TestLoadAndUnload: a text model with its tokenizer and one with weights come
// and go, and the memory with them.
func TestLoadAndUnload(t *testing.T) {
	s := start(t, "", nil)
	s.do("PUT", "/models/text", textModel(t)).into(t, 201, nil)
	s.do("PUT", "/models/heavy", heavy(t, 8)).into(t, 201, nil)
	load := func(name, what string) {
		s.do("POST", "/v2/repository/models/"+name+"/"+what, nil).into(t, 200, nil)
	}
	resident := func() int64 {
		for end := time.Now().Add(10 * time.Second); s.loaded.Memory().Used > 0 && time.Now().Before(end); {
			time.Sleep(time.Millisecond)
		}
		time.Sleep(1100 * time.Millisecond) // the Go heap is given back at most once a second
		load("heavy", "load")
		load("heavy", "unload")
		for end := time.Now().Add(10 * time.Second); s.loaded.Memory().Used > 0 && time.Now().Before(end); {
			time.Sleep(time.Millisecond)
		}
		time.Sleep(50 * time.Millisecond)
		m, err := engine.ReadMemory()
		if err != nil {
			t.Skip(err)
		}
		return m.RSS
	}
	var base int64
	n := cycles(t) + settledCycles
	for i := range n {
		load("text", "load")
		load("heavy", "load")
		s.do("POST", "/v1/classify", map[string]any{"model": "text", "text": "the player and the coach"}).into(t, 200, nil)
		s.askHeavy("heavy", 8).into(t, 200, nil)
		load("text", "unload")
		load("heavy", "unload")
		if i == settledCycles-1 {
			base = resident()
		}
	}
	end := resident()
	t.Logf("%d cycles: %.1f MB resident before, %.1f MB after (%+.1f %%)", n-settledCycles, float64(base)/1e6, float64(end)/1e6, 100*(float64(end)/float64(base)-1))
	if grown := end - base; float64(grown) > cycleGrowth*float64(base) && grown > cycleNoise {
		t.Errorf("%d load/unload cycles left %d MB behind", n-settledCycles, grown>>20)
	}
}
