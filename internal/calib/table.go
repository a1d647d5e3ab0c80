package calib

import (
	"errors"
	"fmt"
	"runtime"
	"sort"
	"strconv"
	"strings"
	"sync"
)

// TableVersion is the version of the file that this package writes and reads.
const TableVersion = 1

// Table is the statistics of a calibration over some samples of one model: what
// `fewbit calibrate` writes, and what shards exchange. Its file form is
// deterministic (see Write), and merging shards gives the bytes of one run
// over all samples.
type Table struct {
	ModelSHA256 string // 64 hex digits, or "" when unknown
	// Method is the method asked for on the command line; it does not change
	// the statistics.
	Method string
	// Shard is the part of the samples that this table covers.
	Shard Shard
	// Samples are the identities of the samples, sorted, with repetitions.
	Samples []SampleID
	// Scheme and Methods are those of the ranges that Fill has stored.
	Scheme  Scheme
	Methods []string
	Tensors map[string]*Stats
}

// Names returns the tensors of the table, sorted.
func (t *Table) Names() []string {
	names := make([]string, 0, len(t.Tensors))
	for n := range t.Tensors {
		names = append(names, n)
	}
	sort.Strings(names)
	return names
}

// Ranges computes the range of every tensor by one method (ByName, or
// MethodMovingAverage), on at most threads threads (0: GOMAXPROCS).
func (t *Table) Ranges(method string, s Scheme, threads int) (map[string]Range, error) {
	if err := s.Check(); err != nil {
		return nil, err
	}
	if threads < 1 {
		threads = runtime.GOMAXPROCS(0)
	}
	names := t.Names()
	found := make([]Range, len(names))
	errs := make([]error, len(names))
	slots := make(chan struct{}, threads)
	var wg sync.WaitGroup
	for i, n := range names {
		slots <- struct{}{}
		wg.Go(func() {
			defer func() { <-slots }()
			r, err := t.Tensors[n].Threshold(method, s)
			if err != nil {
				err = fmt.Errorf("tensor %q: %w", n, err)
			}
			found[i], errs[i] = r, err
		})
	}
	wg.Wait()
	if err := errors.Join(errs...); err != nil {
		return nil, err
	}
	ranges := make(map[string]Range, len(names))
	for i, n := range names {
		ranges[n] = found[i]
	}
	return ranges, nil
}

// Fill computes and stores the ranges of the given methods for the file, in
// place of those stored before.
func (t *Table) Fill(s Scheme, methods ...string) error {
	byMethod := make(map[string]map[string]Range, len(methods))
	for _, m := range methods {
		r, err := t.Ranges(m, s, 0)
		if err != nil {
			return err
		}
		byMethod[m] = r
	}
	t.Scheme, t.Methods = s, t.Methods[:0:0]
	for m := range byMethod {
		t.Methods = append(t.Methods, m)
	}
	sort.Strings(t.Methods)
	for n, st := range t.Tensors {
		st.ranges = make(map[string]Range, len(methods))
		for m, r := range byMethod {
			st.ranges[m] = r[n]
		}
	}
	return nil
}

// Stored returns the ranges that Fill has stored for a method, or that the
// file had.
func (t *Table) Stored(method string) (map[string]Range, bool) {
	ranges := make(map[string]Range, len(t.Tensors))
	for n, st := range t.Tensors {
		r, ok := st.ranges[method]
		if !ok {
			return nil, false
		}
		ranges[n] = r
	}
	return ranges, len(ranges) > 0
}

// Merge returns the table of all samples of the given ones, which must be of
// the same model, tensors, observers, method and different shards (ErrMerge);
// a moving average gives ErrOrderDependent. Ranges are computed anew. The
// tables are not changed.
func Merge(tables ...*Table) (*Table, error) {
	if len(tables) == 0 {
		return nil, fmt.Errorf("%w: no table was given", ErrMerge)
	}
	first := tables[0]
	m := &Table{ModelSHA256: first.ModelSHA256, Method: first.Method, Tensors: make(map[string]*Stats, len(first.Tensors))}
	for name, st := range first.Tensors {
		m.Tensors[name] = &Stats{spec: st.spec}
		if st.spec.MovingAverage {
			if len(tables) > 1 {
				return nil, fmt.Errorf("tensor %q: %w: calibrate in one run, or without it", name, ErrOrderDependent)
			}
			c := *st.moving
			m.Tensors[name].moving = &c
		}
	}
	for i, t := range tables {
		if err := m.mergeable(first, t); err != nil {
			return nil, fmt.Errorf("table %d: %w", i+1, err)
		}
		if i == 0 {
			m.Shard = t.Shard.clone()
		} else if err := m.Shard.merge(t.Shard); err != nil {
			return nil, fmt.Errorf("table %d: %w", i+1, err)
		}
		m.Samples = append(m.Samples, t.Samples...)
		for name, st := range m.Tensors {
			if err := st.merge(t.Tensors[name]); err != nil {
				return nil, fmt.Errorf("table %d: tensor %q: %w", i+1, name, err)
			}
		}
	}
	sortIDs(m.Samples)
	if m.Shard.complete() {
		m.Shard = Shard{}
	}
	if len(first.Methods) > 0 {
		if err := m.Fill(first.Scheme, first.Methods...); err != nil {
			return nil, err
		}
	}
	return m, nil
}

