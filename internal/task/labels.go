package task

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"path/filepath"
	"sort"
	"strings"
)

// Limits of a labels file.
const (
	maxLabels      = 1 << 20
	maxLabelBytes  = 4 << 10  // of one
	maxLabelsBytes = 16 << 20 // of all
)

// ReadLabels reads labels.txt in dir: one class name a line, line i naming
// class i. It returns nil without error when there is no such file.
func ReadLabels(dir string) ([]string, error) {
	f, err := os.Open(filepath.Join(dir, LabelsFile))
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	} else if err != nil {
		return nil, fmt.Errorf("%w: %s cannot be opened", ErrConfig, LabelsFile)
	}
	defer f.Close()
	return ParseLabels(f)
}

// ParseLabels reads class names, one a line. Names are trimmed and must be
// distinct; empty lines are allowed only at the end.
func ParseLabels(r io.Reader) ([]string, error) {
	var names []string
	seen := map[string]int{}
	left := &io.LimitedReader{R: r, N: maxLabelsBytes + 1}
	s := bufio.NewScanner(left)
	s.Buffer(nil, maxLabelBytes)
	for s.Scan() {
		name := s.Text()
		if len(names) == 0 {
			name = strings.TrimPrefix(name, "\ufeff")
		}
		name = strings.TrimSpace(name)
		if len(names) == maxLabels {
			return nil, fmt.Errorf("%w: %s has more than %d lines", ErrConfig, LabelsFile, maxLabels)
		}
		names = append(names, name)
	}
	if err := s.Err(); err != nil {
		return nil, fmt.Errorf("%w: %s: line %d cannot be read or is longer than %d bytes", ErrConfig, LabelsFile, len(names)+1, maxLabelBytes)
	}
	if left.N == 0 {
		return nil, fmt.Errorf("%w: %s has more than %d bytes", ErrConfig, LabelsFile, maxLabelsBytes)
	}
	for len(names) > 0 && names[len(names)-1] == "" {
		names = names[:len(names)-1]
	}
	for i, n := range names {
		if n == "" {
			return nil, fmt.Errorf("%w: %s: line %d is empty", ErrConfig, LabelsFile, i+1)
		}
		if j, ok := seen[n]; ok {
			return nil, fmt.Errorf("%w: %s: lines %d and %d are both %.40q", ErrConfig, LabelsFile, j+1, i+1, n)
		}
		seen[n] = i
	}
	if len(names) == 0 {
		return nil, fmt.Errorf("%w: %s is empty", ErrConfig, LabelsFile)
	}
	return names, nil
}

// Class is one answer of a classifier.
type Class struct {
	Index int     `json:"index"`
	Label string  `json:"label,omitempty"`
	Score float64 `json:"score"`
}

// Softmax writes the softmax of logits to dst, which it may grow, and
// returns it. NaN anywhere makes everything NaN; +Inf shares the whole mass.
func Softmax(dst []float64, logits []float32) []float64 {
	dst = dst[:0]
	top := math.Inf(-1)
	for _, v := range logits {
		top = math.Max(top, float64(v)) // NaN stays
	}
	sum := 0.0
	for _, v := range logits {
		e := 1.0
		if float64(v) != top { // infinities have no difference
			e = math.Exp(float64(v) - top)
		}
		dst = append(dst, e)
		sum += e
	}
	for i := range dst {
		dst[i] /= sum
	}
	return dst
}

// TopK returns the k best classes of scores, best first, equal ones by index;
// labels may be shorter than scores or nil. NaN is never among them.
func TopK(scores []float64, labels []string, k int) []Class {
	out := make([]Class, 0, len(scores))
	for i, s := range scores {
		if math.IsNaN(s) {
			continue
		}
		c := Class{Index: i, Score: s}
		if i < len(labels) {
			c.Label = labels[i]
		}
		out = append(out, c)
	}
	sort.SliceStable(out, func(i, j int) bool { return out[i].Score > out[j].Score })
	if k >= 0 && k < len(out) {
		out = out[:k]
	}
	return out
}

// ArgMax returns the index of the largest value, the first among equals; -1
// when there is none that is not NaN.
func ArgMax(v []float32) int {
	best := -1
	for i, x := range v {
		if x == x && (best < 0 || x > v[best]) {
			best = i
		}
	}
	return best
}
