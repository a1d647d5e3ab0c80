package data

import (
	"errors"
	"io"
	"math"
	"slices"
	"sort"
	"testing"

	"github.com/fewbit/fewbit/internal/engine"
	"github.com/fewbit/fewbit/internal/tensor"
)

// reference is the whole Fisher-Yates shuffle, which choose computes lazily.
func reference(n int) []int {
	p := make([]int, n)
	for i := range p {
		p[i] = i
	}
	rng := splitmix(permutationSeed ^ uint64(n))
	for i := range p {
		j := i + int(rng.next()%uint64(n-i))
		p[i], p[j] = p[j], p[i]
	}
	return p
}

func TestChoose(t *testing.T) {
	for _, n := range []int{1, 2, 3, 10, 41} {
		p := reference(n)
		for skip := range n + 2 {
			for want := range n + 2 {
				lo := min(skip, n)
				hi := min(lo+want, n)
				if want == 0 {
					hi = n
				}
				exp := slices.Clone(p[lo:hi])
				slices.Sort(exp)
				got := choose(n, skip, want)
				if got == nil && len(exp) == n {
					continue
				}
				if !slices.Equal(got, exp) {
					t.Fatalf("choose(%d, %d, %d) = %v, want %v", n, skip, want, got, exp)
				}
			}
		}
	}
}

// The choice is part of what a calibration means: it must never change.
func TestChooseIsFixed(t *testing.T) {
	want := []int{125, 203, 377, 401, 467, 540, 909, 927}
	if got := choose(1000, 0, 8); !slices.Equal(got, want) {
		t.Errorf("choose(1000, 0, 8) = %v, want %v", got, want)
	}
}

// A file sorted by class must give every class its share.
func TestChooseSpreads(t *testing.T) {
	const n, classes, want = 2225, 5, 500
	var count [classes]int
	for _, i := range choose(n, 0, want) {
		count[i*classes/n]++
	}
	const mean = want / classes
	for c, k := range count {
		// five standard deviations of a hypergeometric count
		if d := math.Abs(float64(k - mean)); d > 5*math.Sqrt(mean*0.8) {
			t.Errorf("class %d has %d of %d samples", c, k, want)
		}
	}
}

func TestShardsAndRest(t *testing.T) {
	spec := engine.IOSpec{Inputs: []engine.IO{{Name: "x", Type: tensor.Float32, Dims: []int64{-1, 1}}}}
	p := write(t, "a.npz", npzOf(t, 8, map[string][]byte{"x": npy("<f4", false, []int64{101, 1}, bytesOf(ramp(101)))}))
	ids := func(o Options) []string {
		t.Helper()
		o.Spec = spec
		d, err := Open(p, o)
		if errors.Is(err, ErrEmpty) {
			return nil
		}
		if err != nil {
			t.Fatal(err)
		}
		defer d.Close()
		var out []string
		for {
			s, err := d.Next(t.Context())
			if errors.Is(err, io.EOF) {
				return out
			}
			if err != nil {
				t.Fatal(err)
			}
			if v := tensor.View[float32](s.Feeds["x"])[0]; s.ID != rowID(int(v)) {
				t.Fatalf("%s holds %v", s.ID, v)
			}
			out = append(out, s.ID)
		}
	}
	for _, o := range []Options{{}, {Samples: 40}, {Samples: 40, Skip: 30}, {Skip: 99}, {Samples: 1000}, {Samples: 2}} {
		whole := ids(o)
		for _, shards := range []int{1, 2, 3, 7} {
			var union []string
			for i := range shards {
				s := o
				s.Shard, s.Shards = i, shards
				union = append(union, ids(s)...)
			}
			if !sameSet(union, whole) {
				t.Errorf("%+v in %d shards: %d of %d samples", o, shards, len(union), len(whole))
			}
		}
	}
	if a, b := ids(Options{Samples: 30}), ids(Options{Skip: 30}); len(a) != 30 || !sameSet(append(a, b...), ids(Options{})) {
		t.Errorf("split into %d and %d of 101", len(a), len(b))
	}
}

func rowID(i int) string { return (&arrays{}).id(i) }

func sameSet(a, b []string) bool {
	a, b = slices.Clone(a), slices.Clone(b)
	sort.Strings(a)
	sort.Strings(b)
	return slices.Equal(a, b)
}

func TestOptionsRefused(t *testing.T) {
	batch := engine.IOSpec{Inputs: []engine.IO{{Name: "pixels", Type: tensor.Float32, Dims: []int64{8, 3, 2, 2}}}}
	scalar := engine.IOSpec{Inputs: []engine.IO{{Name: "pixels", Type: tensor.Float32}}}
	for _, c := range []struct {
		o   Options
		err error
	}{
		{Options{Spec: pixelSpec, Samples: -1}, ErrOptions},
		{Options{Spec: pixelSpec, Skip: -1}, ErrOptions},
		{Options{Spec: pixelSpec, Shard: 2, Shards: 2}, ErrOptions},
		{Options{Spec: pixelSpec, Shard: -1, Shards: 2}, ErrOptions},
		{Options{Spec: pixelSpec, Shards: -1}, ErrOptions},
		{Options{Spec: pixelSpec, Skip: 4}, ErrEmpty},
		{Options{}, ErrMismatch},
		{Options{Spec: batch}, ErrMismatch},
		{Options{Spec: scalar}, ErrMismatch},
	} {
		refuse(t, "testdata/image_f4.npy", c.o, c.err)
	}
	d := open(t, "testdata/image_f4.npy", Options{Spec: pixelSpec})
	d.Close()
	if _, err := d.Next(t.Context()); err == nil {
		t.Error("a closed data set is read")
	}
	// More shards than samples: an empty part is allowed, the others go on.
	if got := len(all(t, open(t, "testdata/image_f4.npy", Options{Spec: pixelSpec, Shard: 5, Shards: 6}))); got != 0 {
		t.Errorf("shard 5 of 6 of 4 samples has %d", got)
	}
}

func TestAudit(t *testing.T) {
	f := func(v ...float32) Sample {
		return Sample{Feeds: engine.Feeds{"x": tensor.From(v, 1, int64(len(v)))}}
	}
	nan, inf := float32(math.NaN()), float32(math.Inf(1))
	for name, c := range map[string]struct {
		in         []Sample
		err        error
		dup        int
		nans, infs int64
	}{
		"empty":    {nil, ErrEmpty, 0, 0, 0},
		"good":     {[]Sample{f(1, 2), f(3, 4)}, nil, 0, 0, 0},
		"nan":      {[]Sample{f(nan, nan), f(nan, inf)}, ErrNotFinite, 0, 3, 1},
		"some nan": {[]Sample{f(nan, 1), f(2, inf), f(2, inf)}, nil, 1, 1, 2},
		"constant": {[]Sample{f(5, 5), f(5, 5), f(5, 5, 5)}, ErrConstant, 1, 0, 0},
		"ids only": {[]Sample{{Feeds: engine.Feeds{"x": tensor.From([]int64{1, 1}, 1, 2)}}}, nil, 0, 0, 0},
	} {
		var a Audit
		for _, s := range c.in {
			a.Add(s)
		}
		if err := a.Err(); !errors.Is(err, c.err) || (c.err == nil) != (err == nil) {
			t.Errorf("%s: %v, want %v", name, err, c.err)
		}
		if a.Duplicates != c.dup || a.NaN != c.nans || a.Inf != c.infs || a.Samples != len(c.in) {
			t.Errorf("%s: %+v", name, a)
		}
	}
}
