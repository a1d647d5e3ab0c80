//go:build cuda

package cuda

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math/bits"
	"sync"

	"github.com/fewbit/fewbit/internal/engine"
	"github.com/fewbit/fewbit/internal/engine/cuda/device"
	"github.com/fewbit/fewbit/internal/engine/cuda/plan"
)

// slot runs one request at a time: a stream with the memory that a plan's steps
// work in. It grows to the largest plan that it has run. One goroutine has it.
type slot struct {
	s      *session
	stream *device.Stream
	done   *device.Event
	arena  *device.Memory
	spaces map[string]*device.Memory // workspaces, by entry
	input  *device.HostMemory        // pinned
	graphs map[*shape]*device.Graph  // with the addresses of this slot

	// What a Watch has queued here and not waited for, and its memory.
	pending func() error
	rows    rowMemory
}

// recordAfter is the run of a shape in a slot that is recorded: shapes that come
// once are launched kernel by kernel, and the kernels are loaded by then.
const recordAfter = 2

// maxGraphs bounds the recorded graphs of a slot.
const maxGraphs = 64

// run executes the plan of sh.
func (t *slot) run(sh *shape, in engine.Feeds, outs []string) (*answer, error) {
	p := sh.plan
	if err := t.start(sh, in); err != nil {
		return nil, err
	}
	a, err := t.s.results.take(t.s.d, answerBytes(p))
	if err != nil {
		return nil, errors.Join(err, t.stream.Sync())
	}
	if err := t.collect(sh, a); err != nil {
		err = errors.Join(err, t.stream.Sync()) // the device may still write to a
		a.Close()
		return nil, err
	}
	data := a.memory.Bytes()
	if p.Fault != (plan.Ref{}) && binary.LittleEndian.Uint32(data[answerBytes(p)-plan.Align:]) != 0 {
		a.Close()
		return nil, fmt.Errorf("%w: an index lies outside its table", engine.ErrInput)
	}
	a.tensors = tensors(p, data, outs)
	return a, nil
}

// start queues the steps of sh on in.
func (t *slot) start(sh *shape, in engine.Feeds) error {
	if err := t.prepare(sh.plan); err != nil {
		return err
	}
	at := int64(0)
	pinned := t.input.Bytes()
	for _, b := range sh.plan.Inputs {
		copy(pinned[at:at+b.Bytes], in[b.Name].Data)
		at += aligned(b.Bytes)
	}
	if err := t.launch(sh); err != nil {
		// What was queued before still reads and writes this slot's memory.
		return errors.Join(err, t.stream.Sync())
	}
	return nil
}

// answerBytes is what an answer needs: the outputs, and the word for faults.
func answerBytes(p *plan.Plan) int64 {
	n := int64(plan.Align)
	for _, b := range p.Outputs {
		n += aligned(b.Bytes)
	}
	return n
}

// collect copies the outputs to a and waits for them.
func (t *slot) collect(sh *shape, a *answer) error {
	data := a.memory.Bytes()
	at := int64(0)
	p := sh.plan
	for _, b := range p.Outputs {
		if err := t.stream.CopyOut(data[at:at+b.Bytes], t.span(sh, b.Ref, b.Bytes)); err != nil {
			return err
		}
		at += aligned(b.Bytes)
	}
	if p.Fault != (plan.Ref{}) {
		at = answerBytes(p) - plan.Align
		if err := t.stream.CopyOut(data[at:at+4], t.span(sh, p.Fault, 4)); err != nil {
			return err
		}
	}
	if err := t.done.Record(t.stream); err != nil {
		return err
	}
	return t.done.Sync()
}

// prepare makes sure that stream and memory are there and large enough for p.
func (t *slot) prepare(p *plan.Plan) (err error) {
	d := t.s.d
	if t.stream == nil {
		if t.stream, err = d.NewStream(); err != nil {
			return err
		}
		t.spaces, t.graphs = map[string]*device.Memory{}, map[*shape]*device.Graph{}
	}
	if t.done == nil {
		if t.done, err = d.NewEvent(false); err != nil {
			return err
		}
	}
	if t.arena, err = t.grow(t.arena, p.Arena, false); err != nil {
		return err
	}
	for _, b := range p.Buffers {
		if b.Kind == plan.Workspace {
			if t.spaces[b.Key], err = t.grow(t.spaces[b.Key], b.Bytes, true); err != nil {
				return err
			}
		}
	}
	need := int64(plan.Align)
	for _, b := range p.Inputs {
		need += aligned(b.Bytes)
	}
	if t.input != nil && int64(len(t.input.Bytes())) < need {
		t.forget()
		err = t.input.Close()
		t.input = nil
	}
	if t.input == nil && err == nil {
		t.input, err = d.AllocHost(roomFor(need))
	}
	return err
}

// grow returns m, or memory of at least need bytes in its place. Graphs hold the
// old addresses and go.
func (t *slot) grow(m *device.Memory, need int64, zero bool) (*device.Memory, error) {
	if m != nil && m.Bytes >= need {
		return m, nil
	}
	t.forget()
	if m != nil {
		if err := m.Close(); err != nil {
			return nil, err
		}
	}
	m, err := t.s.d.Alloc(roomFor(need))
	if err == nil && zero {
		err = t.stream.Fill(m.Span, 0)
	}
	return m, err
}

// roomFor rounds up so that a slot grows a few times and not with each shape: to
// an eighth of the power of two below.
func roomFor(n int64) int64 {
	n = max(n, 4096)
	step := int64(1) << max(bits.Len64(uint64(n))-4, 12)
	return (n + step - 1) / step * step
}

