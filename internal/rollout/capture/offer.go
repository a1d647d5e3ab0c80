package capture

import (
	"cmp"
	"math/rand/v2"
	"os"
	"slices"
	"sync"
	"time"

	"github.com/fewbit/fewbit/internal/engine"
	"github.com/fewbit/fewbit/internal/tensor"
)

// Limits of what waits to be written: more is left out.
const (
	queued     = 4096
	maxPending = 64 << 20 // bytes
	// So many samples, or bytes, are written before the next tick.
	eagerSamples = queued / 4
	eagerBytes   = maxPending / 4
)

// capture is the capture of one model. Lock order: io, then mu.
type capture struct {
	model, dir string
	keyID      string
	salt       []byte
	box        *box // nil: its key is not here

	mu      sync.Mutex
	st      Status        // its Samples and Bytes are those on disk
	places  map[int]place // by slot; changed under io and mu
	filled  int           // slots given out
	tokens  float64       // of the rate limit
	refill  time.Time
	changed bool // since the manifest was written

	io      sync.Mutex // held while files are written; guards what follows
	log     *os.File   // nil until a sample is written
	end     int64      // of the log
	deleted bool
}

// taken is a row on its way to disk.
type taken struct {
	c     *capture
	slot  int
	bytes []byte
}

func newCapture(model, dir string, m manifest) *capture {
	c := &capture{model: model, dir: dir, keyID: m.KeyID, salt: m.Salt, st: m.Status, places: map[int]place{}, refill: time.Now()}
	c.tokens = c.burst()
	c.st.Model, c.st.Samples, c.st.Bytes = model, 0, 0
	if c.st.Routes == nil {
		c.st.Routes = map[string]int64{}
	}
	if c.st.Inputs == nil {
		c.st.Inputs = []Input{}
	}
	return c
}

func (c *capture) status() Status {
	c.mu.Lock()
	defer c.mu.Unlock()
	st := c.st
	st.Inputs = slices.Clone(st.Inputs)
	st.Routes = map[string]int64{}
	for k, v := range c.st.Routes {
		st.Routes[k] = v
	}
	return st
}

// Offer shows the store the inputs of a request that was answered: feeds of so
// many rows, which came by a route. It copies what it keeps, before it returns,
// and nothing else; it never waits for the disk.
func (s *Store) Offer(model, version, route string, feeds engine.Feeds, rows int64) {
	live := s.live.Load()
	if live == nil {
		return
	}
	c := (*live)[model]
	if c == nil || slices.Contains(c.st.Settings.Redact.Routes, route) {
		return
	}
	if share := c.st.Settings.Share; share < 1 && rand.Float64() >= share {
		return
	}
	for _, t := range feeds {
		if rows > 1 && (len(t.Dims) == 0 || t.Dims[0] != rows) { // not a batch: the request is one sample
			rows = 1
			break
		}
	}
	rows = max(rows, 1)
	size := rowBytes(feeds, rows)
	for i := range rows {
		slot, now, ok := c.choose(feeds, size, s.pending.Load()+size <= maxPending)
		if !ok {
			continue
		}
		b, err := encodeRow(recordHeader{Time: now.UTC(), Route: route, Version: version}, c.st.Inputs, feeds, i, rows)
		if err != nil {
			c.skip()
			continue
		}
		s.pending.Add(int64(len(b)))
		select {
		case s.queue <- taken{c, slot, b}:
			c.count(route)
			if len(s.queue) >= eagerSamples || s.pending.Load() >= eagerBytes {
				select {
				case s.full <- struct{}{}:
				default: // it is told already
				}
			}
		default:
			s.pending.Add(-int64(len(b)))
			c.skip()
		}
	}
}

// choose decides on one row: Algorithm R (Vitter 1985), so that every row seen
// has the same chance to be kept, as far as the other limits let it. slot is
// where it goes.
func (c *capture) choose(feeds engine.Feeds, size int64, room bool) (slot int, now time.Time, ok bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.st.State != Running {
		return 0, now, false
	}
	c.st.Seen++
	c.changed = true
	set := &c.st.Settings
	slot = c.filled
	// Past the limit of bytes the reservoir grows no more.
	grows := c.filled < set.MaxSamples && c.st.Bytes+size <= set.MaxBytes
	if !grows {
		if slot = int(rand.Int64N(c.st.Seen)); slot >= c.filled {
			return 0, now, false
		}
	}
	now = time.Now()
	if !room || size > MaxSampleBytes || !c.fits(feeds) || !c.mayTake(now) {
		c.st.Skipped++
		return 0, now, false
	}
	if grows {
		c.filled++
	}
	return slot, now, true
}

// burst is how many samples may be taken at once.
func (c *capture) burst() float64 { return max(c.st.Settings.PerSecond, 1) }

// mayTake is a token bucket.
func (c *capture) mayTake(now time.Time) bool {
	c.tokens = min(c.burst(), c.tokens+now.Sub(c.refill).Seconds()*c.st.Settings.PerSecond)
	c.refill = now
	if c.tokens < 1 {
		return false
	}
	c.tokens--
	return true
}

// fits compares feeds with the inputs of the first sample: another version may
// have others. c.mu is held.
func (c *capture) fits(feeds engine.Feeds) bool {
	if len(c.st.Inputs) > 0 {
		if len(feeds) != len(c.st.Inputs) {
			return false
		}
		for _, in := range c.st.Inputs {
			if t := feeds[in.Name]; t == nil || t.Type.String() != in.Datatype {
				return false
			}
		}
		return true
	}
	if len(feeds) == 0 || len(feeds) > maxInputs {
		return false
	}
	inputs := make([]Input, 0, len(feeds))
	for name, t := range feeds {
		if t.Type == tensor.String || t.Type.Bits()%8 != 0 { // nothing calibrates on these
			return false
		}
		inputs = append(inputs, Input{Name: name, Datatype: t.Type.String(), Redacted: slices.Contains(c.st.Settings.Redact.Inputs, name)})
	}
	slices.SortFunc(inputs, func(a, b Input) int { return cmp.Compare(a.Name, b.Name) })
	c.st.Inputs = inputs
	return true
}

func (c *capture) skip() {
	c.mu.Lock()
	c.st.Skipped++
	c.mu.Unlock()
}

func (c *capture) count(route string) {
	c.mu.Lock()
	c.st.Routes[route]++
	c.mu.Unlock()
}

func (c *capture) stop(now time.Time, reason string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.stopLocked(now, reason)
}

// stopLocked needs c.mu, or that nobody else knows c.
func (c *capture) stopLocked(now time.Time, reason string) {
	if c.st.State != Running {
		return
	}
	now = now.UTC()
	c.st.State, c.st.Reason, c.st.Ends = Stopped, reason, now
	c.st.Deletes = now.Add(seconds(c.st.Settings.Keep))
	c.changed = true
}