func (m *Table) mergeable(first, t *Table) error {
	switch {
	case t.ModelSHA256 != first.ModelSHA256:
		return fmt.Errorf("%w: it is of model %.12s, the first of %.12s", ErrMerge, t.ModelSHA256, first.ModelSHA256)
	case t.Method != first.Method:
		return fmt.Errorf("%w: its method is %q, the first has %q", ErrMerge, t.Method, first.Method)
	case strings.Join(t.Methods, ",") != strings.Join(first.Methods, ",") || t.Scheme != first.Scheme:
		return fmt.Errorf("%w: its ranges are of %v for %+v, those of the first of %v for %+v", ErrMerge, t.Methods, t.Scheme, first.Methods, first.Scheme)
	case len(t.Tensors) != len(first.Tensors):
		return fmt.Errorf("%w: it has %d tensors, the first has %d", ErrMerge, len(t.Tensors), len(first.Tensors))
	}
	for name := range first.Tensors {
		if t.Tensors[name] == nil {
			return fmt.Errorf("%w: tensor %q is missing", ErrMerge, name)
		}
	}
	return nil
}

// MaxShards bounds the parts that samples are split into.
const MaxShards = 1 << 12

// Shard is a part of the samples: those numbered i (from 0) with i%Of+1 in
// Parts. The zero value is all of them.
type Shard struct {
	Of    int
	Parts []int // ascending, from 1 to Of
}

// ParseShard reads "2/4" (the second of four), "1,3/4" or "" (everything).
func ParseShard(text string) (Shard, error) {
	bad := func() (Shard, error) {
		return Shard{}, fmt.Errorf("%w %q: expected i/n, the i-th of n parts, with i from 1 to n and n at most %d, as in 1/2 and 2/2", ErrShard, text, MaxShards)
	}
	if text == "" {
		return Shard{}, nil
	}
	parts, of, ok := strings.Cut(text, "/")
	if !ok || len(text) > 8*MaxShards {
		return bad()
	}
	var s Shard
	var err error
	if s.Of, err = strconv.Atoi(of); err != nil || s.Of < 1 || s.Of > MaxShards {
		return bad()
	}
	for p := range strings.SplitSeq(parts, ",") {
		i, err := strconv.Atoi(p)
		if err != nil || i < 1 || i > s.Of || len(s.Parts) > 0 && i <= s.Parts[len(s.Parts)-1] {
			return bad()
		}
		s.Parts = append(s.Parts, i)
	}
	if s.String() != text && !s.complete() { // "+1/2", "01/2"
		return bad()
	}
	if s.complete() {
		return Shard{}, nil
	}
	return s, nil
}

// Has reports whether sample number i (from 0) belongs to the shard.
func (s Shard) Has(i int) bool {
	if s.Of == 0 {
		return true
	}
	k := sort.SearchInts(s.Parts, i%s.Of+1)
	return k < len(s.Parts) && s.Parts[k] == i%s.Of+1
}

// String is the inverse of ParseShard; "" for everything.
func (s Shard) String() string {
	if s.Of == 0 {
		return ""
	}
	p := make([]string, len(s.Parts))
	for i, v := range s.Parts {
		p[i] = strconv.Itoa(v)
	}
	return strings.Join(p, ",") + "/" + strconv.Itoa(s.Of)
}

func (s Shard) complete() bool { return len(s.Parts) == s.Of }

func (s Shard) clone() Shard { return Shard{s.Of, append([]int(nil), s.Parts...)} }

// merge adds the parts of o. Tables of everything (different data) may merge
// with one another, not with shards.
func (s *Shard) merge(o Shard) error {
	if s.Of != o.Of {
		return fmt.Errorf("%w: shard %q and shard %q split the samples differently", ErrMerge, s, o)
	}
	for _, p := range o.Parts {
		k := sort.SearchInts(s.Parts, p)
		if k < len(s.Parts) && s.Parts[k] == p {
			return fmt.Errorf("%w: shard %d/%d was given twice", ErrMerge, p, s.Of)
		}
		s.Parts = append(s.Parts[:k], append([]int{p}, s.Parts[k:]...)...)
	}
	return nil
}
