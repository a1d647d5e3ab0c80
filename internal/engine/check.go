package engine

import (
	"fmt"
	"sort"
	"strings"
)

func checkFeeds(spec IOSpec, in Feeds) error {
	known := make(map[string]bool, len(spec.Inputs))
	for _, io := range spec.Inputs {
		known[io.Name] = true
		t, ok := in[io.Name]
		if !ok || t == nil {
			return fmt.Errorf("%w: input %q is missing, the model needs %s", ErrInput, io.Name, describe(spec.Inputs))
		}
		if t.Type != io.Type {
			return fmt.Errorf("%w: input %q has type %v, expected %v", ErrInput, io.Name, t.Type, io.Type)
		}
		if len(t.Dims) != len(io.Dims) {
			return fmt.Errorf("%w: input %q has shape %v (rank %d), expected %v (rank %d)", ErrInput, io.Name, t.Dims, len(t.Dims), io.Dims, len(io.Dims))
		}
		for i, d := range io.Dims {
			if d >= 0 && t.Dims[i] != d {
				return fmt.Errorf("%w: input %q has shape %v, expected %v (-1 is any)", ErrInput, io.Name, t.Dims, io.Dims)
			}
		}
		if err := t.Check(); err != nil {
			return fmt.Errorf("%w: input %q: %v", ErrInput, io.Name, err)
		}
	}
	if len(in) != len(spec.Inputs) {
		var extra []string
		for n := range in {
			if !known[n] {
				extra = append(extra, n)
			}
		}
		sort.Strings(extra)
		return fmt.Errorf("%w: unknown input %q, the model has %s", ErrInput, extra, describe(spec.Inputs))
	}
	return nil
}

func describe(ios []IO) string {
	s := make([]string, len(ios))
	for i, io := range ios {
		s[i] = fmt.Sprintf("%s %v%v", io.Name, io.Type, io.Dims)
	}
	return strings.Join(s, ", ")
}