// forget gives all recorded graphs up.
func (t *slot) forget() {
	for sh, g := range t.graphs {
		_ = g.Close() // nothing uses it any more
		delete(t.graphs, sh)
	}
}

// launch puts the plan's work on the stream: as a graph when it was recorded.
func (t *slot) launch(sh *shape) error {
	if g := t.graphs[sh]; g != nil {
		return g.Launch(t.stream)
	}
	if t.s.c.NoGraphs || !t.s.often(sh) {
		return t.s.d.Do(func() error { return t.queue(sh) })
	}
	if len(t.graphs) >= maxGraphs {
		t.forget()
	}
	g, err := t.stream.Capture(func() error { return t.queue(sh) })
	if err != nil {
		return err
	}
	t.graphs[sh] = g
	return g.Launch(t.stream)
}

// often reports whether a shape has come often enough to be recorded.
func (s *session) often(sh *shape) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return sh.runs >= recordAfter
}

// queue puts copies in and steps on the stream one by one. The device's context
// is current.
func (t *slot) queue(sh *shape) error {
	p := sh.plan
	at := int64(0)
	pinned := t.input.Bytes()
	for _, b := range p.Inputs {
		if err := t.stream.CopyIn(t.span(sh, b.Ref, b.Bytes), pinned[at:at+b.Bytes]); err != nil {
			return err
		}
		at += aligned(b.Bytes)
	}
	if p.Fault != (plan.Ref{}) {
		if err := t.stream.Fill(t.span(sh, p.Fault, 4), 0); err != nil {
			return err
		}
	}
	addr := func(r plan.Ref) device.Ptr { return t.addr(sh, r) }
	for i, s := range p.Steps {
		if err := t.s.launch(s, addr, t.stream); err != nil {
			return fmt.Errorf("step %d, %s: %w", i, plan.Text(s), err)
		}
	}
	return nil
}

// addr is where r lies for this slot.
func (t *slot) addr(sh *shape, r plan.Ref) device.Ptr {
	if r.Buf == 0 {
		return 0
	}
	switch b := &sh.plan.Buffers[r.Buf]; b.Kind {
	case plan.Arena:
		return t.arena.Ptr + device.Ptr(b.Offset+r.Offset)
	case plan.Workspace:
		return t.spaces[b.Key].Ptr + device.Ptr(r.Offset)
	}
	return sh.at[r.Buf] + device.Ptr(r.Offset)
}

func (t *slot) span(sh *shape, r plan.Ref, n int64) device.Span {
	return device.Span{Ptr: t.addr(sh, r), Bytes: n}
}

func (t *slot) close() error {
	t.forget()
	var errs []error
	if t.pending != nil {
		errs = append(errs, t.done.Sync()) // before its memory goes
	}
	errs = append(errs, t.rows.close())
	if t.stream != nil {
		errs = append(errs, t.stream.Close())
	}
	if t.done != nil {
		errs = append(errs, t.done.Close())
	}
	if t.arena != nil {
		errs = append(errs, t.arena.Close())
	}
	for _, m := range t.spaces {
		if m != nil {
			errs = append(errs, m.Close())
		}
	}
	if t.input != nil {
		errs = append(errs, t.input.Close())
	}
	return errors.Join(errs...)
}

// answer holds the outputs of one run in pinned memory.
type answer struct {
	memory *device.HostMemory
	pool   *resultPool

	mu      sync.Mutex
	tensors engine.Feeds
	closed  bool
}

var _ engine.Result = (*answer)(nil)

// Tensors implements engine.Result.
func (a *answer) Tensors() engine.Feeds {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.tensors
}

// Close implements engine.Result.
func (a *answer) Close() {
	a.mu.Lock()
	done := a.closed
	a.closed, a.tensors = true, nil
	a.mu.Unlock()
	if !done {
		a.pool.put(a.memory)
	}
}

// resultPool keeps pinned memory for answers: pinning takes longer than most
// models run.
type resultPool struct {
	mu     sync.Mutex
	free   []*device.HostMemory
	closed bool
}

// keptResults bounds the pinned blocks that wait for the next answer.
const keptResults = 8

// take returns an answer with room for n bytes.
func (p *resultPool) take(d *device.Device, n int64) (*answer, error) {
	p.mu.Lock()
	best := -1
	for i, m := range p.free {
		if size := int64(len(m.Bytes())); size >= n && (best < 0 || size < int64(len(p.free[best].Bytes()))) {
			best = i
		}
	}
	var m *device.HostMemory
	if best >= 0 {
		m = p.free[best]
		p.free = append(p.free[:best], p.free[best+1:]...)
	}
	p.mu.Unlock()
	if m == nil {
		var err error
		if m, err = d.AllocHost(roomFor(n)); err != nil {
			return nil, err
		}
	}
	return &answer{memory: m, pool: p}, nil
}

// put takes memory back. The smallest block goes when there are too many.
func (p *resultPool) put(m *device.HostMemory) {
	p.mu.Lock()
	p.free = append(p.free, m)
	var drop *device.HostMemory
	if len(p.free) > keptResults || p.closed {
		least := 0
		for i, x := range p.free {
			if len(x.Bytes()) < len(p.free[least].Bytes()) {
				least = i
			}
		}
		drop = p.free[least]
		p.free = append(p.free[:least], p.free[least+1:]...)
	}
	p.mu.Unlock()
	if drop != nil {
		_ = drop.Close() // of memory that nobody reads
	}
}

// close gives the waiting blocks up; those of open results go when they close.
func (p *resultPool) close() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.closed = true
	var errs []error
	for _, m := range p.free {
		errs = append(errs, m.Close())
	}
	p.free = nil
	return errors.Join(errs...)
}
