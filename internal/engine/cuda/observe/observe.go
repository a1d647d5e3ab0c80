//go:build cuda

package observe

import (
	"errors"
	"fmt"
	"sort"
	"sync"
	"unsafe"

	"github.com/fewbit/fewbit/cuda"
	"github.com/fewbit/fewbit/internal/calib"
	"github.com/fewbit/fewbit/internal/engine/cuda/device"
	"github.com/fewbit/fewbit/internal/tensor"
)

const (
	histogramBytes = int64(unsafe.Sizeof(cuda.Histogram{}))
	rangeBytes     = int64(unsafe.Sizeof(cuda.RangeStats{}))
	tensorBytes    = int64(unsafe.Sizeof(cuda.KLTensor{}))
	countsBytes    = 8 * cuda.LinearBins // of one tensor's linear bins
	// samples is how many ranges of single tensors, which a moving average
	// follows, wait on the device until they are read back.
	samples = 256
	// together is how many tensors one entropy search takes, to bound its
	// workspace: 64 fill any GPU.
	together = 64
)

// Observer collects the statistics of tensors on one device. Its methods are safe
// for concurrent use and with several streams: what one of them observes waits for
// what was observed before.
type Observer struct {
	d    *device.Device
	s    *device.Stream // of its own, for reading back
	mu   sync.Mutex
	all  *device.Memory // [names] cuda.Histogram
	taps map[string]*tap
	// names are in the order of the histograms.
	names []string
	last  *device.Event // of what was queued on any stream; the next waits for it
}

// tap is what belongs to one tensor.
type tap struct {
	spec      calib.Spec
	histogram device.Span
	calls     uint64
	channels  int64
	max       *device.Memory // [channels] f32, from the first tensor on
	ranges    *device.Memory // [samples] cuda.RangeStats of a moving average
	used      int            // of these
	seen      []calib.Range  // those before, read back already
}

// New makes an observer of the named tensors. Exact means by channel are
// ErrUnsupported; device memory that does not suffice is device.ErrOutOfMemory.
func New(d *device.Device, specs map[string]calib.Spec) (*Observer, error) {
	if len(specs) == 0 || len(specs) > MaxTensors {
		return nil, fmt.Errorf("observe %d tensors, expected 1 to %d", len(specs), MaxTensors)
	}
	o := &Observer{d: d, taps: make(map[string]*tap, len(specs))}
	for name, spec := range specs {
		if spec.ChannelMean {
			return nil, fmt.Errorf("exact means by channel of tensor %q: %w", name, ErrUnsupported)
		}
		o.names = append(o.names, name)
		o.taps[name] = &tap{spec: spec}
	}
	sort.Strings(o.names)
	if err := o.allocate(); err != nil {
		return nil, errors.Join(err, o.Close())
	}
	return o, nil
}

func (o *Observer) allocate() (err error) {
	if o.s, err = o.d.NewStream(); err != nil {
		return err
	}
	if o.last, err = o.d.NewEvent(false); err != nil {
		return err
	}
	if o.all, err = o.d.Alloc(int64(len(o.names)) * histogramBytes); err != nil {
		return fmt.Errorf("histograms of %d tensors: %w", len(o.names), err)
	}
	for i, name := range o.names {
		t := o.taps[name]
		t.histogram = device.Span{Ptr: o.all.Ptr + device.Ptr(int64(i)*histogramBytes), Bytes: histogramBytes}
		if t.spec.MovingAverage {
			if t.ranges, err = o.d.Alloc(samples * rangeBytes); err != nil {
				return err
			}
		}
	}
	return o.empty()
}

// empty brings the device's memory into its first state.
func (o *Observer) empty() error {
	err := o.d.Do(func() error {
		return o.d.Check(cuda.HistogramInit(cuda.Ptr(o.all.Ptr), len(o.names), stream(o.s)))
	})
	for _, name := range o.names {
		t := o.taps[name]
		t.calls, t.used, t.seen = 0, 0, nil
		if err == nil && t.max != nil {
			err = o.s.Fill(t.max.Span, 0)
		}
		if err == nil && t.ranges != nil {
			err = o.initRanges(o.s, t)
		}
	}
	if err != nil {
		return err
	}
	return o.last.Record(o.s)
}

