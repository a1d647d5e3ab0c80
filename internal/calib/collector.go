package calib

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"runtime"
	"sort"
	"sync"
	"sync/atomic"

	"github.com/fewbit/fewbit/internal/engine"
)

// SampleID identifies the contents of one sample.
type SampleID [16]byte

// SampleHash returns the identity of a sample: 128 bits of SHA-256 over the
// names, types, dimensions and bytes of its feeds. Equal feeds, equal hash, on
// every machine.
func SampleHash(f engine.Feeds) SampleID {
	names := make([]string, 0, len(f))
	for n := range f {
		names = append(names, n)
	}
	sort.Strings(names)
	d := sha256.New()
	num := func(v int64) {
		var b [8]byte
		binary.LittleEndian.PutUint64(b[:], uint64(v))
		d.Write(b[:])
	}
	bytes := func(b []byte) {
		num(int64(len(b)))
		d.Write(b)
	}
	for _, n := range names {
		t := f[n]
		bytes([]byte(n))
		if t == nil {
			num(-1)
			continue
		}
		num(int64(t.Type))
		num(int64(len(t.Dims)))
		for _, v := range t.Dims {
			num(v)
		}
		bytes(t.Data)
		num(int64(len(t.Strings)))
		for _, s := range t.Strings {
			bytes(s)
		}
	}
	return SampleID(d.Sum(nil)[:16])
}

// Collector observes many tensors of many samples. Its methods are safe for
// concurrent use: inference of the next sample may overlap with observing the
// last one.
type Collector struct {
	stats map[string]*Stats // never changes after NewCollector
	slots chan struct{}     // one for each thread at work

	mu  sync.Mutex
	ids []SampleID
}

// NewCollector returns a collector of the named tensors that uses at most
// threads threads (0: GOMAXPROCS) over all concurrent calls.
func NewCollector(threads int, specs map[string]Spec) *Collector {
	if threads < 1 {
		threads = runtime.GOMAXPROCS(0)
	}
	c := &Collector{stats: make(map[string]*Stats, len(specs)), slots: make(chan struct{}, threads)}
	for name, s := range specs {
		c.stats[name] = NewStats(s)
	}
	return c
}

// Observe adds the tensors of one run: one sample, or a batch of those in ids.
// Tensors that are not collected are ignored; the values are read before it
// returns and never retained. When a model is tapped in several passes over
// the same samples, pass ids in one of them only.
//
// On an error (ErrShape, or ctx's) the statistics hold a part of the run and
// should be dropped.
func (c *Collector) Observe(ctx context.Context, tensors engine.Feeds, ids ...SampleID) error {
	names := make([]string, 0, len(tensors))
	for n, t := range tensors {
		if c.stats[n] != nil && t != nil {
			names = append(names, n)
		}
	}
	// The largest first, so that the threads finish together.
	sort.Slice(names, func(i, j int) bool {
		a, b := len(tensors[names[i]].Data), len(tensors[names[j]].Data)
		return a > b || a == b && names[i] < names[j]
	})
	var next atomic.Int64
	errs := make([]error, len(names))
	work := func() {
		for ctx.Err() == nil {
			i := int(next.Add(1) - 1)
			if i >= len(names) {
				return
			}
			t := tensors[names[i]]
			x, err := t.F32()
			if err == nil {
				err = c.stats[names[i]].Observe(x, t.Dims)
			}
			if err != nil {
				errs[i] = fmt.Errorf("tensor %q: %w", names[i], err)
			}
		}
	}
	select {
	case c.slots <- struct{}{}:
	case <-ctx.Done():
		return ctx.Err()
	}
	var wg sync.WaitGroup
spawn:
	for range len(names) - 1 {
		select {
		case c.slots <- struct{}{}:
			wg.Go(func() {
				work()
				<-c.slots
			})
		default:
			break spawn
		}
	}
	work()
	<-c.slots
	wg.Wait()
	if err := errors.Join(ctx.Err(), errors.Join(errs...)); err != nil {
		return err
	}
	c.mu.Lock()
	c.ids = append(c.ids, ids...)
	c.mu.Unlock()
	return nil
}

// Names returns the collected tensors, sorted.
func (c *Collector) Names() []string {
	names := make([]string, 0, len(c.stats))
	for n := range c.stats {
		names = append(names, n)
	}
	sort.Strings(names)
	return names
}

// Stats returns the statistics of a tensor, nil when it is not collected.
func (c *Collector) Stats(name string) *Stats { return c.stats[name] }

// Samples returns the number of samples observed so far.
func (c *Collector) Samples() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return len(c.ids)
}

// Table returns what was collected as a table for the model with that SHA-256
// (64 hex digits). The table shares the statistics: observe no more.
func (c *Collector) Table(modelSHA256 string) *Table {
	c.mu.Lock()
	defer c.mu.Unlock()
	t := &Table{ModelSHA256: modelSHA256, Samples: append([]SampleID(nil), c.ids...), Tensors: c.stats}
	sortIDs(t.Samples)
	return t
}
