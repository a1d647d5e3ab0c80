package graph

import (
	"bytes"
	"math"
	"os"
	"testing"

	"github.com/fewbit/fewbit/internal/onnx"
	"github.com/fewbit/fewbit/internal/onnx/pb"
	"google.golang.org/protobuf/proto"
)

// FuzzGraph takes any bytes the whole way: parse, check, text, every pass,
// write, and read again. What was a valid graph stays one.
func FuzzGraph(f *testing.F) {
	seed := func(m *Model) {
		p, err := m.Proto()
		if err != nil {
			f.Fatal(err)
		}
		b, err := proto.Marshal(p)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	seed(tiny())
	seed(attentionHead())
	seed(branches())
	seed(positions())
	fn := withFunctions()
	fn.shell = &pb.ModelProto{Functions: []*pb.FunctionProto{function("f", call("f"))}}
	seed(fn)
	for _, path := range []string{"testdata/branches11.onnx", "testdata/branches24.onnx"} {
		b, err := os.ReadFile(path)
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
		m, err := FromProto(p)
		if err != nil {
			return
		}
		valid := m.Check() == nil
		text := m.Text()
		if got := reread(t, m).Text(); got != text && m.IR >= minIR {
			t.Fatalf("the round trip changed the text:\n%s\n%s", text, got)
		}
		if m.Clone().Text() != text {
			t.Fatal("the clone differs")
		}
		if !valid {
			m.Graph.Sort()
			m.Graph.Prune()
			m.Text()
			return
		}
		for _, pass := range []struct {
			name string
			run  func(*Model)
		}{
			{"LiftConstants", func(m *Model) { LiftConstants(m) }},
			{"DropIdentities", func(m *Model) { DropIdentities(m) }},
			{"FoldConstants", func(m *Model) { FoldConstants(m) }},
			{"FoldBatchNorm", func(m *Model) { FoldBatchNorm(m) }},
			{"FoldChannelScales", func(m *Model) { FoldChannelScales(m) }},
			{"InferShapes", InferShapes},
			{"Sort", func(m *Model) {
				if err := m.Graph.Sort(); err != nil {
					t.Fatal(err)
				}
			}},
			{"Prune", func(m *Model) { m.Graph.Prune() }},
		} {
			before := m.Text()
			pass.run(m)
			if err := m.Check(); err != nil {
				t.Fatalf("%s: %v\nbefore:\n%s\nafter:\n%s", pass.name, err, before, m.Text())
			}
		}
		for n, v := range MACs(m, map[string]int64{"n": math.MaxInt64, "x[0]": 3}) {
			if v < 0 {
				t.Fatalf("%d multiply-accumulates in %s", v, n)
			}
		}
		reread(t, m)
	})
}

// reread writes m and reads it back.
func reread(t *testing.T, m *Model) *Model {
	t.Helper()
	p, err := m.Proto()
	if err != nil {
		t.Fatal(err)
	}
	var b bytes.Buffer
	if err := onnx.Write(&b, p); err != nil {
		t.Fatal(err)
	}
	if p, err = onnx.Parse(b.Bytes()); err != nil {
		t.Fatal(err)
	}
	again, err := FromProto(p)
	if err != nil {
		t.Fatal(err)
	}
	return again
}
