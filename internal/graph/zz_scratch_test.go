package graph

import (
	"os"
	"testing"

	"github.com/fewbit/fewbit/internal/onnx"
)

func TestScratch(t *testing.T) {
	in, out := os.Getenv("SCR_IN"), os.Getenv("SCR_OUT")
	if in == "" {
		t.Skip()
	}
	m, err := Open(in)
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	n0 := len(m.Graph.Nodes)
	a := LiftConstants(m)
	i := DropIdentities(m)
	f := FoldConstants(m)
	b := FoldBatchNorm(m)
	t.Logf("%d nodes; lifted %d identities %d folded %d bn %d -> %d", n0, a, i, f, b, len(m.Graph.Nodes))
	if err := m.Check(); err != nil {
		t.Fatal(err)
	}
	if err := m.Save(out, onnx.SaveOptions{}); err != nil {
		t.Fatal(err)
	}
	if os.Getenv("SCR_TEXT") != "" {
		os.WriteFile(os.Getenv("SCR_TEXT"), []byte(m.Text()), 0o644)
	}
}
