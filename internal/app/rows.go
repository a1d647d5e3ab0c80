package app

import (
	"context"
	"path/filepath"

	"github.com/fewbit/fewbit/internal/engine"
	"github.com/fewbit/fewbit/internal/engine/batch"
	"github.com/fewbit/fewbit/internal/graph"
	"github.com/fewbit/fewbit/internal/registry"
)

// acrossRows are operators whose result for one row depends on the others in
// the batch: one scale is measured for all of them.
var acrossRows = map[string]bool{
	"DynamicQuantizeLinear": true, "DynamicQuantizeMatMul": true, "DynamicQuantizeLSTM": true,
}

// independent is batch.Independent, and says where it costs speed.
func (a *App) independent(ctx context.Context, model string, s engine.Session) (bool, error) {
	ok, err := batch.Independent(ctx, s)
	if !ok && err == nil {
		a.log.Warn("requests of this model do not share runs: made-up rows are not answered the same alone and together", "model", model)
	}
	return ok, err
}

// rowsDepend reports whether the model in dir gives other answers when requests
// share a run.
func rowsDepend(dir string) (bool, error) {
	m, err := graph.Open(filepath.Join(dir, registry.ModelFile))
	if err != nil {
		return false, err
	}
	depend := false
	look := func(n *graph.Node) {
		depend = depend || acrossRows[n.Op]
		n.Bodies(func(inner *graph.Node, _ map[string]bool) { depend = depend || acrossRows[inner.Op] })
	}
	for _, n := range m.Graph.Nodes {
		look(n)
	}
	for _, f := range m.Functions() {
		for _, n := range f.GetNode() {
			look(graph.NewNode(n.GetDomain(), n.GetOpType(), n.GetName(), n.Input, n.Output, n.Attribute...))
		}
	}
	return depend, m.Close()
}
