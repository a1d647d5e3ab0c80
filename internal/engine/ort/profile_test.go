package ort

import (
	"errors"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/fewbit/fewbit/internal/engine"
	"github.com/fewbit/fewbit/internal/tensor"
)

const sampleProfile = `[
{"cat" : "Session","pid" :1,"tid" :1,"dur" :196,"ts" :6,"ph" : "X","name" :"model_loading_uri","args" : {}},
{"cat" : "Node","pid" :1,"tid" :1,"dur" :90,"ts" :8,"ph" : "X","name" :"/a/Add_kernel_time","args" : {"node_index" : "0","input_type_shape" : [{"float":[2,2]},{"uint8":[]}],"provider" : "CPUExecutionProvider","thread_scheduling_stats" : {"main_thread": {"block_size": [1], "core": -1}},"output_type_shape" : [{"seq(tensor(float))":[2,2]}],"op_name" : "Add"}},
{"cat" : "Node","name" :"/a/Add_fence_before","dur" :7,"args" : {"op_name" : "Add"}},
{"cat" : "Node","name" :"/a/Add_kernel_time","dur" :10,"args" : {"node_index" : "0","op_name" : "Add"}}
]
`

func TestParseProfile(t *testing.T) {
	got, err := ParseProfile(strings.NewReader(sampleProfile))
	want := []NodeTime{{Node: "/a/Add", Op: "Add", Provider: "CPUExecutionProvider",
		Inputs: []tensor.DType{tensor.Float32, tensor.Uint8}, Outputs: []tensor.DType{tensor.Undefined},
		Calls: 2, Total: 100 * time.Microsecond}}
	if err != nil || !reflect.DeepEqual(got, want) {
		t.Fatalf("got %+v, %v\nwant %+v", got, err, want)
	}
	if got, err := ParseProfile(strings.NewReader("[]")); err != nil || len(got) != 0 {
		t.Errorf("empty profile: %v, %v", got, err)
	}
}

func TestParseProfileRefuses(t *testing.T) {
	node := func(s string) string { return `[{"cat":"Node","name":"a_kernel_time",` + s + `}]` }
	for name, s := range map[string]string{
		"empty": "", "object": "{}", "text": "hello", "cut": sampleProfile[:300], "no end": "[",
		"no args": node(`"dur":1`), "negative": node(`"dur":-1,"args":{}`), "forever": node(`"dur":9e18,"args":{}`),
		"text duration": node(`"dur":"x","args":{}`), "args a list": node(`"dur":1,"args":[]`),
		"shapes a number": node(`"dur":1,"args":{"input_type_shape":3}`),
		"long name":       `[{"cat":"Node","dur":1,"args":{},"name":"` + strings.Repeat("a", maxEventName) + kernelSuffix + `"}]`,
		"huge event":      `[{"cat":"` + strings.Repeat("a", 2*maxEventBytes) + `"}]`,
		"deep":            strings.Repeat("[", 100_000),
	} {
		if _, err := ParseProfile(strings.NewReader(s)); !errors.Is(err, ErrProfile) {
			t.Errorf("%s: got %v, want ErrProfile", name, err)
		}
	}
}

func FuzzParseProfile(f *testing.F) {
	f.Add(sampleProfile)
	f.Add("[]")
	f.Add(`[{"cat":"Node","name":"_kernel_time","dur":1,"args":{}}]`)
	f.Fuzz(func(t *testing.T, s string) {
		nodes, err := ParseProfile(strings.NewReader(s))
		if err != nil && !errors.Is(err, ErrProfile) {
			t.Errorf("error %v is not ErrProfile", err)
		}
		for _, n := range nodes {
			if n.Calls < 1 || n.Total < 0 || n.Total > time.Duration(n.Calls)*24*time.Hour {
				t.Errorf("node %+v", n)
			}
		}
	})
}

func TestProfileOfARun(t *testing.T) {
	dir := t.TempDir()
	s := open(t, add("n", 2), engine.Options{Profile: filepath.Join(dir, "p")})
	in := engine.Feeds{"a": tensor.From([]float32{1, 2}, 1, 2), "b": tensor.From([]float32{3, 4}, 1, 2)}
	for range 3 {
		run(t, s, in)
	}
	file, err := s.EndProfile()
	if err != nil {
		t.Fatal(err)
	}
	if again, err := s.EndProfile(); err != nil || again != file || filepath.Dir(file) != dir {
		t.Errorf("second EndProfile: %q, %v; first %q", again, err, file)
	}
	f, err := os.Open(file)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	nodes, err := ParseProfile(f)
	if err != nil {
		t.Fatal(err)
	}
	if len(nodes) != 1 || nodes[0].Op != "Add" || nodes[0].Node != "/test/Add_sum" || nodes[0].Calls != 3 ||
		!reflect.DeepEqual(nodes[0].Inputs, []tensor.DType{tensor.Float32, tensor.Float32}) {
		t.Errorf("nodes %+v", nodes)
	}

	if _, err := newEngine(t).Open(t.Context(), add(1).file(t), engine.Options{Profile: filepath.Join(dir, "missing", "p")}); err == nil {
		t.Error("a profile in a folder that does not exist was accepted")
	}
}
