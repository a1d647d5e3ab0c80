package pipeline

import (
	"errors"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"github.com/fewbit/fewbit/internal/graph"
	"github.com/fewbit/fewbit/internal/quant"
	"github.com/fewbit/fewbit/internal/tensor"
)

// levenshtein is the textbook's matrix.
func levenshtein(a, b string) int {
	d := make([][]int, len(a)+1)
	for i := range d {
		d[i] = make([]int, len(b)+1)
		d[i][0] = i
		for j := range d[i] {
			switch {
			case i == 0:
				d[i][j] = j
			case j == 0:
			case a[i-1] == b[j-1]:
				d[i][j] = d[i-1][j-1]
			default:
				d[i][j] = 1 + min(d[i-1][j], d[i][j-1], d[i-1][j-1])
			}
		}
	}
	return d[len(a)][len(b)]
}

func TestEdits(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	word := func() string {
		b := make([]byte, r.IntN(12))
		for i := range b {
			b[i] = "abc"[r.IntN(3)]
		}
		return string(b)
	}
	for range 20_000 {
		a, b, limit := word(), word(), r.IntN(8)
		want := levenshtein(a, b)
		if got := edits(a, b, limit); got != want && (want <= limit || got <= limit) {
			t.Fatalf("edits(%q, %q, %d) = %d, want %d", a, b, limit, got, want)
		}
	}
}

func TestNear(t *testing.T) {
	names := map[string]bool{"Conv_0": true, "Conv_1": true, "conv_10": true, "Gemm": true, "/encoder/layer.0/attention/MatMul": true, "/encoder/layer.1/attention/MatMul": true,
		strings.Repeat("Gemm", 1000): true}
	for name, want := range map[string][]string{
		"conv_0":             {"Conv_0", "Conv_1", "conv_10"},
		"gemm":               {"Gemm"},
		"Gem":                {"Gemm"},
		"layer.1/":           {"/encoder/layer.1/attention/MatMul"},
		"encoder.layer.0":    {"/encoder/layer.0/attention/MatMul"},
		"something of other": nil,
		"":                   nil,
	} {
		if got := near(name, names); !slices.Equal(got, want) {
			t.Errorf("near %q: %q, want %q", name, got, want)
		}
	}
}

// TestExcludeByType: a type that preparing rewrites still means its operators.
func TestExcludeByType(t *testing.T) {
	gemms := func() *graph.Model {
		m := newModel([]*graph.Value{value("x", -1, 32)}, []*graph.Value{value("y", -1, 32)},
			node("Gemm", "first", "x w1", "h"), node("Identity", "same", "h", "h2"), node("MatMul", "second", "h2 w2", "y"))
		r := rand.New(rand.NewPCG(3, 4))
		m.Graph.SetInit("w1", tensor.From(gauss(r, 32*32, 1), 32, 32))
		m.Graph.SetInit("w2", tensor.From(gauss(r, 32*32, 1), 32, 32))
		return m
	}
	for _, target := range []quant.Target{quant.ORTCPU, quant.QDQ} {
		c, err := quant.Config{Target: target}.WithDefaults()
		if err != nil {
			t.Fatal(err)
		}
		for name, ok := range map[string]bool{"Gemm": true, "first": true, "MatMul": true, "Identity": false, "same": false, "gemm": false, "": false} {
			c.Exclude = []string{name}
			err := CheckExclude(t.Context(), gemms(), c)
			if ok != (err == nil) || err != nil && !errors.Is(err, quant.ErrConfig) {
				t.Errorf("%s: exclude %q: %v", target, name, err)
			}
			var unknown *UnknownOperator
			if err != nil && (!errors.As(err, &unknown) || unknown.Gone != (name == "Identity" || name == "same")) {
				t.Errorf("%s: exclude %q: %+v", target, name, unknown)
			}
		}
		m := gemms()
		ops := operatorsOf(m)
		if _, err := quant.Run(t.Context(), m, quant.Prepare(c), quant.Dump{}); err != nil {
			t.Fatal(err)
		}
		for exclude, left := range map[string]string{"Gemm": "second", "MatMul": "first"} {
			if c.Exclude, err = ops.resolve(m, []string{exclude}); err != nil {
				t.Fatal(err)
			}
			plan, err := quant.NewPlan(m, c)
			if err != nil {
				t.Fatal(err)
			}
			if len(plan.Ops) != 1 || plan.Ops[0].Node.Name != left {
				t.Errorf("%s: excluding %s leaves %d operators: %+v", target, exclude, len(plan.Ops), plan.Ops)
			}
		}
	}
}
