package tflite

import (
	"errors"
	"os"
	"testing"

	"google.golang.org/protobuf/proto"

	"github.com/fewbit/fewbit/internal/graph"
	"github.com/fewbit/fewbit/internal/onnx"
)

// FuzzConvert takes any bytes the whole way: they become a file that can be read,
// or an error.
func FuzzConvert(f *testing.F) {
	for _, seed := range []string{"testdata/classifier.onnx", "testdata/mobile.onnx", "testdata/gates.onnx", "testdata/wide.onnx", "testdata/half.onnx"} {
		b, err := os.ReadFile(seed)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		p, err := onnx.Parse(data)
		if err != nil {
			return
		}
		m, err := graph.FromProto(p)
		if err != nil || m.Check() != nil {
			return
		}
		res, err := Convert(m, Options{})
		if err != nil {
			return
		}
		dump(res.File)
	})
}

// The seeds are models of this package's tests; -update writes them.
func TestSeeds(t *testing.T) {
	for path, m := range map[string]*graph.Model{"testdata/classifier.onnx": classifier(t), "testdata/mobile.onnx": mobile(t), "testdata/gates.onnx": gates(t), "testdata/wide.onnx": wide(t), "testdata/half.onnx": half(t)} {
		p, err := m.Proto()
		if err != nil {
			t.Fatal(err)
		}
		b, err := proto.MarshalOptions{Deterministic: true}.Marshal(p)
		if err != nil {
			t.Fatal(err)
		}
		if *update {
			if err := os.WriteFile(path, b, 0o644); err != nil {
				t.Fatal(err)
			}
		}
		if _, err := Convert(m, Options{}); err != nil {
			t.Errorf("%s: %v", path, err)
		}
		if _, err := os.Stat(path); errors.Is(err, os.ErrNotExist) {
			t.Errorf("%s is missing: go test ./internal/tflite -update writes it", path)
		}
	}
}
