package main

import (
	"fmt"
	"strings"

	"github.com/spf13/pflag"

	"github.com/fewbit/fewbit/internal/quant"
)

// rulesValue is a list of MATCH=PRECISION. A recipe also gives it as a mapping,
// MATCH: PRECISION, one line each.
type rulesValue struct{ rules []quant.Rule }

var (
	_ pflag.Value      = (*rulesValue)(nil)
	_ pflag.SliceValue = (*rulesValue)(nil)
)

func (v *rulesValue) String() string { return strings.Join(v.GetSlice(), ",") }

func (v *rulesValue) Type() string { return "rules" }

// Set adds the rules of one flag, separated by commas.
func (v *rulesValue) Set(s string) error {
	for _, part := range strings.Split(s, ",") {
		if err := v.Append(part); err != nil {
			return err
		}
	}
	return nil
}

// Append implements pflag.SliceValue.
func (v *rulesValue) Append(s string) error { return v.add(s, "") }

func (v *rulesValue) add(s, where string) error {
	r, err := quant.ParseRule(s)
	if err != nil {
		return err
	}
	r.Where = where
	v.rules = append(v.rules, r)
	return nil
}

// Replace implements pflag.SliceValue.
func (v *rulesValue) Replace(all []string) error {
	v.rules = nil
	for _, s := range all {
		if err := v.Append(s); err != nil {
			return err
		}
	}
	return nil
}

// GetSlice implements pflag.SliceValue.
func (v *rulesValue) GetSlice() []string {
	all := make([]string, len(v.rules))
	for i, r := range v.rules {
		all[i] = r.String()
	}
	return all
}

// put sets one entry of a recipe's mapping, which stands on the given line.
func (v *rulesValue) put(key, value string, line int) error {
	return v.add(key+"="+value, fmt.Sprintf("recipe, line %d", line))
}
