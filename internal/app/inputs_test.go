package app

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"math/rand/v2"
	"strings"
	"testing"

	"github.com/fewbit/fewbit/internal/jobs"
)

func sha(b []byte) string {
	sum := sha256.Sum256(b)
	return hex.EncodeToString(sum[:])
}

// occupy lets a job run, so that what is submitted next waits until release.
func (s *server) occupy(t *testing.T) (release func()) {
	t.Helper()
	spec := longJob()
	spec.Name, spec.Promote = "other", false
	id := s.submit(spec)
	s.until(id, func(st jobs.Status) bool { return st.Status == jobs.Running })
	return func() {
		t.Helper()
		s.do("DELETE", "/quantize/"+id, nil).into(t, 202, nil)
		if st := s.finished(id); st.Status != jobs.Cancelled {
			t.Fatalf("job: %+v", st)
		}
	}
}

// TestQueuedJobKeepsItsInputs: a job that waits runs on what it was submitted
// with, whatever becomes of the names meanwhile, and collecting garbage does not
// take it away. A restart of the server between the two changes nothing.
func TestQueuedJobKeepsItsInputs(t *testing.T) {
	t.Parallel()
	s := start(t, "", nil)
	s.seed()
	calib, test := mlpData(t, 1, 64, false), mlpData(t, 2, 200, true)
	release := s.occupy(t)
	id := s.submit(longJob())
	s.do("PUT", "/datasets/calib", texts(1, 4)).into(t, 201, nil) // would not fit
	s.do("DELETE", "/datasets/test", nil).into(t, 204, nil)
	s.do("PUT", "/models/m", changedWeights(t)).into(t, 201, nil)
	s.do("POST", "/models/m/promote", map[string]string{"version": "2"}).into(t, 200, nil)
	if err := s.registry.GC(t.Context(), 0); err != nil {
		t.Fatal(err)
	}
	release()
	if err := s.stop(); err != nil {
		t.Fatal(err)
	}
	s = start(t, s.cfg.DataDir, nil)
	if err := s.registry.GC(t.Context(), 0); err != nil {
		t.Fatal(err)
	}
	st := s.finished(id)
	var res result
	if st.Status != jobs.Succeeded || json.Unmarshal(st.Result, &res) != nil {
		t.Fatalf("job: %+v", st)
	}
	if res.Source != "m/1" || res.Report.Samples != 200 || res.Report.Accuracy == nil {
		t.Errorf("result: %+v", res)
	}
	in := st.Inputs
	if in == nil || in.Calibration == nil || in.Evaluation == nil {
		t.Fatalf("inputs: %+v", in)
	}
	if in.Model.Version != "1" || in.Model.SHA256 != sha(mlp(t)) || in.Calibration.SHA256 != sha(calib) || in.Evaluation.SHA256 != sha(test) || in.Calibration.Name != "calib" || in.Calibration.Kind != "npz" {
		t.Errorf("inputs: %+v %+v %+v", in.Model, in.Calibration, in.Evaluation)
	}
	// Nobody needs the contents any more.
	if err := s.registry.GC(t.Context(), 0); err != nil {
		t.Fatal(err)
	}
	if _, err := s.pinnedData(t.Context(), in.Evaluation); err == nil || !strings.Contains(err.Error(), "submit the job again") {
		t.Errorf("after the job: %v", err)
	}
}

func changedWeights(t *testing.T) []byte {
	t.Helper()
	m := mlpModel()
	m.Graph.SetInit("w2", random(rand.New(rand.NewPCG(9, 9)), mlpHidden, mlpHidden, 0.05, 1))
	return onnxBytes(t, m)
}

// TestQueuedJobOfADeletedModel fails with words, and does not bring the name back.
func TestQueuedJobOfADeletedModel(t *testing.T) {
	t.Parallel()
	for name, again := range map[string]bool{"deleted": false, "deleted and made anew": true} {
		s := start(t, "", nil)
		s.seed()
		s.do("PUT", "/models/blocker", mlp(t)).into(t, 201, nil)
		blocker := longJob()
		blocker.Model = "blocker"
		first := s.submit(blocker)
		s.until(first, func(st jobs.Status) bool { return st.Status == jobs.Running })
		id := s.submit(longJob())
		s.do("DELETE", "/models/m", nil).into(t, 204, nil)
		want := "version 1 of model m was deleted"
		if again {
			s.do("PUT", "/models/m", changedWeights(t)).into(t, 201, nil)
			want = "is not the one that the job was submitted for"
		}
		s.do("DELETE", "/quantize/"+first, nil).into(t, 202, nil)
		st := s.finished(id)
		if st.Status != jobs.Failed || !strings.Contains(st.Error, want) || !strings.Contains(st.Error, "submit the job again") {
			t.Errorf("%s: %s: %s", name, st.Status, st.Error)
		}
		s.clean(t, st.Error)
		if a := s.do("GET", "/models/m", nil); !again && a.status != 404 || again && len(s.versions("m")) != 1 {
			t.Errorf("%s: %v", name, a)
		}
	}
}

// TestModelDeletedWhileItsJobRuns: nothing is published under the name.
func TestModelDeletedWhileItsJobRuns(t *testing.T) {
	t.Parallel()
	s := start(t, "", nil)
	s.seed()
	id := s.submit(longJob())
	s.until(id, func(st jobs.Status) bool { return st.Status == jobs.Running && st.Phase == "evaluate" })
	s.do("DELETE", "/models/m", nil).into(t, 204, nil)
	if err := s.registry.GC(t.Context(), 0); err != nil {
		t.Fatal(err)
	}
	if st := s.finished(id); st.Status != jobs.Failed || !strings.Contains(st.Error, "model m was deleted while the job ran") {
		t.Errorf("job: %+v", st)
	}
	s.do("GET", "/models/m", nil).into(t, 404, nil)
	if left := leftovers(t, s.cfg.DataDir); len(left) > 0 {
		t.Errorf("left in the data directory: %q", left)
	}
}
