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

// TestNeedsCalibration: what has fixed ranges after the last rule.
func TestNeedsCalibration(t *testing.T) {
	all := func(p Precision) Rule { return Rule{Match: "*", Precision: p} }
	tables := Rule{Match: EmbeddingsClass, Precision: PrecisionINT8}
	for _, c := range []struct {
		scheme Scheme
		rules  []Rule
		want   bool
	}{
		{INT8, nil, true},
		{INT8, []Rule{tables}, true},
		{INT8, []Rule{all(PrecisionFP32), tables}, false},
		{INT8, []Rule{all(PrecisionFP32), {Match: "up", Precision: PrecisionINT8}}, true},
		{INT8, []Rule{{Match: "up", Precision: PrecisionINT8}, all(PrecisionINT4)}, false},
		{INT4, nil, false},
		{INT4, []Rule{tables}, false},
		{INT4, []Rule{{Match: "up", Precision: PrecisionINT8}}, true},
		{INT4, []Rule{all(PrecisionINT8)}, true},
	} {
		if got := (Config{Scheme: c.scheme, Rules: c.rules}).NeedsCalibration(); got != c.want {
			t.Errorf("%s, %v: %v", c.scheme, c.rules, got)
		}
	}
}
