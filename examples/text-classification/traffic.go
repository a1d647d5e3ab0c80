package main

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/fewbit/fewbit/benchmarks/harness"
	"github.com/fewbit/fewbit/internal/eval"
	"github.com/fewbit/fewbit/internal/jobs"
	"github.com/fewbit/fewbit/internal/report"
	"github.com/fewbit/fewbit/tools/drive"
)

// captured is what the server kept of the live traffic.
type captured struct {
	Sent    int `json:"sent"`
	Samples int `json:"samples"`
	Seen    int `json:"seen"`
}

// capture has the server capture, and plays its users.
func (e *example) capture(ctx context.Context) (captured, error) {
	path := "/models/" + modelName + "/capture"
	_ = e.api.Do(ctx, http.MethodDelete, path, "", nil, nil) // of a run that was interrupted
	if err := e.put(ctx, path, map[string]any{"max_samples": 512, "max_per_second": 1000, "seconds": 3600}); err != nil {
		return captured{}, err
	}
	if err := e.users(ctx); err != nil {
		return captured{}, err
	}
	c := captured{Sent: e.traffic}
	// A sample is written beside its answer: wait until the last ones are there.
	for deadline := time.Now().Add(10 * time.Second); c.Seen < c.Sent && time.Now().Before(deadline) && ctx.Err() == nil; time.Sleep(50 * time.Millisecond) {
		if err := e.api.Do(ctx, http.MethodGet, path, "", nil, &c); err != nil {
			return c, err
		}
	}
	if c.Samples == 0 {
		return c, errors.New("the server captured nothing")
	}
	return c, e.api.Do(ctx, http.MethodPost, path+"/stop", "", nil, nil)
}

// atOnce is how many users wait for an answer at most: this traffic is there to
// be captured, and a busy machine must not turn it into an overload.
const atOnce = 4

// users sends the live texts at random instants.
func (e *example) users(ctx context.Context) error {
	texts, pause := e.texts(e.data.live), rand.New(rand.NewPCG(1, 1))
	show := drive.NewCounter(e.out, "texts", e.traffic)
	free := make(chan struct{}, atOnce)
	var wg sync.WaitGroup
	var failed atomic.Pointer[error]
	for range e.traffic {
		if failed.Load() != nil || ctx.Err() != nil {
			break
		}
		free <- struct{}{}
		text := texts()
		wg.Go(func() {
			defer func() { <-free }()
			if err := e.classify(ctx, text, "", nil); err != nil {
				failed.Store(&err)
			}
			show.Add()
		})
		time.Sleep(time.Duration(pause.ExpFloat64() / e.rate * float64(time.Second)))
	}
	wg.Wait()
	if err := failed.Load(); err != nil {
		return fmt.Errorf("live traffic: %w", *err)
	}
	return ctx.Err()
}

// uploadGate sends the labelled texts by which the job's gate judges. They are
// none of those that the accuracy below is measured on. (Without labels the gate
// would compare the logits' direction, which says little of two classes.)
func (e *example) uploadGate(ctx context.Context) error {
	var b bytes.Buffer
	for _, r := range e.data.gate {
		line, err := json.Marshal(r)
		if err != nil {
			return err
		}
		b.Write(append(line, '\n'))
	}
	return e.api.Do(ctx, http.MethodPut, "/datasets/"+gateName, "application/jsonl", &b, nil)
}

// quantize submits the job and follows it.
func (e *example) quantize(ctx context.Context, source string) (drive.Job, error) {
	return drive.Quantize(ctx, e.steps, e.api, "POST /quantize: int8 per channel, "+e.rule+", calibrated on what was captured", jobs.Spec{
		Model: modelName, Version: source, Scheme: "int8", Granularity: "per-channel", Operators: []string{e.rule}, Samples: e.samples,
		Calibration: &jobs.Calibration{Captured: &jobs.Captured{}}, Evaluation: &jobs.Evaluation{Dataset: gateName}, MaxLoss: 0.01, SLOms: e.targetMS, Promote: true, Force: e.force,
	}, func(j drive.Job, _ *report.Report) drive.Job { return j })
}

// accuracy is how both versions answer the same texts.
type accuracy struct {
	Paired eval.Paired `json:"paired"`
	Agree  int         `json:"agree"`
	N      int         `json:"n"`
}

func (e *example) accuracy(ctx context.Context, o *outcome) (a accuracy, err error) {
	show := drive.NewCounter(e.out, "texts", len(e.data.test))
	for _, r := range e.data.test {
		var labels [2]string
		for i, v := range []string{o.Float, o.Job.Version} {
			if err := e.classify(ctx, r.Text, v, &labels[i]); err != nil {
				return a, err
			}
		}
		a.Paired.Add(labels[0] == r.Label, labels[1] == r.Label)
		if labels[0] == labels[1] {
			a.Agree++
		}
		a.N++
		show.Add()
	}
	return a, nil
}

// cell is the latency of one batch size and length.
type cell struct {
	Batch int        `json:"batch"`
	Len   int        `json:"tokens"`
	FP32  figures    `json:"fp32_ms"`
	INT8  figures    `json:"int8_ms"`
	Ratio eval.Ratio `json:"ratio"`
}

type figures struct {
	N   int     `json:"n"`
	P50 float64 `json:"p50"`
	P90 float64 `json:"p90"`
	P99 float64 `json:"p99"`
}

type grid struct {
	Cells []cell    `json:"cells"`
	Noise []float64 `json:"load1"` // before and after
}

