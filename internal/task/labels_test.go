package task

import (
	"errors"
	"fmt"
	"math"
	"slices"
	"strings"
	"testing"
)

func TestLabels(t *testing.T) {
	for text, want := range map[string][]string{
		"a\nb\n":             {"a", "b"},
		"\ufeff a \r\nb c\r": {"a", "b c"},
		"x\n\n\n":            {"x"},
	} {
		if got, err := ParseLabels(strings.NewReader(text)); err != nil || !slices.Equal(got, want) {
			t.Errorf("%q: %q, %v", text, got, err)
		}
	}
	for text, words := range map[string]string{
		"":                             "empty",
		"\n\n":                         "empty",
		"a\n\nb":                       "line 2 is empty",
		"a\nb\na":                      "lines 1 and 3",
		strings.Repeat("x", 5000):      "line 1",
		strings.Repeat("x\n", 1<<20+1): "more than",
		longNames(4200):                "more than 16777216 bytes",
	} {
		if _, err := ParseLabels(strings.NewReader(text)); !errors.Is(err, ErrConfig) || !strings.Contains(err.Error(), words) {
			t.Errorf("%.20q: %v, want %q", text, err, words)
		}
	}
	if got, err := ReadLabels(t.TempDir()); got != nil || err != nil {
		t.Error("no file:", got, err)
	}
	if got, err := ReadLabels(dirWith(t, map[string]string{LabelsFile: "q\n"})); err != nil || !slices.Equal(got, []string{"q"}) {
		t.Error(got, err)
	}
}

// longNames are n distinct names of 4,000 bytes.
func longNames(n int) string {
	var b strings.Builder
	for i := range n {
		fmt.Fprintf(&b, "%04000d\n", i)
	}
	return b.String()
}

func TestSoftmax(t *testing.T) {
	inf, nan := float32(math.Inf(1)), float32(math.NaN())
	const tolerance = 1e-15 // a few roundings of float64
	for _, c := range []struct {
		in   []float32
		want []float64
	}{
		{[]float32{0, 0}, []float64{0.5, 0.5}},
		{[]float32{1000, 1000 + float32(math.Ln2)}, nil}, // no overflow; see below
		{[]float32{-inf, 3}, []float64{0, 1}},
		{[]float32{inf, 3, inf}, []float64{0.5, 0, 0.5}},
		{[]float32{-inf, -inf}, []float64{0.5, 0.5}},
		{[]float32{0, float32(math.Log(3))}, []float64{0.25, 0.75}},
	} {
		got := Softmax(nil, c.in)
		sum := 0.0
		for i, g := range got {
			sum += g
			if c.want != nil && math.Abs(g-c.want[i]) > 1e-7 { // float32 logits
				t.Errorf("%v: %v", c.in, got)
			}
		}
		if math.Abs(sum-1) > tolerance {
			t.Errorf("%v sums to %v", c.in, sum)
		}
	}
	for _, g := range Softmax(nil, []float32{nan, 1}) {
		if g == g {
			t.Error("NaN is hidden")
		}
	}
	if got := Softmax(make([]float64, 7), nil); len(got) != 0 {
		t.Error(got)
	}
}

func TestTopK(t *testing.T) {
	got := TopK([]float64{0.1, 0.4, math.NaN(), 0.4, 0.05}, []string{"a", "b", "c"}, 3)
	want := []Class{{1, "b", 0.4}, {3, "", 0.4}, {0, "a", 0.1}}
	if !slices.Equal(got, want) {
		t.Errorf("%v", got)
	}
	if got := TopK(nil, nil, 5); len(got) != 0 {
		t.Error(got)
	}
	nan := float32(math.NaN())
	for _, c := range []struct {
		in   []float32
		want int
	}{{nil, -1}, {[]float32{nan}, -1}, {[]float32{nan, 1, 2, 2}, 2}, {[]float32{-5}, 0}} {
		if got := ArgMax(c.in); got != c.want {
			t.Errorf("ArgMax(%v) = %d", c.in, got)
		}
	}
}
