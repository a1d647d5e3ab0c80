package app

import (
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"github.com/fewbit/fewbit/internal/engine"
	"github.com/fewbit/fewbit/internal/jobs"
	"github.com/fewbit/fewbit/internal/tensor"
)

// searchJob looks for a model of mlp within a loss.
func searchJob() jobs.Spec {
	return jobs.Spec{Model: "m", Scheme: schemeSearch, Samples: 16, MaxLoss: 0.2, TimeLimitS: 60, Promote: true,
		Calibration: &jobs.Calibration{Dataset: "calib"}, Evaluation: &jobs.Evaluation{Dataset: "test"}}
}

// tried returns how many trials the journal of a search holds.
func tried(dir, id string) int {
	b, err := os.ReadFile(filepath.Join(dir, searchesDir, id, "search.jsonl"))
	if err != nil {
		return 0
	}
	return strings.Count(string(b), `{"trial":`)
}

// TestSearchJobAfterKill kills the server once a search has made a trial: the next
// one goes on with what was tried, publishes the best, and leaves nothing.
func TestSearchJobAfterKill(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	s := startChild(t, dir)
	s.seed()
	id := s.submit(searchJob())
	s.until(id, func(st jobs.Status) bool { return st.Status.Final() || tried(dir, id) > 0 })
	before := tried(dir, id)
	s.kill(t)
	s = startChild(t, dir)
	st := s.finished(id)
	if st.Status != jobs.Succeeded && !strings.Contains(st.Error, "slower than FP32") {
		t.Fatalf("job: %+v", st)
	}
	if st.Status == jobs.Succeeded {
		var rep struct {
			Warnings []string
			Verdict  struct{ Status string }
		}
		s.do("GET", "/quantize/"+id+"/report", nil).into(t, 200, &rep)
		text := strings.Join(rep.Warnings, "\n")
		if before > 0 && (!strings.Contains(text, "by an earlier attempt") || strings.Contains(text, "trials, 0 of them")) || rep.Verdict.Status != "accepted" {
			t.Errorf("%d trials before: %+v", before, rep)
		}
		if vs := s.versions("m"); len(vs) != 2 || !vs[1].Default || vs[1].Source != "m/1" {
			t.Errorf("versions: %+v", vs)
		}
	}
	if _, err := os.Stat(filepath.Join(dir, searchesDir, id)); !os.IsNotExist(err) {
		t.Errorf("the search's folder is left: %v", err)
	}
	if left := leftovers(t, dir); len(left) > 0 {
		t.Errorf("left in the data directory: %q", left)
	}
}

// TestCancelASearch: a cancelled search publishes nothing, and what it tried is gone
// with the next start.
func TestCancelASearch(t *testing.T) {
	t.Parallel()
	s := start(t, "", nil)
	s.seed()
	id := s.submit(searchJob())
	s.until(id, func(st jobs.Status) bool { return st.Status == jobs.Running && strings.HasPrefix(st.Phase, "search: ") })
	s.do("DELETE", "/quantize/"+id, nil).into(t, 202, nil)
	if st := s.finished(id); st.Status != jobs.Cancelled {
		t.Errorf("job: %+v", st)
	}
	if vs := s.versions("m"); len(vs) != 1 {
		t.Errorf("versions: %+v", vs)
	}
	if err := s.stop(); err != nil {
		t.Fatal(err)
	}
	next := start(t, s.cfg.DataDir, nil)
	if _, err := os.Stat(next.searchDir(id)); !os.IsNotExist(err) {
		t.Errorf("the search's folder is left: %v", err)
	}
	for what, change := range map[string]func(*jobs.Spec){
		"evaluation":   func(s *jobs.Spec) { s.Evaluation = nil },
		"calibration":  func(s *jobs.Spec) { s.Calibration = nil },
		"time_limit_s": func(s *jobs.Spec) { s.TimeLimitS = -1 },
		"max_size_mb":  func(s *jobs.Spec) { s.MaxSizeMB = 1e12 },
		"scheme":       func(s *jobs.Spec) { s.Scheme, s.MaxSizeMB = "int8", 10 },
		"recipe":       func(s *jobs.Spec) { s.Recipe = "nplp" },
	} {
		spec := searchJob()
		change(&spec)
		next.refused(t, next.do("POST", "/quantize", spec), 400, what)
	}
}

