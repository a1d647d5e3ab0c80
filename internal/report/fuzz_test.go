package report

import (
	"bytes"
	"io"
	"testing"
	"unicode"
)

// FuzzReport reads any bytes as a report and renders what was accepted: no
// panic, a well-formed page, nothing that moves the terminal's cursor.
func FuzzReport(f *testing.F) {
	r := sample()
	r.Operators, r.Tensors = r.Operators[:5], r.Tensors[:1]
	r.Tensors[0].Histogram.Counts = r.Tensors[0].Histogram.Counts[:8]
	for i := range r.Evaluation.Latency.Candidates {
		r.Evaluation.Latency.Candidates[i].CurveMS = []float64{1, 2, 3}
	}
	for _, r := range []Report{r, {}} {
		var b bytes.Buffer
		if err := WriteJSON(&b, r); err != nil {
			f.Fatal(err)
		}
		f.Add(b.Bytes())
	}
	f.Add([]byte(`{"schema":"fewbit.report/1","evaluation":{"difference":{"value":1},"ref_accuracy":{},"quant_accuracy":{}},"gate":{"max_loss":-1e308,"slo_ms":1e308}}`))
	f.Add([]byte(`{"schema":"fewbit.report/1","evaluation":{"latency":{"candidates":[{"curve_ms":[1e308,-1e308]},{"curve_ms":[0,0]}],"ratios":[{}]}}}`))
	f.Add([]byte(`{"schema":"fewbit.report/1","operators":[{"sqnr_db":1e308},{"sqnr_db":-1e308,"macs":-9223372036854775808}],"tensors":[{"histogram":{"lo":-1e308,"hi":1e308,"counts":[-1,9223372036854775807]}}]}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		r, err := ReadJSON(bytes.NewReader(b))
		if err != nil {
			return
		}
		r.Judge(true)
		var page bytes.Buffer
		if err := HTML(&page, *r); err != nil {
			t.Fatal(err)
		}
		wellFormed(t, page.Bytes())
		if err := WriteJSON(io.Discard, *r); err != nil {
			t.Fatal(err)
		}
		for _, c := range text(t, *r) {
			if c != '\n' && unicode.IsControl(c) {
				t.Fatalf("control character %q in the text", c)
			}
		}
	})
}
