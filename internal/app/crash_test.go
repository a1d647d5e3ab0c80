package app

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/fewbit/fewbit/internal/engine"
	"github.com/fewbit/fewbit/internal/jobs"
	"github.com/fewbit/fewbit/internal/registry"
	"github.com/fewbit/fewbit/internal/tensor"
)

// child is the server in a process of its own.
type child struct {
	client
	cmd    *exec.Cmd
	stderr *bytes.Buffer
}

func startChild(t *testing.T, dir string, flags ...string) *child {
	t.Helper()
	needEngine(t)
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	c := &child{cmd: exec.Command(exe, append([]string{"--listen", "127.0.0.1:0", "--data-dir", dir}, flags...)...), stderr: &bytes.Buffer{}}
	c.cmd.Env = append(os.Environ(), childEnv+"=1")
	c.cmd.Stderr = c.stderr
	out, err := c.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	begin := time.Now()
	if err := c.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = c.cmd.Process.Kill() // most have ended
		_ = c.cmd.Wait()
	})
	line, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		_ = c.cmd.Wait()
		t.Fatalf("the server did not start: %v: %s", err, c.stderr)
	}
	if took := time.Since(begin); took > 10*time.Second { // below 0.3 s on an idle machine
		t.Errorf("the server took %v to start", took)
	}
	_, rest, _ := strings.Cut(line, "http://")
	addr, _, _ := strings.Cut(rest, " ")
	c.client = client{t, "http://" + addr, ""}
	c.waitReady()
	return c
}

func (c *child) kill(t *testing.T) {
	t.Helper()
	if err := c.cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = c.cmd.Wait()
}

// longJob runs for more than two seconds: its latency is measured for so long.
func longJob() jobs.Spec {
	return jobs.Spec{Model: "m", Scheme: "int8", Samples: 16, Force: true, Promote: true,
		Calibration: &jobs.Calibration{Dataset: "calib"}, Evaluation: &jobs.Evaluation{Dataset: "test"}}
}

// seed uploads what longJob needs.
func (c client) seed() {
	c.t.Helper()
	c.do("PUT", "/models/m", mlp(c.t)).into(c.t, 201, nil)
	c.do("PUT", "/datasets/calib", mlpData(c.t, 1, 64, false)).into(c.t, 201, nil)
	c.do("PUT", "/datasets/test", mlpData(c.t, 2, 200, true)).into(c.t, 201, nil)
}

func (c client) versions(name string) (vs []struct {
	Version string
	Default bool
	Source  string
}) {
	c.t.Helper()
	out := struct{ Versions any }{&vs}
	c.do("GET", "/models/"+name, nil).into(c.t, 200, &out)
	return vs
}

// answers asks m for one inference and returns the version that answered.
func (c client) answers() string {
	c.t.Helper()
	var out struct {
		Version string `json:"model_version"`
	}
	x := make([]float32, mlpInputs)
	c.do("POST", "/v2/models/m/infer", map[string]any{"inputs": []any{
		map[string]any{"name": "x", "shape": []int{1, mlpInputs}, "datatype": "FP32", "data": x}}}).into(c.t, 200, &out)
	return out.Version
}

// TestKillWhileAJobRuns kills the server at two points of a job: the next one
// serves what was served, finishes the job, and nothing is half made.
func TestKillWhileAJobRuns(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	s := startChild(t, dir)
	s.seed()
	id := s.submit(longJob())
	for i, phase := range []string{"", "evaluate"} {
		s.until(id, func(st jobs.Status) bool {
			return st.Status == jobs.Running && st.Attempts > i && (phase == "" || st.Phase == phase)
		})
		s.kill(t)
		s = startChild(t, dir)
		if v := s.answers(); v != "1" {
			t.Errorf("after the crash version %s answers", v)
		}
		if vs := s.versions("m"); len(vs) != 1 {
			t.Errorf("after the crash there are %+v", vs)
		}
	}
	st := s.finished(id)
	if st.Status != jobs.Succeeded || st.Attempts != 3 {
		t.Errorf("job: %+v", st)
	}
	if vs := s.versions("m"); len(vs) != 2 || !vs[1].Default || vs[1].Source != "m/1" {
		t.Errorf("versions: %+v", vs)
	}
	if v := s.answers(); v != "2" {
		t.Errorf("version %s answers", v)
	}
	if left := leftovers(t, dir); len(left) > 0 {
		t.Errorf("left in the data directory: %q", left)
	}
	if err := s.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if err := s.cmd.Wait(); err != nil {
		t.Errorf("SIGTERM: %v: %s", err, s.stderr)
	}
}