func (o *Observer) initRanges(s *device.Stream, t *tap) error {
	return o.d.Do(func() error { return o.d.Check(cuda.RangeInit(cuda.Ptr(t.ranges.Ptr), samples, stream(s))) })
}

func stream(s *device.Stream) cuda.Stream { return cuda.Stream(s.Handle()) }

// Observe queues on s the counting of tensors, each one sample or batch; those
// that are not observed are left out. Several at once cost less than one by one.
// Their memory must hold the values until s has done it. Shapes may be ragged as
// for calib.Stats.Observe, and wrong ones are its errors, before anything is
// queued. It may allocate and wait, so s must not be capturing.
func (o *Observer) Observe(s *device.Stream, tensors ...Tensor) error {
	o.mu.Lock()
	defer o.mu.Unlock()
	jobs, err := o.jobs(tensors)
	if err != nil {
		return err
	}
	if err := s.Wait(o.last); err != nil {
		return err
	}
	if err := o.count(s, jobs); err != nil {
		return err
	}
	return o.last.Record(s)
}

func (o *Observer) count(s *device.Stream, jobs []job) error {
	var batch []cuda.Tap
	counted := make(map[*tap]bool, len(jobs)) // in batch
	flush := func() error {
		err := o.d.Do(func() error { return o.d.Check(cuda.HistogramObserve(batch, stream(s))) })
		batch = batch[:0]
		clear(counted)
		return err
	}
	for _, j := range jobs {
		j.tap.calls++
		if j.n == 0 {
			continue
		}
		if counted[j.tap] {
			if err := flush(); err != nil {
				return err
			}
		}
		counted[j.tap] = true
		batch = append(batch, cuda.Tap{X: j.x, N: j.n, Histogram: cuda.Ptr(j.tap.histogram.Ptr)})
		if err := o.rest(s, j); err != nil {
			return err
		}
	}
	if len(batch) > 0 {
		return flush()
	}
	return nil
}

// job is a tensor to observe.
type job struct {
	tap             *tap
	x               cuda.Ptr
	n               int64
	channels, inner int64 // 0 where no channels are observed
}

// jobs looks at all tensors and changes nothing but the number of channels.
func (o *Observer) jobs(tensors []Tensor) ([]job, error) {
	jobs := make([]job, 0, len(tensors))
	for _, t := range tensors {
		p := o.taps[t.Name]
		if p == nil {
			continue
		}
		j := job{tap: p, x: cuda.Ptr(t.Ptr)}
		var err error
		if j.n, err = tensor.Elems(t.Dims); err != nil {
			return nil, fmt.Errorf("tensor %q: %w", t.Name, err)
		}
		if j.n > 0 && t.Ptr == 0 {
			return nil, fmt.Errorf("tensor %q: %d values at no address", t.Name, j.n)
		}
		if p.spec.ChannelMax && j.n > 0 {
			if j.channels, j.inner, err = p.spec.Channels(j.n, t.Dims); err != nil {
				return nil, fmt.Errorf("tensor %q: %w", t.Name, err)
			}
			if p.channels != 0 && p.channels != j.channels {
				return nil, fmt.Errorf("tensor %q: %w: axis %d of shape %v, earlier samples had %d channels", t.Name, calib.ErrShape, p.spec.Axis, t.Dims, p.channels)
			}
			p.channels = j.channels
		}
		jobs = append(jobs, j)
	}
	return jobs, nil
}

