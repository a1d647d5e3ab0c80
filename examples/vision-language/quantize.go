package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/fewbit/fewbit/internal/jobs"
	"github.com/fewbit/fewbit/internal/report"
	"github.com/fewbit/fewbit/tools/drive"
)

// captured is what the server kept of what the camera saw.
type captured struct {
	Sent    int `json:"sent"`
	Samples int `json:"samples"`
	Seen    int `json:"seen"`
}

// keepSamples is how many captured frames the server keeps at most.
const keepSamples = 512

// capture has the server capture, and plays the camera: one frame a request, with
// the captions that the ground station wants to know about.
func (e *example) capture(ctx context.Context, version string) (captured, error) {
	path := "/models/" + modelName + "/capture"
	_ = e.api.Do(ctx, http.MethodDelete, path, "", nil, nil) // of a run that was interrupted
	set, err := json.Marshal(map[string]any{"max_samples": keepSamples, "max_per_second": 10000, "seconds": 3600})
	if err != nil {
		return captured{}, err
	}
	if err := e.api.Do(ctx, http.MethodPut, path, "application/json", bytes.NewReader(set), nil); err != nil {
		return captured{}, err
	}
	c := captured{Sent: min(e.traffic, e.data.camera.n())}
	show := drive.NewCounter(e.out, "frames", c.Sent)
	for i := range c.Sent {
		if _, err := e.ask(version, e.data.camera, i, i+1); err != nil {
			return c, err
		}
		if err := ctx.Err(); err != nil {
			return c, err
		}
		show.Add()
	}
	// A sample is written beside its answer: wait until the last ones are there.
	for deadline := time.Now().Add(10 * time.Second); c.Samples < min(c.Sent, keepSamples) && time.Now().Before(deadline) && ctx.Err() == nil; time.Sleep(50 * time.Millisecond) {
		if err := e.api.Do(ctx, http.MethodGet, path, "", nil, &c); err != nil {
			return c, err
		}
	}
	if c.Samples == 0 {
		return c, fmt.Errorf("the server captured nothing of %d frames, and saw %d", c.Sent, c.Seen)
	}
	return c, e.api.Do(ctx, http.MethodPost, path+"/stop", "", nil, nil)
}

// uploadGate sends the labelled images by which the job's gate judges. They are
// none of those that the accuracy below is measured on.
func (e *example) uploadGate(ctx context.Context) error {
	var b bytes.Buffer
	if err := labelled(&b, e.data.gate, e.data.receipt); err != nil {
		return err
	}
	return e.api.Do(ctx, http.MethodPut, "/datasets/"+gateName, "application/octet-stream", &b, nil)
}

// sensitivity is what INT8 costs each part of the model.
type sensitivity struct {
	Samples int         `json:"samples"`
	Whole   report.Loss `json:"whole"`
	Blocks  []block     `json:"blocks"`
}

// block is one part: a convolution of the stem, an attention, a perceptron, a projection.
type block struct {
	Name      string     `json:"name"`
	Operators int        `json:"operators"`
	Loss      report.Num `json:"loss"` // sum over its operators of 1 - cosine with only that one in INT8
	Worst     string     `json:"worst"`
	WorstLoss report.Num `json:"worst_loss"`
}

// sensitivity fetches what was captured and lets the command line judge by it.
func (e *example) sensitivity(ctx context.Context) (s sensitivity, err error) {
	samples := filepath.Join(e.dir, "captured.npz")
	if err := e.export(ctx, samples); err != nil {
		return s, err
	}
	defer os.Remove(samples) // in clear: it goes when it has served
	args := []string{"sensitivity", filepath.Join(e.model, "model.onnx"), "--calib", samples, "--top", strconv.Itoa(e.operators), "--eval-samples", strconv.Itoa(e.judge), "--json"}
	if e.samples > 0 {
		args = append(args, "--samples", strconv.Itoa(e.samples))
	}
	var r report.Sensitivity
	if err := e.command(ctx, args, &r); err != nil {
		return s, err
	}
	s.Samples, s.Whole = r.Samples, r.Whole
	for _, o := range r.Operators {
		if o.Only == nil {
			continue
		}
		name := blockOf(o.Name)
		i := slices.IndexFunc(s.Blocks, func(b block) bool { return b.Name == name })
		if i < 0 {
			i = len(s.Blocks)
			s.Blocks = append(s.Blocks, block{Name: name})
		}
		b := &s.Blocks[i]
		b.Operators++
		b.Loss += max(o.Only.Cosine, 0)
		if b.Worst == "" || o.Only.Cosine > b.WorstLoss {
			b.Worst, b.WorstLoss = o.Name, o.Only.Cosine
		}
	}
	slices.SortStableFunc(s.Blocks, func(a, b block) int { return strings.Compare(a.Name, b.Name) })
	return s, nil
}