// TestEmbeddingsJob: a job whose rules leave nothing but tables of embeddings needs no
// calibration data.
func TestEmbeddingsJob(t *testing.T) {
	t.Parallel()
	s := start(t, "", nil)
	m := textGraph()
	const rows = 2048 // as many as are worth a table in 8 bits
	table, err := tensor.New(tensor.Float32, rows, wordDims)
	if err != nil {
		t.Fatal(err)
	}
	copy(table.Data, m.Graph.Init("embeddings").Data)
	m.Graph.SetInit("embeddings", table)
	s.do("PUT", "/models/text", zipOf(t, map[string][]byte{"model.onnx": onnxBytes(t, m), "tokenizer.json": tokenizer(t)})).into(t, 201, nil)
	id := s.submit(jobs.Spec{Model: "text", Scheme: "int8", Force: true, Operators: []string{"*=fp32", "@embeddings=int8"}})
	if st := s.finished(id); st.Status != jobs.Succeeded {
		t.Fatalf("job: %+v", st)
	}
}

// TestCeilingJob: a job within a ceiling reports what it took, a search too; one that
// cannot fit fails and says what would do.
func TestCeilingJob(t *testing.T) {
	now, err := engine.ReadMemory()
	if err != nil {
		t.Skip(err)
	}
	s := start(t, "", nil)
	s.seed()
	spec := longJob()
	spec.MaxMemoryMB = float64(now.RSS+4<<30) / 1e6
	id := s.submit(spec)
	if st := s.finished(id); st.Status != jobs.Succeeded {
		t.Fatalf("job: %+v", st)
	}
	var rep struct {
		Memory struct {
			Ceiling int64 `json:"ceiling_bytes"`
			Peak    int64 `json:"run_peak_bytes"`
		}
	}
	s.do("GET", "/quantize/"+id+"/report", nil).into(t, 200, &rep)
	if m := rep.Memory; m.Peak == 0 || m.Ceiling < m.Peak {
		t.Errorf("memory %+v", m)
	}
	held := make([]byte, 150e6) // as a served model would
	for i := 0; i < len(held); i += os.Getpagesize() {
		held[i] = 1
	}
	defer runtime.KeepAlive(held)
	for _, low := range []jobs.Spec{longJob(), searchJob()} {
		low.MaxMemoryMB = 140
		st := s.finished(s.submit(low))
		if st.Status != jobs.Failed || !strings.Contains(st.Error, "the memory ceiling is too low") || !strings.Contains(st.Error, "140 MB") {
			t.Errorf("job: %+v", st)
		}
	}
}

// TestRecipeJob: a built-in recipe gives the head half precision, and the job's own
// rules come after it.
func TestRecipeJob(t *testing.T) {
	t.Parallel()
	s := start(t, "", nil)
	s.seed()
	for want, own := range map[string][]string{"fp16": nil, "fp32": {"/logits=fp32"}} {
		spec := longJob()
		spec.Recipe, spec.Operators, spec.Promote = "nlp", own, false
		id := s.submit(spec)
		if st := s.finished(id); st.Status != jobs.Succeeded {
			t.Fatalf("job: %+v", st)
		}
		var rep struct {
			Operators []struct{ Name, Precision string }
		}
		s.do("GET", "/quantize/"+id+"/report", nil).into(t, 200, &rep)
		for _, o := range rep.Operators {
			if o.Name == "/logits" && o.Precision != want {
				t.Errorf("with %v the head is %s, want %s", own, o.Precision, want)
			}
		}
	}
}
