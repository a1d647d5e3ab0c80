package quant

import (
	"context"
	"fmt"

	"github.com/fewbit/fewbit/internal/graph"
)

// Residuals is the pass that writes the residual additions before layer
// normalizations as Sum. Sum of two inputs is the same arithmetic as Add, but
// ONNX Runtime does not fuse it into SkipLayerNormalization, whose CPU kernel
// takes more than three times as long as the two operators (docs/adr/0003).
type Residuals struct{}

var _ Pass = Residuals{}

// Name implements Pass.
func (Residuals) Name() string { return "residual-sums" }

// Run implements Pass.
func (Residuals) Run(_ context.Context, m *graph.Model) (Stats, error) {
	g := m.Graph
	ix := g.Index()
	count := 0
	for _, n := range g.Nodes {
		if !n.Is("Add") || len(n.Inputs) != 2 || g.Init(n.Inputs[0]) != nil || g.Init(n.Inputs[1]) != nil {
			continue
		}
		for _, u := range ix.Uses(n.Outputs[0]) {
			// ReduceMean starts a layer normalization that the exporter decomposed.
			if u.Node.Op == "LayerNormalization" || u.Node.Op == "ReduceMean" {
				n.Op = "Sum"
				count++
				break
			}
		}
	}
	return Stats{Changed: count, Note: fmt.Sprintf("%d residual additions", count)}, nil
}
