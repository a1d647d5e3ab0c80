package pipeline

import (
	"context"
	"testing"

	"github.com/fewbit/fewbit/internal/graph"
	"github.com/fewbit/fewbit/internal/quant"
	"github.com/fewbit/fewbit/internal/tensor"
)

// TestPortsSharedOutput: with codes at the ends, an output that operators of the model read
// too keeps its name, and the operator that makes it is compared like the others.
func TestPortsSharedOutput(t *testing.T) {
	p := testPipeline(t)
	m := mlp()
	m.Graph.Outputs = append(m.Graph.Outputs, &graph.Value{Name: m.Graph.Nodes[0].Outputs[0], Type: tensor.Float32})
	rep, err := p.Quantize(context.Background(), Request{Model: save(t, m), Calib: npy(t, 3, 96, 9, 64), Samples: 60,
		Config: quant.Config{Target: quant.QDQ, Ports: true}, NoLatency: true, Force: true}, nil)
	if err != nil {
		t.Fatal(err)
	}
	for _, o := range rep.Operators {
		if !(o.SQNR > 20) {
			t.Errorf("%s: %v dB", o.Name, o.SQNR)
		}
	}
}