// latency measures tensors of every shape, one client over loopback, both
// versions in turn.
func (e *example) latency(ctx context.Context, o *outcome) (g grid, err error) {
	g.Noise = append(g.Noise, harness.LoadAverage())
	show := drive.NewCounter(e.out, "shapes", len(e.batches)*len(e.lengths))
	for _, n := range e.batches {
		for _, l := range e.lengths {
			body, head := inferBody(n, l)
			ask := func(version string) func(context.Context) error {
				url := e.api.Base + "/v2/models/" + modelName + "/versions/" + version + "/infer"
				header := map[string]string{"Inference-Header-Content-Length": strconv.Itoa(head)}
				return func(context.Context) error {
					_, err := harness.Call(http.DefaultClient, http.MethodPost, url, "application/octet-stream", header, bytes.NewReader(body))
					return err
				}
			}
			m, err := eval.Interleave(ctx, []func(context.Context) error{ask(o.Float), ask(o.Job.Version)},
				eval.InterleaveOptions{Rounds: e.rounds, Warmup: 2, MaxTime: e.cell})
			if err != nil {
				return g, err
			}
			g.Cells = append(g.Cells, cell{n, l, figuresOf(m.Candidates[0]), figuresOf(m.Candidates[1]), m.Ratios[1]})
			show.Add()
		}
	}
	g.Noise = append(g.Noise, harness.LoadAverage())
	return g, nil
}

func figuresOf(s eval.LatencyStats) figures { return figures{s.N, s.P50MS, s.P90MS, s.P99MS} }

// inferBody is a request of made-up token ids in the binary form, and the length
// of its JSON.
func inferBody(batch, length int) (body []byte, head int) {
	var inputs []map[string]any
	var tail []byte
	for _, name := range []string{"input_ids", "attention_mask", "token_type_ids"} {
		inputs = append(inputs, map[string]any{"name": name, "shape": []int{batch, length}, "datatype": "INT64",
			"parameters": map[string]any{"binary_data_size": 8 * batch * length}})
		for i := range batch * length {
			v := uint64(0)
			switch name {
			case "input_ids":
				v = uint64(1000 + 37*i%20000)
			case "attention_mask":
				v = 1
			}
			tail = binary.LittleEndian.AppendUint64(tail, v)
		}
	}
	b, _ := json.Marshal(map[string]any{"inputs": inputs}) // maps of strings and numbers always encode
	return append(b, tail...), len(b)
}

// loaded is one rate of arrivals.
type loaded struct {
	Rate float64       `json:"rate"`
	Ms   harness.Tally `json:"latency"`
}

type loads struct {
	Null  harness.Tally `json:"null_endpoint"`
	FP32  []loaded      `json:"fp32"`
	INT8  []loaded      `json:"int8"`
	Noise []float64     `json:"load1"`
}

// underLoad sends texts at Poisson arrivals, as users do, to the promoted
// version, and to FP32 as long as that keeps up.
func (e *example) underLoad(ctx context.Context, o *outcome) (l loads, err error) {
	l.Noise = append(l.Noise, harness.LoadAverage())
	null := func() error { return e.api.Do(ctx, http.MethodGet, "/v2/health/live", "", nil, nil) }
	l.Null = harness.Count(harness.OpenLoop(null, 100, min(e.load, 5*time.Second), 2))
	show := drive.NewCounter(e.out, "rates", 2*len(e.rates))
	for _, side := range []struct {
		version string
		to      *[]loaded
	}{{o.Job.Version, &l.INT8}, {o.Float, &l.FP32}} {
		texts := e.texts(e.data.live)
		ask := func() error { return e.classify(ctx, texts(), side.version, nil) }
		harness.OpenLoop(ask, e.rates[0], time.Second, 3) // loads the version, warms it up
		for i, rate := range e.rates {
			t := harness.Count(harness.OpenLoop(ask, rate, e.load, uint64(10+i)))
			if err := ctx.Err(); err != nil {
				return l, err
			}
			if t.Answered == 0 {
				return l, fmt.Errorf("none of %d requests was answered at %g a second", t.Sent, rate)
			}
			*side.to = append(*side.to, loaded{rate, t})
			show.Add()
			if t.P99MS > 10*e.targetMS {
				break // far past what it can do: the rest would only queue
			}
		}
	}
	l.Noise = append(l.Noise, harness.LoadAverage())
	return l, nil
}

// texts returns a function that gives one text after the other, in an order of
// its own, for ever.
func (e *example) texts(from []row) func() string {
	order := rand.New(rand.NewPCG(7, 7)).Perm(len(from))
	var next atomic.Int64
	return func() string { return from[order[int(next.Add(1)-1)%len(order)]].Text }
}

// classify asks one version ("" is the default) about one text.
func (e *example) classify(ctx context.Context, text, version string, label *string) error {
	in := map[string]any{"model": modelName, "text": text, "top": 1}
	if version != "" {
		in["version"] = version
	}
	var out struct {
		Results []struct {
			Label string `json:"label"`
		} `json:"results"`
	}
	if err := e.api.SendJSON(ctx, "/v1/classify", in, &out); err != nil {
		return err
	}
	if len(out.Results) != 1 {
		return fmt.Errorf("POST /v1/classify answered %d results for one text", len(out.Results))
	}
	if label != nil {
		*label = out.Results[0].Label
	}
	return nil
}

func (e *example) put(ctx context.Context, path string, in any) error {
	b, err := json.Marshal(in)
	if err != nil {
		return err
	}
	return e.api.Do(ctx, http.MethodPut, path, "application/json", bytes.NewReader(b), nil)
}
