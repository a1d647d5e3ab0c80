package main

import (
	"encoding/json"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/fewbit/fewbit/benchmarks/harness"
	"github.com/fewbit/fewbit/internal/engine"
	"github.com/fewbit/fewbit/internal/tensor"
)

const sequence = 128

// asker sends requests to the server's model.
type asker struct {
	srv   *harness.Server
	host  string
	conns conns
	feeds engine.Feeds // of one text
	spec  engine.IOSpec
}

func newAsker(srv *harness.Server, spec engine.IOSpec) (*asker, error) {
	host := strings.TrimPrefix(srv.Base, "http://")
	feeds, err := textFeeds(spec, 1, sequence)
	if err != nil {
		return nil, err
	}
	return &asker{srv: srv, host: host, conns: conns{addr: host}, spec: spec, feeds: feeds}, nil
}

// textFeeds are rows made-up texts of n tokens for an encoder.
func textFeeds(spec engine.IOSpec, rows, n int) (engine.Feeds, error) {
	feeds := engine.Feeds{}
	for _, io := range spec.Inputs {
		if io.Type != tensor.Int64 || len(io.Dims) != 2 {
			return nil, fmt.Errorf("input %s is %v of %v, expected the ids of a text encoder", io.Name, io.Dims, io.Type)
		}
		v := make([]int64, rows*n)
		for i := range v {
			switch io.Name {
			case "input_ids":
				v[i] = int64(1000 + 37*i%20000)
			case "attention_mask":
				v[i] = 1
			}
		}
		feeds[io.Name] = tensor.From(v, int64(rows), int64(n))
	}
	return feeds, nil
}

// request is an inference with that deadline, 0 for none.
func (a *asker) request(deadline time.Duration) func() error {
	type param map[string]any
	var inputs []param
	var tail []byte
	for _, io := range a.spec.Inputs {
		t := a.feeds[io.Name]
		inputs = append(inputs, param{"name": io.Name, "shape": t.Dims, "datatype": "INT64", "parameters": param{"binary_data_size": len(t.Data)}})
		tail = append(tail, t.Data...)
	}
	params := param{"binary_data_output": true}
	if deadline > 0 {
		params["timeout"] = deadline.Microseconds()
	}
	// One output, the smallest: what is measured is the server, not loopback.
	out := a.spec.Outputs[len(a.spec.Outputs)-1].Name
	head, _ := json.Marshal(param{"parameters": params, "inputs": inputs, "outputs": []param{{"name": out}}}) // maps and strings always encode
	body := append(head, tail...)
	headers := map[string]string{"Content-Type": "application/octet-stream", "Inference-Header-Content-Length": strconv.Itoa(len(head))}
	if deadline > 0 { // by the head, so that what is hopeless need not be read
		headers["Inference-Timeout"] = strconv.FormatInt(deadline.Microseconds(), 10)
	}
	raw := rawRequest("POST", a.host, "/v2/models/"+modelName+"/infer", headers, body)
	return func() error { return a.conns.do(raw) }
}

// null asks for what needs no work.
func (a *asker) null() error {
	return a.conns.do(rawRequest("GET", a.host, "/v2/health/live", nil, nil))
}
