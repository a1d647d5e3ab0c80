//go:build cuda

package cuda

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"

	kernels "github.com/fewbit/fewbit/cuda"
	"github.com/fewbit/fewbit/internal/engine"
	"github.com/fewbit/fewbit/internal/engine/cuda/device"
	"github.com/fewbit/fewbit/internal/engine/cuda/plan"
	"github.com/fewbit/fewbit/internal/graph"
	"github.com/fewbit/fewbit/internal/tensor"
)

// session is one model on the device: its weights, plans by input shapes, and
// slots to run them in.
type session struct {
	d    *device.Device
	c    Config
	m    *graph.Model
	src  *plan.Source
	spec engine.IOSpec
	// slots that no request uses.
	slots chan *slot
	// results holds the pinned memory of answers, back from their readers.
	results resultPool

	mu     sync.Mutex
	shapes map[string]*shape
	clock  uint64 // of uses
	closed bool
	runs   sync.WaitGroup

	upload  sync.Mutex // held while weights go to the device
	weights map[string]device.Span
	blocks  []*device.Memory
}

var _ engine.Session = (*session)(nil)

// shape is the plan for one set of input shapes, or why there is none.
type shape struct {
	once sync.Once
	plan *plan.Plan
	err  error
	// at holds where the weights of the plan lie, by buffer.
	at []device.Ptr
	// lacks is the error of a step that no kernel of this device computes.
	lacks atomic.Pointer[error]
	used  uint64 // session.clock
	runs  int
}

// Spec implements engine.Session.
func (s *session) Spec() engine.IOSpec { return s.spec }

// Run implements engine.Session. Errors of the device are those of package
// device; plan.ErrUnsupported for shapes that cannot be planned.
func (s *session) Run(ctx context.Context, in engine.Feeds, outs []string) (engine.Result, error) {
	var a *answer
	err := s.on(ctx, in, outs, func(at *slot, sh *shape) (err error) {
		a, err = at.run(sh, in, outs)
		return err
	})
	if err != nil {
		return nil, err
	}
	if err := ctx.Err(); err != nil {
		a.Close()
		return nil, err
	}
	return a, nil
}

// on has f run the plan for the shapes of in, in a slot of its own.
func (s *session) on(ctx context.Context, in engine.Feeds, outs []string, f func(*slot, *shape) error) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	s.mu.Lock()
	if s.closed {
		s.mu.Unlock()
		return engine.ErrClosed
	}
	s.runs.Add(1)
	s.mu.Unlock()
	defer s.runs.Done()
	if err := engine.CheckFeeds(s.spec, in); err != nil {
		return err
	}
	for _, o := range outs {
		if !slices.ContainsFunc(s.spec.Outputs, func(io engine.IO) bool { return io.Name == o }) {
			return fmt.Errorf("%w: the model has no output %q", engine.ErrInput, o)
		}
	}
	sh := s.shape(in)
	sh.once.Do(func() { sh.err = s.plan(sh, in) })
	if sh.err != nil {
		return s.forget(sh)
	}
	if err := sh.lacks.Load(); err != nil {
		return *err
	}
	var at *slot
	select {
	case at = <-s.slots:
	case <-ctx.Done():
		return ctx.Err()
	}
	err := f(at, sh)
	s.slots <- at
	if errors.Is(err, plan.ErrUnsupported) {
		sh.lacks.CompareAndSwap(nil, &err) // the next request need not try
	}
	return err
}