// rest queues what is not the histogram.
func (o *Observer) rest(s *device.Stream, j job) (err error) {
	t := j.tap
	if j.channels > 0 {
		if t.max == nil {
			if t.max, err = o.d.Alloc(4 * j.channels); err != nil {
				return fmt.Errorf("maxima of %d channels: %w", j.channels, err)
			}
			if err := s.Fill(t.max.Span, 0); err != nil {
				return err
			}
		}
		err := o.d.Do(func() error {
			return o.d.Check(cuda.ChannelMax(j.x, j.n/j.channels/j.inner, j.channels, j.inner, cuda.Ptr(t.max.Ptr), stream(s)))
		})
		if err != nil {
			return err
		}
	}
	if t.ranges == nil {
		return nil
	}
	if t.used == samples {
		if err := o.readRanges(s, t); err != nil {
			return err
		}
		if err := o.initRanges(s, t); err != nil {
			return err
		}
	}
	at := cuda.Ptr(t.ranges.Ptr).Add(int64(t.used) * rangeBytes)
	t.used++
	return o.d.Do(func() error { return o.d.Check(cuda.RangeAdd(j.x, j.n, at, stream(s))) })
}

// readRanges moves the samples' ranges to the host.
func (o *Observer) readRanges(s *device.Stream, t *tap) error {
	got, err := readBack[cuda.RangeStats](s, t.ranges.Ptr, t.used)
	if err != nil {
		return err
	}
	for i := range got {
		if lo, hi, ok := got[i].MinMax(); ok {
			t.seen = append(t.seen, calib.Range{Lo: lo, Hi: hi})
		}
	}
	t.used = 0
	return nil
}

// readBack returns n values at p, after what s holds.
func readBack[T any](s *device.Stream, p device.Ptr, n int) ([]T, error) {
	v := make([]T, n)
	b := bytesOf(v)
	if err := s.CopyOut(b, device.Span{Ptr: p, Bytes: int64(len(b))}); err != nil {
		return nil, err
	}
	return v, s.Sync()
}

func bytesOf[T any](v []T) []byte {
	return unsafe.Slice((*byte)(unsafe.Pointer(unsafe.SliceData(v))), len(v)*int(unsafe.Sizeof(*new(T))))
}

// Collect waits for what has been queued, reads it back and adds it to c as seen
// in the samples ids. The observer then starts anew. On an error both hold a part
// of it and should be dropped.
func (o *Observer) Collect(c *calib.Collector, ids ...calib.SampleID) error {
	o.mu.Lock()
	defer o.mu.Unlock()
	if err := o.s.Wait(o.last); err != nil {
		return err
	}
	parts := make(map[string]calib.Partial, len(o.names))
	buffer := make([]cuda.Histogram, 1)
	for _, name := range o.names {
		t := o.taps[name]
		if t.calls == 0 {
			continue
		}
		if err := o.s.CopyOut(bytesOf(buffer), t.histogram); err != nil {
			return err
		}
		if err := o.s.Sync(); err != nil {
			return err
		}
		p := calib.Partial{Calls: t.calls, Histogram: new(calib.Histogram)}
		if err := p.Histogram.AddCounts(counts(&buffer[0])); err != nil {
			return fmt.Errorf("tensor %q: %w", name, err)
		}
		if t.max != nil {
			m, err := readBack[float32](o.s, t.max.Ptr, int(t.channels))
			if err != nil {
				return err
			}
			p.ChannelMax = m
		}
		if t.ranges != nil {
			if err := o.readRanges(o.s, t); err != nil {
				return err
			}
			p.Samples = t.seen
		}
		parts[name] = p
	}
	if err := c.Add(parts, ids...); err != nil {
		return err
	}
	return o.empty()
}

func counts(h *cuda.Histogram) *calib.Counts {
	lo, hi, _ := h.Range.MinMax()
	r := &h.Range
	c := &calib.Counts{Finite: r.Finite, Zeros: r.Zeros, NaN: r.NaN, Inf: [2]uint64{r.PosInf, r.NegInf}, Lo: lo, Hi: hi, Exp: int(h.Exponent)}
	for i := range c.Linear {
		c.Linear[i], c.Cells[i] = h.Linear[i][:], h.Cells[i][:]
	}
	return c
}