// TestJobIsPublishedOnce runs a job again that died between publishing and
// saying so.
func TestJobIsPublishedOnce(t *testing.T) {
	t.Parallel()
	s := start(t, "", nil)
	s.seed()
	id := s.submit(longJob())
	st := s.finished(id)
	if st.Status != jobs.Succeeded {
		t.Fatalf("job: %+v", st)
	}
	again, err := s.runJob(t.Context(), id, longJob(), func(string, float64) {})
	if err != nil || !bytes.Equal(again, compact(t, st.Result)) {
		t.Errorf("the second run gave %s, %v; the first %s", again, err, st.Result)
	}
	if vs := s.versions("m"); len(vs) != 2 {
		t.Errorf("versions: %+v", vs)
	}
}

// TestStopWhileAJobRuns stops the server in order: the job goes back into the
// queue and the next server does it.
func TestStopWhileAJobRuns(t *testing.T) {
	t.Parallel()
	s := start(t, "", nil)
	s.seed()
	id := s.submit(longJob())
	s.until(id, func(st jobs.Status) bool { return st.Status == jobs.Running && st.Phase == "evaluate" })
	begin := time.Now()
	if err := s.stop(); err != nil {
		t.Fatal(err)
	}
	if took := time.Since(begin); took > 10*time.Second {
		t.Errorf("the server took %v to stop", took)
	}
	if left := leftovers(t, s.cfg.DataDir); len(left) > 0 {
		t.Errorf("left in the data directory: %q", left)
	}
	next := start(t, s.cfg.DataDir, nil)
	if st := next.finished(id); st.Status != jobs.Succeeded || st.Attempts != 2 {
		t.Errorf("job: %+v", st)
	}
}

func TestCancelARunningJob(t *testing.T) {
	t.Parallel()
	s := start(t, "", nil)
	s.seed()
	id := s.submit(longJob())
	second := s.submit(longJob()) // waits behind it
	s.until(id, func(st jobs.Status) bool { return st.Status == jobs.Running && st.Phase == "evaluate" })
	for _, job := range []string{second, id} {
		s.do("DELETE", "/quantize/"+job, nil).into(t, 202, nil)
		if st := s.finished(job); st.Status != jobs.Cancelled {
			t.Errorf("job: %+v", st)
		}
	}
	s.do("DELETE", "/quantize/"+id, nil).into(t, 409, nil)
	s.do("GET", "/quantize/"+id+"/report", nil).into(t, 404, nil)
	if vs := s.versions("m"); len(vs) != 1 {
		t.Errorf("versions: %+v", vs)
	}
	if left := leftovers(t, s.cfg.DataDir); len(left) > 0 {
		t.Errorf("left in the data directory: %q", left)
	}
	if v := s.answers(); v != "1" {
		t.Errorf("version %s answers", v)
	}
}

// TestRefusedJob: the gate's reasons are the job's error, its numbers the
// result, and nothing is published.
func TestRefusedJob(t *testing.T) {
	t.Parallel()
	s := start(t, "", nil)
	s.seed()
	spec := longJob()
	spec.Force, spec.MaxLoss = false, 1e-12 // eight bits cannot
	spec.Evaluation = &jobs.Evaluation{Dataset: "calib"}
	id := s.submit(spec)
	st := s.follow(t, id)
	var res result
	if st.Status != jobs.Failed || !strings.Contains(st.Error, "probabilities moved") || json.Unmarshal(st.Result, &res) != nil {
		t.Fatalf("job: %+v", st)
	}
	if res.Version != "" || res.Report.Verdict != "refused" || len(res.Report.Reasons) == 0 || res.Report.Cosine == nil {
		t.Errorf("result: %s", st.Result)
	}
	if polled := s.finished(id); !bytes.Equal(compact(t, polled.Result), compact(t, st.Result)) {
		t.Errorf("polling gives %s, the events %s", polled.Result, st.Result)
	}
	s.do("GET", "/quantize/"+id+"/report", nil).into(t, 200, nil)
	if vs := s.versions("m"); len(vs) != 1 {
		t.Errorf("versions: %+v", vs)
	}
}