// shape returns the entry for the shapes of in. The one that was not used for
// the longest time makes room for a new one.
func (s *session) shape(in engine.Feeds) *shape {
	var key strings.Builder
	for i := range s.spec.Inputs {
		fmt.Fprint(&key, in[s.spec.Inputs[i].Name].Dims)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.clock++
	sh := s.shapes[key.String()]
	if sh == nil {
		if len(s.shapes) >= s.c.Shapes {
			oldest := ""
			for k, x := range s.shapes {
				if oldest == "" || x.used < s.shapes[oldest].used {
					oldest = k
				}
			}
			delete(s.shapes, oldest)
		}
		sh = &shape{}
		s.shapes[key.String()] = sh
	}
	sh.used = s.clock
	sh.runs++
	return sh
}

// forget returns the error of a shape that could not be made ready. One that
// will be another time (memory, the device) is tried again by the next request.
func (s *session) forget(sh *shape) error {
	if errors.Is(sh.err, plan.ErrUnsupported) || errors.Is(sh.err, plan.ErrLimit) {
		return sh.err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for k, x := range s.shapes {
		if x == sh {
			delete(s.shapes, k)
		}
	}
	return sh.err
}

// plan plans for the shapes of in and brings weights to the device that are not
// there yet.
func (s *session) plan(sh *shape, in engine.Feeds) error {
	dims := map[string][]int64{}
	for name, t := range in {
		dims[name] = t.Dims
	}
	var p *plan.Plan
	err := s.d.Do(func() (err error) {
		p, err = s.src.Plan(dims, plan.Options{Scores: s.c.Scores, Products: s.c.Products, KeepInputs: s.c.keepInputs, MaxArena: s.c.MaxMemory, Workspace: workspace})
		return err
	})
	if err != nil {
		return err
	}
	sh.at = make([]device.Ptr, len(p.Buffers))
	if err := s.load(p, sh.at); err != nil {
		return err
	}
	sh.plan = p
	return nil
}

// load uploads the plan's weights and fills in where they are.
func (s *session) load(p *plan.Plan, at []device.Ptr) error {
	s.upload.Lock()
	defer s.upload.Unlock()
	var size, staged int64
	fresh := map[int]device.Span{} // buffers to be made; offsets for now
	for i, b := range p.Buffers {
		switch {
		case b.Kind == plan.Weight && s.weights[b.Key] == (device.Span{}):
			fresh[i] = device.Span{Ptr: device.Ptr(size), Bytes: b.Bytes}
			size += aligned(b.Bytes)
		case b.Kind == plan.Staging:
			fresh[i] = device.Span{Ptr: device.Ptr(staged), Bytes: b.Bytes}
			staged += aligned(b.Bytes)
		}
	}
	if size > 0 {
		if err := s.fill(p, fresh, size, staged); err != nil {
			return err
		}
	}
	for i, b := range p.Buffers {
		if b.Kind == plan.Weight {
			at[i] = s.weights[b.Key].Ptr
		}
	}
	return nil
}

// fill makes the weights in fresh. They count only when all of them are there.
func (s *session) fill(p *plan.Plan, fresh map[int]device.Span, size, staged int64) (err error) {
	block, err := s.d.Alloc(size)
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			_ = block.Close() // the first error counts
		}
	}()
	var stage *device.Memory
	if staged > 0 {
		if stage, err = s.d.Alloc(staged); err != nil {
			return err
		}
		defer func() { err = errors.Join(err, stage.Close()) }()
	}
	stream, err := s.d.NewStream()
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, stream.Close()) }()
	for i := range p.Buffers {
		span, ok := fresh[i]
		if !ok {
			continue
		}
		b := &p.Buffers[i]
		from := block
		if b.Kind == plan.Staging {
			from = stage
		}
		if span, err = from.Slice(int64(span.Ptr), span.Bytes); err != nil {
			return err
		}
		fresh[i] = span
		if b.Fill == nil {
			continue // an Init step makes it
		}
		data := b.Fill()
		if int64(len(data)) != b.Bytes {
			return fmt.Errorf("%w: weight %q has %d bytes, %d are planned", engine.ErrModel, b.Key, len(data), b.Bytes)
		}
		if err := stream.CopyIn(span, data); err != nil {
			return err
		}
	}
	addr := func(r plan.Ref) device.Ptr {
		if r.Buf == 0 {
			return 0
		}
		span, ok := fresh[r.Buf]
		if !ok {
			span = s.weights[p.Buffers[r.Buf].Key]
		}
		return span.Ptr + device.Ptr(r.Offset)
	}
	for _, step := range p.Init {
		if _, needed := fresh[step.(*plan.W4Pack).Packed.Buf]; !needed {
			continue // an earlier plan's
		}
		if err := s.d.Do(func() error { return s.launch(step, addr, stream) }); err != nil {
			return fmt.Errorf("%s: %w", plan.Text(step), err)
		}
	}
	if err := stream.Sync(); err != nil {
		return err
	}
	s.blocks = append(s.blocks, block)
	for i, span := range fresh {
		if p.Buffers[i].Kind == plan.Weight {
			s.weights[p.Buffers[i].Key] = span
		}
	}
	s.m.Unload() // the file's pages: the device has its copy
	return nil
}

// launch queues a step and words what is wrong with it as this engine's errors.
// The device's context is current.
func (s *session) launch(step plan.Step, addr func(plan.Ref) device.Ptr, stream *device.Stream) error {
	err := launch(step, addr, stream)
	if errors.Is(err, kernels.ErrUnsupported) {
		return fmt.Errorf("%w: %w", plan.ErrUnsupported, err)
	}
	return s.d.Check(err)
}

func aligned(n int64) int64 { return (n + plan.Align - 1) / plan.Align * plan.Align }

// Close implements engine.Session.
func (s *session) Close() error {
	s.mu.Lock()
	was := s.closed
	s.closed = true
	s.mu.Unlock()
	s.runs.Wait()
	if was {
		return nil
	}
	var errs []error
	for range cap(s.slots) {
		errs = append(errs, (<-s.slots).close())
	}
	errs = append(errs, s.results.close())
	for _, b := range s.blocks {
		errs = append(errs, b.Close())
	}
	return errors.Join(append(errs, s.m.Close())...)
}

// tensors views the outputs in the pinned memory of an answer.
func tensors(p *plan.Plan, data []byte, outs []string) engine.Feeds {
	r := engine.Feeds{}
	at := int64(0)
	for _, b := range p.Outputs {
		if len(outs) == 0 || slices.Contains(outs, b.Name) {
			r[b.Name] = &tensor.Tensor{Type: b.Type, Dims: b.Dims, Data: data[at : at+b.Bytes : at+b.Bytes]}
		}
		at += aligned(b.Bytes)
	}
	return r
}
