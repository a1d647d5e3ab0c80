package engine

import (
	"fmt"
	"slices"
	"strings"
)

// checkFeeds runs before every inference: it allocates only for errors.
func checkFeeds(spec IOSpec, in Feeds) error {
	for i := range spec.Inputs {
		io := &spec.Inputs[i]
		t := in[io.Name]
		if t == nil {
			return fmt.Errorf("%w: input %q is missing, the model needs %s", ErrInput, io.Name, describe(spec.Inputs))
		}
		if t.Type != io.Type {
			return fmt.Errorf("%w: input %q has type %v, expected %v", ErrInput, io.Name, t.Type, io.Type)
		}
		if err := checkDims(io, t.Dims); err != nil {
			return err
		}
		if err := t.Check(); err != nil {
			return fmt.Errorf("%w: input %q: %w", ErrInput, io.Name, err)
		}
	}
	if len(in) != len(spec.Inputs) {
		var extra []string
		for n := range in {
			if !slices.ContainsFunc(spec.Inputs, func(io IO) bool { return io.Name == n }) {
				extra = append(extra, n)
			}
		}
		slices.Sort(extra)
		return fmt.Errorf("%w: unknown input %q, the model has %s", ErrInput, extra, describe(spec.Inputs))
	}
	return nil
}

func checkDims(io *IO, dims []int64) error {
	if io.Dims == nil { // rank not known
		return nil
	}
	if len(dims) != len(io.Dims) {
		return fmt.Errorf("%w: input %q has shape %v (rank %d), expected %v (rank %d)", ErrInput, io.Name, dims, len(dims), io.Dims, len(io.Dims))
	}
	for i, d := range io.Dims {
		if d >= 0 && dims[i] != d {
			return fmt.Errorf("%w: input %q has shape %v, expected %v (-1 is any)", ErrInput, io.Name, dims, io.Dims)
		}
	}
	return nil
}

func describe(ios []IO) string {
	if len(ios) == 0 {
		return "no inputs"
	}
	s := make([]string, len(ios))
	for i, io := range ios {
		s[i] = fmt.Sprintf("%s %v%v", io.Name, io.Type, io.Dims)
	}
	return strings.Join(s, ", ")
}