// TestResultUnderItsOwnName: the result is a model of its own, served at once,
// and the source of the next job even when the default is quantized.
func TestResultUnderItsOwnName(t *testing.T) {
	t.Parallel()
	s := start(t, "", nil)
	s.seed()
	spec := longJob()
	spec.Name, spec.Promote, spec.Scheme, spec.Key = "m-int8", false, "int8-dynamic", "once"
	id := s.submit(spec)
	if again := s.submit(spec); again != id {
		t.Errorf("the same key made the jobs %s and %s", id, again)
	}
	var res result
	if st := s.finished(id); st.Status != jobs.Succeeded || json.Unmarshal(st.Result, &res) != nil {
		t.Fatalf("job: %+v", st)
	}
	if res.Model != "m-int8" || res.Version != "1" || !res.Promoted {
		t.Errorf("result: %+v", res)
	}
	s.do("GET", "/v2/models/m-int8/ready", nil).into(t, 200, nil)
	if v := s.answers(); v != "1" {
		t.Errorf("version %s of the source answers", v)
	}
}

// TestRepeatedJob: after a promotion the same request quantizes the float
// version again.
func TestRepeatedJob(t *testing.T) {
	t.Parallel()
	s := start(t, "", nil)
	s.seed()
	src, err := s.source(jobs.Spec{Model: "m"})
	if err != nil || src.Number != 1 {
		t.Fatalf("%+v, %v", src, err)
	}
	st, err := s.registry.NewStage()
	if err != nil {
		t.Fatal(err)
	}
	defer st.Close()
	if err := st.Link(src, "model.onnx"); err != nil {
		t.Fatal(err)
	}
	v, err := s.registry.Publish(t.Context(), "m", st, registry.About{Scheme: "int8", Source: "m/1"})
	if err != nil {
		t.Fatal(err)
	}
	if err := s.loaded.Promote(t.Context(), "m", v.ID()); err != nil {
		t.Fatal(err)
	}
	for version, want := range map[string]int{"": 1, "2": 2} {
		if src, err := s.source(jobs.Spec{Model: "m", Version: version}); err != nil || src.Number != want {
			t.Errorf("version %q: source %d, %v, want %d", version, src.Number, err, want)
		}
	}
}

// TestTrafficDuringPromotion: no request fails while a job promotes.
func TestTrafficDuringPromotion(t *testing.T) {
	t.Parallel()
	s := start(t, "", nil)
	s.seed()
	id := s.submit(longJob())
	x := engine.Feeds{"x": tensor.From(make([]float32, mlpInputs), 1, mlpInputs)}
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	failed := make(chan error, 1)
	go func() {
		defer close(failed)
		for ctx.Err() == nil {
			l, err := models{s.App}.Acquire(ctx, "m", "")
			if err == nil {
				var r engine.Result
				if r, _, err = l.Run(ctx, x, nil); err == nil {
					r.Close()
				}
				l.Release()
			}
			if err != nil && ctx.Err() == nil {
				failed <- err
				return
			}
			time.Sleep(time.Millisecond)
		}
	}()
	if st := s.finished(id); st.Status != jobs.Succeeded {
		t.Errorf("job: %+v", st)
	}
	stop()
	if err := <-failed; err != nil {
		t.Error(err)
	}
	if v := s.answers(); v != "2" {
		t.Errorf("version %s answers", v)
	}
}

// TestDrainDelay: between the signal and the end of the listener readiness is 503 and
// requests are answered.
func TestDrainDelay(t *testing.T) {
	t.Parallel()
	s := start(t, "", func(c *Config) { c.DrainDelay = time.Second })
	s.seed()
	stopped := make(chan error, 1)
	go func() { stopped <- s.stop() }()
	for s.do("GET", "/v2/health/ready", nil).status != 503 {
		select {
		case err := <-stopped:
			t.Fatalf("stopped (%v) and was ready to the end", err)
		default:
			time.Sleep(5 * time.Millisecond)
		}
	}
	if v := s.answers(); v != "1" {
		t.Errorf("version %s answers", v)
	}
	if err := <-stopped; err != nil {
		t.Error(err)
	}
}
