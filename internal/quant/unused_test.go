package quant

import (
	"strings"
	"testing"
)

func TestUnused(t *testing.T) {
	for _, c := range []struct {
		c    Config
		want []string // what each line begins with
	}{
		{Config{}, nil},
		{Config{Method: "entropy", Granularity: PerTensor, Symmetric: true, Weights: GPTQ}, nil},
		{Config{Scheme: A16W8}, nil},
		{Config{Scheme: INT8Dynamic, Granularity: PerTensor, Weights: GPTQ}, nil},
		{Config{Scheme: INT8Dynamic, Method: "entropy", Symmetric: true}, []string{"method entropy", "symmetric"}},
		{Config{Scheme: INT4, Method: "minmax", Granularity: PerTensor, Weights: HQQ}, []string{"method minmax", "granularity per-tensor"}},
		{Config{Scheme: FP16, Method: "mse", Granularity: PerTensor, Weights: GPTQ}, []string{"method mse", "granularity per-tensor", "weights gptq"}},
		{Config{Scheme: INT4, Method: "minmax", Rules: []Rule{{Match: "a", Precision: PrecisionINT8}}}, nil},
	} {
		full, err := c.c.WithDefaults()
		if err != nil {
			t.Fatal(err)
		}
		got := full.Unused()
		if len(got) != len(c.want) {
			t.Errorf("%+v: %q", c.c, got)
			continue
		}
		for i, w := range c.want {
			if !strings.HasPrefix(got[i], w+" ") || !strings.Contains(got[i], "nothing: ") {
				t.Errorf("%q, want %q", got[i], w)
			}
		}
	}
}
