// Command overhead measures what the server adds to a small model: the latency
// of one request at concurrency 1 over loopback, against the same session
// called in this process, interleaved call by call. It writes
// benchmarks/results/overhead.json and is run by benchmarks/run.sh.
package main

import (
	"bytes"
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"math/rand/v2"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"github.com/fewbit/fewbit/benchmarks/harness"
	"github.com/fewbit/fewbit/internal/engine"
	"github.com/fewbit/fewbit/internal/engine/ort"
	"github.com/fewbit/fewbit/internal/eval"
	"github.com/fewbit/fewbit/internal/graph"
	"github.com/fewbit/fewbit/internal/onnx"
	"github.com/fewbit/fewbit/internal/tensor"
)

// The small model: two dense layers, 64 -> 256 -> 8, batch 1.
const (
	in, hidden, out = 64, 256, 8
	modelName       = "small"
	barMS           = 0.4
	startTimeout    = time.Minute
)

const how = `Server overhead: one client, one connection, loopback, the small model 64 -> 256 -> 8 at batch 1; the same file in a session of this process. The three are called in turn; the client's own cost counts as the server's. Capture: four clients, half a second with a capture at its default settings and half a second without, in turn.`

func main() {
	serve := flag.String("serve", "bin/serve", "the server")
	results := flag.String("o", "benchmarks/results", "the folder that the result goes into")
	flag.Parse()
	if err := run(*serve, *results); err != nil {
		fmt.Fprintln(os.Stderr, "overhead:", err)
		os.Exit(1)
	}
}

func run(serve, results string) error {
	ctx := context.Background()
	dir, err := os.MkdirTemp("", "fewbit-overhead")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	model := filepath.Join(dir, "model.onnx")
	if err := smallModel(model); err != nil {
		return err
	}
	e, err := ort.New(ort.Config{})
	if err != nil {
		return err
	}
	device, err := e.Probe(ctx)
	if err != nil {
		return err
	}
	session, err := e.OpenFile(ctx, model, engine.Options{})
	if err != nil {
		return err
	}
	defer session.Close()

	key, err := captureKey(dir)
	if err != nil {
		return err
	}
	srv, err := harness.Start(serve, filepath.Join(dir, "data"), "--capture-key", key)
	if err != nil {
		return err
	}
	defer srv.Stop()
	base := srv.Base
	f, err := os.Open(model)
	if err != nil {
		return err
	}
	defer f.Close()
	if _, err := harness.Call(httpClient, http.MethodPut, base+"/models/"+modelName, "application/octet-stream", nil, f); err != nil {
		return err
	}
	if err := harness.Wait(base + "/v2/models/" + modelName + "/ready"); err != nil {
		return err
	}

	x := make([]float32, in)
	for i := range x {
		x[i] = rand.Float32()
	}
	feeds := engine.Feeds{"x": tensor.From(x, 1, in)}
	inProcess := func(ctx context.Context) error {
		r, err := session.Run(ctx, feeds, nil)
		if err == nil {
			r.Close()
		}
		return err
	}
	binary := binaryRequest(httpClient, base, feeds["x"].Data)
	asJSON := jsonRequest(base, x)

	rounds := 2000
	if harness.Full() {
		rounds = 20000
	}
	res := harness.NewResult("overhead", "Server overhead", how, device.Version)
	l, err := eval.Interleave(ctx, []func(context.Context) error{inProcess, binary, asJSON}, eval.InterleaveOptions{Rounds: rounds, Warmup: 200})
	if err != nil {
		return err
	}
	here := l.Candidates[0]
	for i, what := range []string{"binary tensors", "JSON tensors"} {
		c := l.Candidates[i+1]
		added := c.P50MS - here.P50MS
		holds := added <= barMS
		res.Add(harness.Row{What: "server overhead, " + what, Ours: fmt.Sprintf("p50 +%.3f ms", added), Peer: fmt.Sprintf("in process: p50 %.3f ms", here.P50MS),
			Bar: fmt.Sprintf("<= %.1f ms", barMS), Holds: &holds,
			Details: map[string]any{"in_process": plain(here), "over_http": plain(c), "added_p50_ms": added}})
	}
	err = captureCost(ctx, res, base, func(c *http.Client) func(context.Context) error { return binaryRequest(c, base, feeds["x"].Data) })
	if err != nil {
		return err
	}
	return res.Write(harness.Path(results, "overhead"))
}

func smallModel(path string) error {
	dense := func(a, b int64) *tensor.Tensor {
		w := make([]float32, a*b)
		for i := range w {
			w[i] = rand.Float32() - .5
		}
		return tensor.From(w, a, b)
	}
	value := func(name string, n int64) *graph.Value {
		return &graph.Value{Name: name, Type: tensor.Float32, Dims: []graph.Dim{{N: -1, Name: "batch"}, {N: n}}}
	}
	m := &graph.Model{IR: 8, Opsets: map[string]int64{"": 17}, Metadata: map[string]string{}, Graph: &graph.Graph{
		Name: "small", Inputs: []*graph.Value{value("x", in)}, Outputs: []*graph.Value{value("y", out)}, Info: map[string]*graph.Value{},
		Nodes: []*graph.Node{
			graph.NewNode("", "MatMul", "first", []string{"x", "w1"}, []string{"h"}),
			graph.NewNode("", "Relu", "relu", []string{"h"}, []string{"r"}),
			graph.NewNode("", "MatMul", "second", []string{"r", "w2"}, []string{"y"}),
		}}}
	m.Graph.SetInit("w1", dense(in, hidden))
	m.Graph.SetInit("w2", dense(hidden, out))
	if err := m.Check(); err != nil {
		return err
	}
	return m.Save(path, onnx.SaveOptions{})
}

var httpClient = &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: 1}}

func inferURL(base string) string { return base + "/v2/models/" + modelName + "/infer" }

// binaryRequest sends the input, and asks for the output, as binary tensors.
func binaryRequest(c *http.Client, base string, data []byte) func(context.Context) error {
	head := fmt.Sprintf(`{"parameters":{"binary_data_output":true},"inputs":[{"name":"x","shape":[1,%d],"datatype":"FP32","parameters":{"binary_data_size":%d}}]}`, in, len(data))
	body := append([]byte(head), data...)
	header := map[string]string{"Inference-Header-Content-Length": strconv.Itoa(len(head))}
	return func(context.Context) error {
		_, err := harness.Call(c, http.MethodPost, inferURL(base), "application/octet-stream", header, bytes.NewReader(body))
		return err
	}
}

func jsonRequest(base string, x []float32) func(context.Context) error {
	data, _ := json.Marshal(x) // float32 slices always encode
	body := []byte(fmt.Sprintf(`{"inputs":[{"name":"x","shape":[1,%d],"datatype":"FP32","data":%s}]}`, in, data))
	return func(context.Context) error {
		_, err := harness.Call(httpClient, http.MethodPost, inferURL(base), "application/json", nil, bytes.NewReader(body))
		return err
	}
}

// plain drops the curve, which a committed result does not need.
func plain(s eval.LatencyStats) eval.LatencyStats {
	s.CurveMS = nil
	return s
}
