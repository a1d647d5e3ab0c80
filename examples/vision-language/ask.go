package main

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"math"
	"math/rand/v2"
	"net/http"
	"os"
	"path/filepath"
	"strconv"

	"github.com/fewbit/fewbit/benchmarks/harness"
	"github.com/fewbit/fewbit/internal/eval"
	"github.com/fewbit/fewbit/internal/report"
	"github.com/fewbit/fewbit/tools/drive"
)

// answer is what the model says about some images, one row each.
type answer struct {
	logits []float32 // [images, captions]
	embeds []float32 // of the images; asked for where accuracy is measured
}

// request is images a to b with their captions in the binary form, and the length
// of its JSON.
func (e *example) request(im images, a, b int, outputs ...string) (body []byte, head int) {
	r := e.data.receipt
	x, one := im.normalized(r, a, b), r.captions()
	var tail bytes.Buffer
	_ = binary.Write(&tail, binary.LittleEndian, x) // a buffer takes all
	for range b - a {
		_ = binary.Write(&tail, binary.LittleEndian, one)
	}
	type output struct {
		Name string `json:"name"`
	}
	var wanted []output
	for _, o := range outputs {
		wanted = append(wanted, output{o})
	}
	input := func(name, kind string, bytes int, shape ...int) map[string]any {
		return map[string]any{"name": name, "shape": shape, "datatype": kind, "parameters": map[string]any{"binary_data_size": bytes}}
	}
	// Maps of strings and numbers always encode.
	j, _ := json.Marshal(map[string]any{"outputs": wanted, "inputs": []any{
		input("pixel_values", "FP32", 4*len(x), b-a, 1, side, side),
		input("input_ids", "INT64", 8*len(one)*(b-a), b-a, len(r.Classes), len(one)/len(r.Classes)),
	}})
	return append(j, tail.Bytes()...), len(j)
}

// send asks a version.
func (e *example) send(version string, body []byte, head int) ([]byte, error) {
	return harness.Call(http.DefaultClient, http.MethodPost, e.api.Base+"/v2/models/"+modelName+"/versions/"+version+"/infer", "application/octet-stream",
		map[string]string{"Inference-Header-Content-Length": strconv.Itoa(head)}, bytes.NewReader(body))
}

// ask asks a version about images a to b; without outputs about the logits only.
func (e *example) ask(version string, im images, a, b int, outputs ...string) (answer, error) {
	if len(outputs) == 0 {
		outputs = []string{"logits_per_image"}
	}
	body, head := e.request(im, a, b, outputs...)
	raw, err := e.send(version, body, head)
	if err != nil {
		return answer{}, err
	}
	var out struct {
		Outputs []struct {
			Name string    `json:"name"`
			Data []float32 `json:"data"`
		} `json:"outputs"`
	}
	if err := json.Unmarshal(raw, &out); err != nil {
		return answer{}, fmt.Errorf("the answer is not what was expected: %w", err)
	}
	var w answer
	for _, o := range out.Outputs {
		switch o.Name {
		case "logits_per_image":
			w.logits = o.Data
		case "image_embeds":
			w.embeds = o.Data
		}
	}
	if len(w.logits) != (b-a)*len(e.data.receipt.Classes) || len(w.embeds)%(b-a) != 0 {
		return answer{}, fmt.Errorf("%d logits and %d numbers of embeddings for %d images with %d captions", len(w.logits), len(w.embeds), b-a, len(e.data.receipt.Classes))
	}
	return w, nil
}

// best is where the largest value stands.
func best(x []float32) int {
	at := 0
	for i, v := range x {
		if v > x[at] {
			at = i
		}
	}
	return at
}

// accuracy is how both versions answer about the same images.
type accuracy struct {
	Paired  eval.Paired `json:"paired"`
	Agree   int         `json:"agree"`
	N       int         `json:"n"`
	Cosine  float64     `json:"cosine_mean"` // of the image embeddings of both versions
	Lowest  float64     `json:"cosine_min"`
	Logits  float64     `json:"logits_cosine_mean"`
	LowestL float64     `json:"logits_cosine_min"`
}

func (e *example) accuracy(ctx context.Context, o *outcome) (a accuracy, err error) {
	a.Lowest, a.LowestL = 1, 1
	show := drive.NewCounter(e.out, "images", e.data.test.n())
	k := len(e.data.receipt.Classes)
	for i := 0; i < e.data.test.n(); i += e.batch {
		if err := ctx.Err(); err != nil {
			return a, err
		}
		end := min(i+e.batch, e.data.test.n())
		var w [2]answer
		for v, version := range []string{o.Float, o.Job.Version} {
			if w[v], err = e.ask(version, e.data.test, i, end, "logits_per_image", "image_embeds"); err != nil {
				return a, err
			}
		}
		width := len(w[0].embeds) / (end - i)
		for n := range end - i {
			x, y, label := w[0].logits[n*k:(n+1)*k], w[1].logits[n*k:(n+1)*k], int(e.data.test.labels[i+n])
			a.Paired.Add(best(x) == label, best(y) == label)
			if best(x) == best(y) {
				a.Agree++
			}
			c, l := cosine(w[0].embeds[n*width:(n+1)*width], w[1].embeds[n*width:(n+1)*width]), cosine(x, y)
			a.Cosine, a.Lowest, a.Logits, a.LowestL = a.Cosine+c, min(a.Lowest, c), a.Logits+l, min(a.LowestL, l)
			a.N++
			show.Add()
		}
	}
	a.Cosine, a.Logits = a.Cosine/float64(a.N), a.Logits/float64(a.N)
	return a, nil
}

