package quant

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/fewbit/fewbit/internal/calib"
)

// Precision is what an operator's weight becomes, and how its input is taken.
type Precision string

// The precisions. The first three are schemes too.
const (
	PrecisionINT8    = Precision(INT8)        // static: range of the input from calibration data
	PrecisionDynamic = Precision(INT8Dynamic) // range of the input measured when it runs
	PrecisionINT4    = Precision(INT4)        // weight in 4-bit blocks, input in float or, for target cpu, with a range for each row
	PrecisionFP16    = Precision(FP16)        // weight stored in half precision
	PrecisionBF16    = Precision(BF16)        // weight stored in bfloat16
	PrecisionFP32    = Precision("fp32")      // as it is
)

// Precisions lists all of them.
var Precisions = []Precision{PrecisionINT8, PrecisionDynamic, PrecisionINT4, PrecisionFP16, PrecisionBF16, PrecisionFP32}

// Rule gives the operators that Match a precision of their own.
type Rule struct {
	// Match is an operator's name or type; * stands for any characters.
	Match     string
	Precision Precision
	// Where says for people where the rule stands, "line 7" of a recipe; may be "".
	Where string
}

// ParseRule reads "MATCH=PRECISION". The last = separates: names may hold one.
func ParseRule(s string) (Rule, error) {
	i := strings.LastIndexByte(s, '=')
	if i < 1 {
		return Rule{}, fmt.Errorf("%w: %q: expected an operator and its precision, such as Gather=int4", ErrConfig, s)
	}
	r := Rule{Match: strings.TrimSpace(s[:i]), Precision: Precision(strings.TrimSpace(s[i+1:]))}
	if !slices.Contains(Precisions, r.Precision) {
		return Rule{}, fmt.Errorf("%w: %q: unknown precision %q; use %s", ErrConfig, r.Match, r.Precision, joined(Precisions))
	}
	return r, nil
}

func (r Rule) String() string { return r.Match + "=" + string(r.Precision) }

// Prefix is what an error about the rule begins with.
func (r Rule) Prefix() string {
	if r.Where == "" {
		return fmt.Sprintf("operators: %q", r.Match)
	}
	return fmt.Sprintf("%s: operators: %q", r.Where, r.Match)
}

// checkRules refuses rules that contradict the rest of c.
func (c Config) checkRules() error {
	for _, r := range c.Rules {
		p := r.Precision
		switch {
		case r.Match == "" || !slices.Contains(Precisions, p):
			return fmt.Errorf("%w: %s: unknown precision %q; use %s", ErrConfig, r.Prefix(), p, joined(Precisions))
		case c.Scheme.HalfWeights():
			return fmt.Errorf("%w: %s: scheme %s stores every weight in 16 bits; use scheme %s, %s or %s and give operators %s", ErrConfig, r.Prefix(), c.Scheme, INT8, INT8Dynamic, INT4, c.Scheme)
		case (p == PrecisionDynamic || p == PrecisionINT4) && !c.Target.Encoder():
			return fmt.Errorf("%w: %s: precision %s needs target ort-cpu, cpu or cuda; %s has no form of it", ErrConfig, r.Prefix(), p, c.Target)
		}
	}
	return nil
}

// Matches reports whether the rule's pattern is text.
func (r Rule) Matches(text string) bool {
	parts := strings.Split(r.Match, "*")
	if len(parts) == 1 {
		return r.Match == text
	}
	if !strings.HasPrefix(text, parts[0]) {
		return false
	}
	text = text[len(parts[0]):]
	last := len(parts) - 1
	for _, p := range parts[1:last] {
		i := strings.Index(text, p)
		if i < 0 {
			return false
		}
		text = text[i+len(p):]
	}
	return strings.HasSuffix(text, parts[last])
}

// NeedsCalibration reports whether some operator's input may get a fixed range. Tables
// of embeddings have none, and a rule for * leaves nothing to the scheme.
func (c Config) NeedsCalibration() bool {
	need := c.Scheme.Static()
	for _, r := range c.Rules {
		switch {
		case r.Match == "*":
			need = r.Precision == PrecisionINT8
		case r.Precision == PrecisionINT8 && r.Match != EmbeddingsClass:
			need = true
		}
	}
	return need
}

// Union returns a plan of the operators of all plans, for what looks at them
// together; its configuration is the first's.
func Union(plans []*Plan) *Plan {
	u := *plans[0]
	u.Ops, u.Float, u.Tensors, u.source, u.fixed = nil, nil, nil, map[string]string{}, map[string]calib.Range{}
	planned := map[string]bool{}
	for _, p := range plans {
		u.Ops = append(u.Ops, p.Ops...)
		for k, v := range p.source {
			u.source[k] = v
		}
		maps.Copy(u.fixed, p.fixed)
		for _, t := range p.Tensors {
			if !slices.Contains(u.Tensors, t) {
				u.Tensors = append(u.Tensors, t)
			}
		}
		for _, op := range p.Ops {
			planned[op.Node.Outputs[0]] = true
		}
	}
	for _, f := range plans[0].Float {
		if !planned[f.Node.Outputs[0]] {
			u.Float = append(u.Float, f)
		}
	}
	return &u
}
