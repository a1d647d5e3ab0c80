// Command overhead measures what the server adds to a small model: the latency
// of one request at concurrency 1 over loopback, against the same session
// called in this process, interleaved call by call. It writes
// benchmarks/results/overhead.json and is run by benchmarks/run.sh.
package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"math"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

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

func main() {
	serve := flag.String("serve", "bin/serve", "the server")
	result := flag.String("o", "benchmarks/results/overhead.json", "where the result goes")
	flag.Parse()
	if err := run(*serve, *result); err != nil {
		fmt.Fprintln(os.Stderr, "overhead:", err)
		os.Exit(1)
	}
}

func run(serve, result string) error {
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
	session, err := e.OpenFile(ctx, model, engine.Options{})
	if err != nil {
		return err
	}
	defer session.Close()

	base, stop, err := startServer(serve, filepath.Join(dir, "data"))
	if err != nil {
		return err
	}
	defer stop()
	f, err := os.Open(model)
	if err != nil {
		return err
	}
	defer f.Close()
	if _, err := call(http.MethodPut, base+"/models/"+modelName, "application/octet-stream", nil, f); err != nil {
		return err
	}
	if err := waitFor(base + "/v2/models/" + modelName + "/ready"); err != nil {
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
	binary := binaryRequest(base, feeds["x"].Data)
	asJSON := jsonRequest(base, x)

	rounds := 2000
	if os.Getenv("FEWBIT_BENCH") == "full" {
		rounds = 20000
	}
	before, _ := loadAverage()
	l, err := eval.Interleave(ctx, []func(context.Context) error{inProcess, binary, asJSON}, eval.InterleaveOptions{Rounds: rounds, Warmup: 200})
	if err != nil {
		return err
	}
	return writeResult(result, e, l, before)
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

// startServer starts the server on a free loopback port and waits until it is ready.
func startServer(serve, data string) (base string, stop func(), err error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", nil, err
	}
	addr := l.Addr().String()
	l.Close()
	cmd := exec.Command(serve, "--listen", addr, "--data-dir", data)
	cmd.Stderr = os.Stderr
	if err := cmd.Start(); err != nil {
		return "", nil, fmt.Errorf("%w; run make build", err)
	}
	stop = func() {
		_ = cmd.Process.Signal(syscall.SIGTERM)
		_ = cmd.Wait()
	}
	base = "http://" + addr
	if err := waitFor(base + "/v2/health/ready"); err != nil {
		stop()
		return "", nil, err
	}
	return base, stop, nil
}

func waitFor(url string) error {
	for start := time.Now(); time.Since(start) < startTimeout; time.Sleep(20 * time.Millisecond) {
		if _, err := call(http.MethodGet, url, "", nil, nil); err == nil {
			return nil
		}
	}
	return fmt.Errorf("%s did not become ready in %v", url, startTimeout)
}

var httpClient = &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: 1}}

// call sends one request over the kept-alive connection and reads the answer.
func call(method, url, contentType string, header map[string]string, body io.Reader) ([]byte, error) {
	req, err := http.NewRequest(method, url, body)
	if err != nil {
		return nil, err
	}
	if contentType != "" {
		req.Header.Set("Content-Type", contentType)
	}
	for k, v := range header {
		req.Header.Set(k, v)
	}
	resp, err := httpClient.Do(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err == nil && resp.StatusCode/100 != 2 {
		err = errors.New(resp.Status + ": " + strings.TrimSpace(string(b)))
	}
	return b, err
}

func inferURL(base string) string { return base + "/v2/models/" + modelName + "/infer" }

// binaryRequest sends the input, and asks for the output, as binary tensors.
func binaryRequest(base string, data []byte) func(context.Context) error {
	head := fmt.Sprintf(`{"parameters":{"binary_data_output":true},"inputs":[{"name":"x","shape":[1,%d],"datatype":"FP32","parameters":{"binary_data_size":%d}}]}`, in, len(data))
	body := append([]byte(head), data...)
	header := map[string]string{"Inference-Header-Content-Length": strconv.Itoa(len(head))}
	return func(context.Context) error {
		_, err := call(http.MethodPost, inferURL(base), "application/octet-stream", header, bytes.NewReader(body))
		return err
	}
}

func jsonRequest(base string, x []float32) func(context.Context) error {
	data, _ := json.Marshal(x) // float32 slices always encode
	body := []byte(fmt.Sprintf(`{"inputs":[{"name":"x","shape":[1,%d],"datatype":"FP32","data":%s}]}`, in, data))
	return func(context.Context) error {
		_, err := call(http.MethodPost, inferURL(base), "application/json", nil, bytes.NewReader(body))
		return err
	}
}

// loadAverage returns the one-minute load, and whether the system tells.
func loadAverage() (float64, bool) {
	b, err := os.ReadFile("/proc/loadavg")
	if err != nil {
		return 0, false
	}
	var v float64
	_, err = fmt.Sscan(string(b), &v)
	return v, err == nil && !math.IsNaN(v)
}