func cosine(a, b []float32) float64 {
	var ab, aa, bb float64
	for i := range a {
		ab, aa, bb = ab+float64(a[i])*float64(b[i]), aa+float64(a[i])*float64(a[i]), bb+float64(b[i])*float64(b[i])
	}
	return ab / max(math.Sqrt(aa*bb), math.SmallestNonzeroFloat64)
}

type figures struct {
	N   int     `json:"n"`
	P50 float64 `json:"p50"`
	P90 float64 `json:"p90"`
	P99 float64 `json:"p99"`
}

func figuresOf(s eval.LatencyStats) figures { return figures{s.N, s.P50MS, s.P90MS, s.P99MS} }

// latency is that of one frame over HTTP.
type latency struct {
	FP32  figures    `json:"fp32_ms"`
	INT8  figures    `json:"int8_ms"`
	Ratio eval.Ratio `json:"ratio"`
	Load  float64    `json:"load1"` // before
}

func (e *example) measureLatency(ctx context.Context, o *outcome) (l latency, err error) {
	l.Load = harness.LoadAverage()
	body, head := e.request(e.data.test, 0, 1, "logits_per_image")
	ask := func(version string) func(context.Context) error {
		return func(context.Context) error {
			_, err := e.send(version, body, head)
			return err
		}
	}
	m, err := eval.Interleave(ctx, []func(context.Context) error{ask(o.Float), ask(o.Job.Version)},
		eval.InterleaveOptions{Rounds: e.rounds, Warmup: 5, MaxTime: e.latency})
	if err != nil {
		return l, err
	}
	l.FP32, l.INT8, l.Ratio = figuresOf(m.Candidates[0]), figuresOf(m.Candidates[1]), m.Ratios[1]
	return l, nil
}

// bigModel is CLIP at full size with random weights: nothing of it says anything
// about accuracy.
type bigModel struct {
	Bytes     int64         `json:"fp32_bytes"`
	Quantized int64         `json:"bytes"`
	Memory    report.Memory `json:"memory"`
	FP32      figures       `json:"fp32_ms"`
	INT8      figures       `json:"int8_ms"`
	Ratio     eval.Ratio    `json:"ratio"`
	Load      float64       `json:"load1"`
}

const (
	bigSide, bigTokens, bigTexts = 224, 77, 10
	vocabulary                   = 49408
)

// measureBig quantizes the large model by the same rules with made-up inputs, and
// measures it beside FP32: one image with ten captions.
func (c config) measureBig(ctx context.Context) (*bigModel, error) {
	in, out := filepath.Join(c.dir, "big.npz"), filepath.Join(c.dir, "big.onnx")
	defer os.Remove(in)
	f, err := os.Create(in)
	if err != nil {
		return nil, err
	}
	r, n := rand.New(rand.NewPCG(1, 1)), c.bigSamples+1 // one is left to judge
	x, ids := make([]float32, n*3*bigSide*bigSide), make([]int64, n*bigTexts*bigTokens)
	for i := range x {
		x[i] = float32(r.NormFloat64())
	}
	for i := range ids {
		ids[i] = r.Int64N(vocabulary - 2)
		if i%bigTokens == bigTokens-1 {
			ids[i] = vocabulary - 1 // the end
		}
	}
	if err := npz(f, array{"pixel_values", "<f4", []int{n, 3, bigSide, bigSide}, x}, array{"input_ids", "<i8", []int{n, bigTexts, bigTokens}, ids}); err != nil {
		return nil, err
	}
	if err := f.Close(); err != nil {
		return nil, err
	}
	b := &bigModel{Load: harness.LoadAverage()}
	// Random weights have nothing that GPTQ could save.
	args := []string{"quantize", c.big, "-o", out, "--calib", in, "--samples", strconv.Itoa(c.bigSamples), "--weights", "rtn", "--no-latency", "--force", "--json"}
	for _, rule := range rules {
		args = append(args, "--operators", rule)
	}
	if err := c.command(ctx, args, nil); err != nil {
		return nil, err
	}
	var rep report.Report
	if err := c.command(ctx, []string{"compare", c.big, out, "--data", in, "--samples", "1", "--json"}, &rep); err != nil {
		return nil, err
	}
	b.Bytes, b.Quantized, b.Memory = rep.Model.Bytes, rep.Quantized.Bytes, rep.Memory
	if rep.Evaluation == nil || rep.Evaluation.Latency == nil || len(rep.Evaluation.Latency.Candidates) != 2 {
		return nil, fmt.Errorf("fewbit compare measured no latency")
	}
	l := rep.Evaluation.Latency
	b.FP32, b.INT8, b.Ratio = figuresOf(l.Candidates[0]), figuresOf(l.Candidates[1]), l.Ratios[1]
	return b, os.Remove(out)
}