// Entropy returns the range of every tensor observed since the last Collect, by
// calib.MethodEntropy. The search runs on the device, and only what it found is
// read back. Tensors without a finite value are the errors that calib has for
// them; those that were not observed are left out.
func (o *Observer) Entropy(scheme calib.Scheme) (map[string]calib.Range, error) {
	if err := scheme.Check(); err != nil {
		return nil, err
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	if err := o.s.Wait(o.last); err != nil {
		return nil, err
	}
	n := min(together, len(o.names))
	logs := calib.LogTable()
	work := cuda.KLWorkspace(n)
	sizes := []int64{work, int64(n) * countsBytes, int64(n) * tensorBytes, int64(8 * len(logs)), int64(4 * n)}
	var total int64
	at := make([]int64, len(sizes))
	for i, s := range sizes {
		at[i] = total
		total += (s + 255) &^ 255
	}
	m, err := o.d.Alloc(total)
	if err != nil {
		return nil, fmt.Errorf("entropy search: %w", err)
	}
	defer m.Close()
	part := func(i int) device.Ptr { return m.Ptr + device.Ptr(at[i]) }
	workspace, bins, tensors, table, keep := part(0), part(1), part(2), part(3), part(4)
	if err := o.s.CopyIn(device.Span{Ptr: table, Bytes: sizes[3]}, bytesOf(logs)); err != nil {
		return nil, err
	}
	ranges := make(map[string]calib.Range, len(o.names))
	var errs []error
	for first := 0; first < len(o.names); first += n {
		names := o.names[first:min(first+n, len(o.names))]
		err := o.d.Do(func() error {
			h := cuda.Ptr(o.all.Ptr).Add(int64(first) * histogramBytes)
			err := cuda.HistogramLinear(h, len(names), scheme.CodeBits(), scheme.Symmetric, cuda.Ptr(bins), cuda.Ptr(tensors), stream(o.s))
			if err == nil {
				err = cuda.KLThreshold(cuda.Ptr(bins), cuda.Ptr(tensors), len(names), cuda.Ptr(table), cuda.Ptr(keep), 0, cuda.Ptr(workspace), work, stream(o.s))
			}
			return o.d.Check(err)
		})
		if err != nil {
			return nil, err
		}
		found, err := readBack[cuda.KLTensor](o.s, tensors, len(names))
		if err != nil {
			return nil, err
		}
		kept, err := readBack[int32](o.s, keep, len(names))
		if err != nil {
			return nil, err
		}
		for i, name := range names {
			t := &found[i]
			switch {
			case o.taps[name].calls == 0:
			case t.Finite != 0:
				seen := calib.Range{Lo: cuda.OfKey(t.Lo), Hi: cuda.OfKey(t.Hi)}
				ranges[name] = calib.EntropyRange(seen, int(t.Exponent), int(t.Bins), int(kept[i]))
			case t.Others != 0:
				errs = append(errs, fmt.Errorf("tensor %q: %w", name, calib.ErrAllNaN))
			default:
				errs = append(errs, fmt.Errorf("tensor %q: %w", name, calib.ErrNoData))
			}
		}
	}
	if err := errors.Join(errs...); err != nil {
		return nil, err
	}
	return ranges, nil
}

// Close gives the device's memory back, once the device has done what it was told.
func (o *Observer) Close() error {
	o.mu.Lock()
	defer o.mu.Unlock()
	var errs []error
	if o.s != nil {
		errs = append(errs, o.s.Close())
	}
	if o.last != nil {
		errs = append(errs, o.last.Close())
	}
	closeMemory := func(m *device.Memory) {
		if m != nil {
			errs = append(errs, m.Close())
		}
	}
	closeMemory(o.all)
	for _, t := range o.taps {
		closeMemory(t.max)
		closeMemory(t.ranges)
	}
	return errors.Join(errs...)
}
