package quant

import (
	"errors"
	"testing"
)

func TestParseRule(t *testing.T) {
	r, err := ParseRule("/a=b/MatMul = int4")
	if err != nil || r.Match != "/a=b/MatMul" || r.Precision != PrecisionINT4 {
		t.Errorf("%+v, %v", r, err)
	}
	for _, s := range []string{"", "Gather", "=int4", "Gather=int3", "Gather="} {
		if _, err := ParseRule(s); !errors.Is(err, ErrConfig) {
			t.Errorf("%q: %v", s, err)
		}
	}
}

func TestRuleMatches(t *testing.T) {
	for _, c := range []struct {
		match, name string
		want        bool
	}{
		{"MatMul", "MatMul", true}, {"MatMul", "MatMul_1", false}, {"/layer.1/*", "/layer.1/q", true}, {"/layer.1/*", "/layer.10/q", false},
		{"*/query/*", "/layer.3/query/MatMul", true}, {"*/query/*", "/layer.3/key/MatMul", false}, {"*", "anything", true}, {"a*a", "a", false},
		{"a*b*c", "a-b-c", true}, {"a*b*c", "a-c-b", false},
	} {
		if got := (Rule{Match: c.match}).Matches(c.name); got != c.want {
			t.Errorf("%q on %q: %v", c.match, c.name, got)
		}
	}
}

func TestContradictingRules(t *testing.T) {
	for name, c := range map[string]Config{
		"fp16":          {Scheme: FP16, Rules: []Rule{{Match: "a", Precision: PrecisionINT8}}},
		"qdq int4":      {Target: QDQ, Rules: []Rule{{Match: "a", Precision: PrecisionINT4}}},
		"unknown":       {Rules: []Rule{{Match: "a", Precision: "int2"}}},
		"mixed of none": {Scheme: Mixed},
	} {
		if _, err := c.WithDefaults(); !errors.Is(err, ErrConfig) {
			t.Errorf("%s: %v", name, err)
		}
	}
	c, err := Config{Scheme: Mixed, Rules: []Rule{{Match: "a", Precision: PrecisionINT4}}}.WithDefaults()
	if err != nil || c.Scheme != INT8 || !c.NeedsCalibration() {
		t.Errorf("%+v, %v", c, err)
	}
}
