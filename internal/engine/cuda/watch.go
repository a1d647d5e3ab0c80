//go:build cuda

package cuda

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"sync"

	kernels "github.com/fewbit/fewbit/cuda"
	"github.com/fewbit/fewbit/internal/calib"
	"github.com/fewbit/fewbit/internal/engine"
	"github.com/fewbit/fewbit/internal/engine/cuda/device"
	"github.com/fewbit/fewbit/internal/engine/cuda/observe"
	"github.com/fewbit/fewbit/internal/engine/cuda/plan"
	"github.com/fewbit/fewbit/internal/tensor"
)

// Watch runs a model for what its inputs and outputs hold: they are counted where
// the device computed them, and no output is copied to the host. A sample runs
// while the next one is prepared, so what is wrong with one may be said by the
// Run or Collect after it. For use from one goroutine.
type Watch struct {
	s *session
	o *observe.Observer
	c WatchConfig

	mu  sync.Mutex // guards Rows, whose samples end in any order
	ids []calib.SampleID
}

// Watch opens the model at path to be observed. Errors are those of OpenFile and
// of observe.New.
func (e *Engine) Watch(ctx context.Context, path string, c WatchConfig) (*Watch, error) {
	own := e.c
	own.keepInputs = true
	s, err := e.open(ctx, path, own)
	if err != nil {
		return nil, err
	}
	o, err := observe.New(s.d, c.Specs)
	if err != nil {
		return nil, errors.Join(err, s.Close())
	}
	return &Watch{s: s, o: o, c: c}, nil
}

// Run runs one sample and queues the counting.
func (w *Watch) Run(ctx context.Context, in engine.Feeds, id calib.SampleID) error {
	err := w.s.on(ctx, in, nil, func(at *slot, sh *shape) error { return at.watch(sh, in, w, id) })
	if err == nil {
		w.ids = append(w.ids, id)
	}
	return err
}

// settle waits for what the slots have queued.
func (w *Watch) settle() error {
	var errs []error
	var all []*slot
	for range cap(w.s.slots) {
		at := <-w.s.slots
		errs, all = append(errs, at.settle()), append(all, at)
	}
	for _, at := range all {
		w.s.slots <- at
	}
	return errors.Join(errs...)
}

// Entropy searches the thresholds of everything observed, on the device.
func (w *Watch) Entropy(scheme calib.Scheme) (map[string]calib.Range, error) {
	if err := w.settle(); err != nil {
		return nil, err
	}
	return w.o.Entropy(scheme)
}

// Collect reads the statistics back and adds them to c; the watch starts anew.
func (w *Watch) Collect(c *calib.Collector) error {
	if err := w.settle(); err != nil {
		return err
	}
	ids := w.ids
	w.ids = nil
	return w.o.Collect(c, ids...)
}

// Close gives up the model and the statistics.
func (w *Watch) Close() error { return errors.Join(w.s.Close(), w.o.Close()) }

// rowMemory holds the numbers of wanted rows, then the rows, on the device and pinned.
type rowMemory struct {
	device *device.Memory
	host   *device.HostMemory
}

// room makes sure of n bytes; nothing uses the memory meanwhile.
func (m *rowMemory) room(d *device.Device, n int64) error {
	if m.host != nil && int64(len(m.host.Bytes())) >= n {
		return nil
	}
	if err := m.close(); err != nil {
		return err
	}
	n = roomFor(n)
	var err error
	if m.device, err = d.Alloc(n); err != nil {
		return err
	}
	m.host, err = d.AllocHost(n)
	return err
}

func (m *rowMemory) close() error {
	var errs []error
	if m.device != nil {
		errs = append(errs, m.device.Close())
	}
	if m.host != nil {
		errs = append(errs, m.host.Close())
	}
	*m = rowMemory{}
	return errors.Join(errs...)
}

// settle waits for what a Watch has queued in the slot before.
func (t *slot) settle() error {
	if t.pending == nil {
		return nil
	}
	f := t.pending
	t.pending = nil
	return f()
}

// watch runs the plan of sh and has w count inputs and outputs. It does not wait
// for the device.
func (t *slot) watch(sh *shape, in engine.Feeds, w *Watch, id calib.SampleID) error {
	if err := t.settle(); err != nil {
		return err
	}
	if err := t.start(sh, in); err != nil {
		return err
	}
	err := t.count(sh, w, binary.LittleEndian.Uint64(id[:]))
	if err != nil {
		return errors.Join(err, t.stream.Sync()) // what is queued uses this slot's memory
	}
	return nil
}