// blockOf names the part that an operator belongs to: "text.2.attn.q" is of
// "text.2 attention", "match.cross.k" of "match cross-attention".
func blockOf(op string) string {
	base, last, ok := cutLast(op)
	if !ok {
		return op
	}
	switch rest, part, _ := cutLast(base); {
	case part == "attn":
		return rest + " attention"
	case part == "cross":
		return rest + " cross-attention"
	case last == "up" || last == "down":
		return base + " perceptron"
	}
	return op
}

func cutLast(s string) (before, after string, found bool) {
	i := strings.LastIndexByte(s, '.')
	if i < 0 {
		return s, "", false
	}
	return s[:i], s[i+1:], true
}

// export writes the captured samples to a file.
func (e *example) export(ctx context.Context, path string) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, e.api.Base+"/models/"+modelName+"/capture/samples.npz", nil)
	if err != nil {
		return err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("%s: %s", req.URL.Path, resp.Status)
	}
	f, err := os.OpenFile(path, os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	_, err = io.Copy(f, resp.Body)
	return errors.Join(err, f.Close())
}

// command runs the command line and decodes what it says; its progress is shown.
func (c config) command(ctx context.Context, args []string, out any) error {
	cmd := exec.CommandContext(ctx, c.fewbit, args...)
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGINT) }
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGTERM}
	var answer, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &answer, io.MultiWriter(&errs, &indented{w: c.out})
	if err := cmd.Run(); err != nil {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		lines := strings.Split(strings.TrimSpace(errs.String()), "\n")
		return fmt.Errorf("fewbit %s: %w: %s", args[0], err, lines[len(lines)-1])
	}
	if out == nil {
		return nil
	}
	if err := json.Unmarshal(answer.Bytes(), out); err != nil {
		return fmt.Errorf("fewbit %s: its answer is not what was expected: %w", args[0], err)
	}
	return nil
}

// indented shows lines as part of a step.
type indented struct {
	w    io.Writer
	line []byte
}

func (i *indented) Write(b []byte) (int, error) {
	for _, c := range b {
		i.line = append(i.line, c)
		if c == '\n' {
			if _, err := i.w.Write(append([]byte("    "), i.line...)); err != nil {
				return 0, err
			}
			i.line = i.line[:0]
		}
	}
	return len(b), nil
}

// job is what the quantization made.
type job struct {
	drive.Job
	// Precisions is how many operators got which.
	Precisions map[string]int `json:"precisions"`
	// Cross are the products of the cross-attention, and their precision.
	Cross map[string]string `json:"cross_attention"`
}

// quantize submits the job and follows it.
func (e *example) quantize(ctx context.Context, source string) (job, error) {
	return drive.Quantize(ctx, e.steps, e.api, "POST /quantize: int8, "+strings.Join(rules, ", ")+", calibrated on what was captured", jobs.Spec{
		Model: modelName, Version: source, Scheme: "int8", Operators: rules, Samples: e.samples,
		Calibration: &jobs.Calibration{Captured: &jobs.Captured{}}, Evaluation: &jobs.Evaluation{Dataset: gateName}, MaxLoss: maxLoss, SLOms: e.targetMS, Promote: true, Force: e.force,
	}, func(made drive.Job, full *report.Report) job {
		j := job{Job: made, Precisions: map[string]int{}, Cross: map[string]string{}}
		j.count(full)
		return j
	})
}
