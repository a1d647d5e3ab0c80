package calib

import (
	"errors"
	"fmt"
	"sort"
)

// WideRange is the |x| above which a tensor's range is suspect: a mask
// constant (-3.4e38) reaches the scores of an attention layer through padded
// calibration samples and takes every code for itself.
const WideRange = 1e6

// Receipt says what a calibration saw, for the report.
type Receipt struct {
	Samples    int                      `json:"samples"`
	Duplicates int                      `json:"duplicates"` // samples that repeat an earlier one
	Tensors    map[string]TensorReceipt `json:"tensors"`
	// Warnings are one line each: what, where, what to do.
	Warnings []string `json:"warnings,omitempty"`
}

// TensorReceipt is the part of one tensor.
type TensorReceipt struct {
	Elements     uint64  `json:"elements"` // all values, NaN and infinities included
	NaN          uint64  `json:"nan"`
	Inf          uint64  `json:"inf"`
	Zeros        uint64  `json:"zeros"`
	Min          float32 `json:"min"` // of the finite values; 0 when there is none
	Max          float32 `json:"max"`
	Constant     bool    `json:"constant,omitempty"`
	Wide         bool    `json:"wide,omitempty"`         // |x| above WideRange
	Concentrated bool    `json:"concentrated,omitempty"` // see Histogram.Concentrated
	Range        *Range  `json:"range,omitempty"`        // the chosen one
	ClippedShare float64 `json:"clipped_share"`          // of the finite values, 0 to 1
}

// Receipt describes the statistics and, for the tensors that have one in
// chosen, the share of the values that the range clips. The receipt is
// complete even when the error says ErrNoData (no sample, or a tensor that was
// never seen) or ErrAllNaN, naming the tensors.
func (t *Table) Receipt(chosen map[string]Range) (Receipt, error) {
	r := Receipt{Samples: len(t.Samples), Duplicates: t.Duplicates(), Tensors: make(map[string]TensorReceipt, len(t.Tensors))}
	warn := func(format string, a ...any) { r.Warnings = append(r.Warnings, fmt.Sprintf(format, a...)) }
	var errs []error
	if r.Samples == 0 {
		errs = append(errs, fmt.Errorf("%w: no sample was read", ErrNoData))
	}
	if r.Duplicates > 0 {
		warn("%d of %d calibration samples repeat an earlier one: give distinct samples", r.Duplicates, r.Samples)
	}
	for _, name := range t.Names() {
		h := t.Tensors[name].Histogram()
		pos, neg := h.Inf()
		seen, ok := h.MinMax()
		tr := TensorReceipt{
			Elements: h.Count() + h.NaN() + pos + neg, NaN: h.NaN(), Inf: pos + neg, Zeros: h.Zeros(),
			Min: seen.Lo, Max: seen.Hi, Constant: h.Constant(), Wide: h.AbsMax() > WideRange, Concentrated: h.Concentrated(),
		}
		if err := h.check(); err != nil {
			errs = append(errs, fmt.Errorf("tensor %q: %w", name, err))
		}
		if c, has := chosen[name]; has && ok {
			tr.Range, tr.ClippedShare = &c, ClippedShare(h, c)
		}
		if tr.NaN+tr.Inf > 0 {
			warn("tensor %q: %d NaN and %d infinite of %d values were left out: check the model and its inputs", name, tr.NaN, tr.Inf, tr.Elements)
		}
		if tr.Constant {
			warn("tensor %q: every value is %v: it needs no quantization, or the samples do not reach it", name, tr.Min)
		}
		if tr.Wide {
			warn("tensor %q: range [%v, %v] passes 1e6: a mask constant of padded samples? calibrate without padding or exclude it", name, tr.Min, tr.Max)
		} else if tr.Concentrated {
			warn("tensor %q: outliers stretch the range to [%v, %v] around 99 %% of the values: minmax loses them, prefer percentile or mse", name, tr.Min, tr.Max)
		}
		r.Tensors[name] = tr
	}
	return r, errors.Join(errs...)
}

// Duplicates returns how many samples repeat another.
func (t *Table) Duplicates() int {
	ids := append([]SampleID(nil), t.Samples...)
	sortIDs(ids)
	n := 0
	for i := 1; i < len(ids); i++ {
		if ids[i] == ids[i-1] {
			n++
		}
	}
	return n
}

func sortIDs(ids []SampleID) {
	sort.Slice(ids, func(i, j int) bool { return string(ids[i][:]) < string(ids[j][:]) })
}