// wanted is what is fetched of one tensor.
type wanted struct {
	to         observe.Rows
	rows       []int
	x          device.Ptr
	n, width   int64
	ids, value int64 // offsets into rowMemory
}

func (t *slot) count(sh *shape, w *Watch, key uint64) error {
	p := sh.plan
	var list []observe.Tensor
	for _, bindings := range [][]plan.Binding{p.Inputs, p.Outputs} {
		for _, b := range bindings {
			if _, ok := w.c.Specs[b.Name]; !ok {
				continue
			}
			if b.Type != tensor.Float32 {
				return fmt.Errorf("%w: tensor %q of type %v is observed, only FP32 is", plan.ErrUnsupported, b.Name, b.Type)
			}
			list = append(list, observe.Tensor{Name: b.Name, Ptr: t.addr(sh, b.Ref), Dims: b.Dims})
		}
	}
	if err := w.o.Observe(t.stream, list...); err != nil {
		return err
	}
	rows, bytes, err := w.wanted(list, key)
	if err != nil {
		return err
	}
	fault := bytes // its word lies behind the rows
	if err := t.rows.room(t.s.d, fault+plan.Align); err != nil {
		return err
	}
	if err := t.fetch(rows, fault); err != nil {
		return err
	}
	host := t.rows.host.Bytes()
	if p.Fault != (plan.Ref{}) {
		if err := t.stream.CopyOut(host[fault:fault+4], t.span(sh, p.Fault, 4)); err != nil {
			return err
		}
	}
	if err := t.done.Record(t.stream); err != nil {
		return err
	}
	t.pending = func() error {
		if err := t.done.Sync(); err != nil {
			return err
		}
		if p.Fault != (plan.Ref{}) && binary.LittleEndian.Uint32(host[fault:]) != 0 {
			return fmt.Errorf("%w: an index lies outside its table", engine.ErrInput)
		}
		return w.keep(rows, host, key)
	}
	return nil
}

// wanted lists the rows to fetch, with places for them, and the bytes of all.
func (w *Watch) wanted(list []observe.Tensor, key uint64) (rows []*wanted, bytes int64, err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, x := range list {
		to := w.c.Rows[x.Name]
		if to == nil || len(x.Dims) == 0 {
			continue
		}
		width := x.Dims[len(x.Dims)-1]
		elems, err := tensor.Elems(x.Dims)
		if err != nil {
			return nil, 0, fmt.Errorf("tensor %q: %w", x.Name, err)
		}
		if elems == 0 {
			continue
		}
		if r := to.Wanted(key, int(elems/width)); len(r) > 0 {
			rows = append(rows, &wanted{to: to, rows: r, x: x.Ptr, n: elems / width, width: width})
		}
	}
	for _, r := range rows {
		r.ids = bytes
		bytes += aligned(8 * int64(len(r.rows)))
	}
	for _, r := range rows {
		r.value = bytes
		bytes += aligned(4 * int64(len(r.rows)) * r.width)
	}
	return rows, bytes, nil
}

// fetch queues the copies of rows to the host, whose memory ends at end.
func (t *slot) fetch(rows []*wanted, end int64) error {
	if len(rows) == 0 {
		return nil
	}
	host, first := t.rows.host.Bytes(), rows[0].value
	for _, r := range rows {
		for i, at := range r.rows {
			binary.NativeEndian.PutUint64(host[r.ids+8*int64(i):], uint64(at))
		}
	}
	part := func(from, to int64) device.Span {
		return device.Span{Ptr: t.rows.device.Ptr + device.Ptr(from), Bytes: to - from}
	}
	if err := t.stream.CopyIn(part(0, first), host[:first]); err != nil {
		return err
	}
	for _, r := range rows {
		err := t.s.d.Do(func() error {
			return t.s.d.Check(kernels.Gather(4, kernels.Ptr(r.x), 1, r.n, r.width, kernels.Ptr(part(r.ids, first).Ptr), int64(len(r.rows)), kernels.Ptr(part(r.value, end).Ptr), 0, kernels.Stream(t.stream.Handle())))
		})
		if err != nil {
			return err
		}
	}
	return t.stream.CopyOut(host[first:end], part(first, end))
}

// keep hands the fetched rows over.
func (w *Watch) keep(rows []*wanted, host []byte, key uint64) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, r := range rows {
		n := int64(len(r.rows))
		x := tensor.View[float32](&tensor.Tensor{Type: tensor.Float32, Dims: []int64{n, r.width}, Data: host[r.value : r.value+4*n*r.width]})
		if err := r.to.Keep(key, r.rows, x); err != nil {
			return err
		}
	}
	return nil
}
