package pipeline

import (
	"cmp"
	"fmt"
	"math"
	"strconv"

	"github.com/fewbit/fewbit/internal/bare"
	"github.com/fewbit/fewbit/internal/graph"
	"github.com/fewbit/fewbit/internal/onnx"
	"github.com/fewbit/fewbit/internal/report"
)

// metadataPrefix begins the keys that Annotate sets.
const metadataPrefix = "fewbit."

// Annotate writes to out the quantized model at path with what the report says of
// each operator in its node's metadata, and of the whole in the model's, for viewers such as Netron:
// fewbit.sqnr_db, cosine, precision, macs and rule (why it stays in float). The graph stays
// as it is; out must be another file.
func Annotate(path, out string, rep *report.Report) error {
	m, err := graph.Open(path)
	if err != nil {
		return err
	}
	defer m.Close()
	type key struct{ name, op string }
	of := map[key]report.Operator{}
	for _, o := range rep.Operators {
		of[key{o.Name, o.Op}] = o
	}
	for _, n := range m.Graph.Nodes {
		o, ok := of[key{operatorName(n), n.Op}]
		if !ok {
			continue
		}
		set := func(what, value string) { n.SetMetadata(metadataPrefix+what, value) }
		set("precision", cmp.Or(o.Precision, "fp32"))
		for what, v := range map[string]float64{"sqnr_db": float64(o.SQNR), "cosine": float64(o.Cosine)} {
			if !math.IsNaN(v) {
				set(what, strconv.FormatFloat(v, 'g', 6, 64))
			}
		}
		if o.MACs > 0 {
			set("macs", strconv.FormatInt(o.MACs, 10))
		}
		if o.Rule != "" {
			set("rule", o.Rule)
		}
	}
	m.Metadata[metadataPrefix+"verdict"] = string(rep.Verdict.Status)
	if e := rep.Evaluation; e != nil {
		m.Metadata[metadataPrefix+"samples"] = strconv.Itoa(e.Samples)
		m.Metadata[metadataPrefix+"sqnr_db"] = strconv.FormatFloat(e.SQNR, 'g', 6, 64)
		m.Metadata[metadataPrefix+"cosine"] = strconv.FormatFloat(e.Cosine.Mean, 'g', 6, 64)
	}
	if err := m.Save(out, onnx.SaveOptions{}); err != nil {
		return fmt.Errorf("write %s: %w", out, bare.Error(err))
	}
	return nil
}
