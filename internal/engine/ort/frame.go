package ort

// #include "shim.h"
import "C"

import (
	"context"
	"errors"
	"fmt"
	"os"
	"runtime"
	"sync"
	"unsafe"

	ortgo "github.com/yalue/onnxruntime_go"

	"github.com/fewbit/fewbit/internal/engine"
	"github.com/fewbit/fewbit/internal/tensor"
)

// frame is what one Run needs besides its feeds: argument arrays in C memory
// and run options. Frames are used again, one Run at a time.
type frame struct {
	c    *C.fbort_frame
	in   []C.fbort_input  // c.in
	out  []C.fbort_output // c.out
	outs []*C.OrtValue    // c.out_values
	outN []*C.char        // c.out_names
	ids  []int            // outputs of this run, as indices into the session's
	seen []bool           // by output: already in ids

	options *ortgo.RunOptions
	ro      *C.OrtRunOptions
	pin     runtime.Pinner

	terminate  func()        // tells the run to stop
	terminated chan struct{} // one value once terminate has returned

	ended *pipe // nil before the first run on a thread of its own
}

// pipe is where the end of a run on a thread of its own is told.
type pipe struct {
	r, w *os.File
	fd   C.int // of w
	got  [1]byte
}

func newPipe() (*pipe, error) {
	r, w, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	p := &pipe{r: r, w: w}
	raw, err := w.SyscallConn()
	if err == nil {
		err = raw.Control(func(fd uintptr) { p.fd = C.int(fd) })
	}
	if err != nil {
		return nil, errors.Join(err, p.close())
	}
	return p, nil
}

func (p *pipe) close() error { return errors.Join(p.r.Close(), p.w.Close()) }

var errNoMemory = fmt.Errorf("%w for the arguments of a run", engine.ErrMemory)

func newFrame(inputs, outputs int, shrink bool) (*frame, error) {
	f := &frame{terminated: make(chan struct{}, 1)}
	var err error
	if f.options, err = ortgo.NewRunOptions(); err != nil {
		return nil, err
	}
	if f.ro, err = runOptionsPointer(f.options); err == nil && shrink {
		// onnxruntime_run_options_config_keys.h: after the run, CPU device 0
		err = runConfig(f.ro, "memory.enable_memory_arena_shrinkage", "cpu:0")
	}
	if err != nil {
		return nil, errors.Join(err, f.options.Destroy())
	}
	if f.c = C.fbort_frame_new(C.size_t(inputs), C.size_t(outputs)); f.c == nil {
		return nil, errors.Join(errNoMemory, f.options.Destroy())
	}
	f.in = unsafe.Slice(f.c.in, inputs)
	f.out = unsafe.Slice(f.c.out, outputs)
	f.outs = unsafe.Slice(f.c.out_values, outputs)
	f.outN = unsafe.Slice(f.c.out_names, outputs)
	f.ids = make([]int, 0, outputs)
	f.seen = make([]bool, outputs)
	f.terminate = func() {
		_ = f.options.Terminate() // fails only for options that were destroyed
		f.terminated <- struct{}{}
	}
	return f, nil
}

func (f *frame) destroy() error {
	C.fbort_frame_free(f.c)
	f.c, f.in, f.out, f.outs, f.outN = nil, nil, nil, nil, nil
	err := f.options.Destroy()
	if f.ended != nil {
		err = errors.Join(err, f.ended.close())
	}
	return err
}

// frames hands frames out and keeps up to maxFreeFrames for the next Run.
// (sync.Pool would drop them without freeing their C memory.)
type frames struct {
	mu   sync.Mutex
	free []*frame
}

// maxFreeFrames is about how many Runs are ever useful at once on one session.
const maxFreeFrames = 64

func (p *frames) get() *frame {
	p.mu.Lock()
	defer p.mu.Unlock()
	n := len(p.free)
	if n == 0 {
		return nil
	}
	f := p.free[n-1]
	p.free = p.free[:n-1]
	return f
}

func (p *frames) put(f *frame) {
	p.mu.Lock()
	if len(p.free) < maxFreeFrames {
		p.free = append(p.free, f)
		f = nil
	}
	p.mu.Unlock()
	if f != nil {
		_ = f.destroy() // its options are valid, so this cannot fail
	}
}

func (p *frames) close() error {
	var errs []error
	for f := p.get(); f != nil; f = p.get() {
		errs = append(errs, f.destroy())
	}
	return errors.Join(errs...)
}

// setInput describes t to ONNX Runtime without copying it: its memory is
// pinned until the run's end. Strings are copied, they live in std::string there.
func (f *frame) setInput(i int, t *tensor.Tensor) error {
	in := &f.in[i]
	in._type = C.int32_t(t.Type)
	in.rank = C.int32_t(len(t.Dims))
	for d, n := range t.Dims {
		in.dims[d] = C.int64_t(n)
	}
	in.data, in.bytes = 0, 0
	if t.Type == tensor.String {
		return f.setStrings(i, t.Strings)
	}
	data := t.Data
	if len(data) == 0 {
		return nil
	}
	if t.Type == tensor.Bool {
		if err := checkBools(data); err != nil {
			return err
		}
	}
	p := unsafe.Pointer(unsafe.SliceData(data))
	if align := uintptr(t.Type.Bits() / 8); uintptr(p)%align != 0 {
		// Kernels may read whole elements: give them aligned ones.
		c, err := tensor.New(t.Type, int64(len(data))/int64(align))
		if err != nil {
			return err
		}
		copy(c.Data, data)
		p = unsafe.Pointer(unsafe.SliceData(c.Data))
	}
	f.pin.Pin(p)
	in.data = C.uintptr_t(uintptr(p))
	in.bytes = C.size_t(len(data))
	return nil
}

// checkBools refuses bytes other than 0 and 1, which C++ does not define for bool.
func checkBools(b []byte) error {
	for i, x := range b {
		if x > 1 {
			return fmt.Errorf("element %d of a BOOL tensor is %d, expected 0 or 1", i, x)
		}
	}
	return nil
}

func (f *frame) setStrings(i int, s [][]byte) error {
	total := 0
	for _, x := range s {
		total += len(x)
	}
	bytes := make([]byte, 0, total+1)
	ends := make([]C.size_t, len(s)+1)
	for k, x := range s {
		bytes = append(bytes, x...)
		ends[k] = C.size_t(len(bytes))
	}
	return status(C.fbort_strings_in(f.c, C.size_t(i), (*C.char)(unsafe.Pointer(unsafe.SliceData(bytes))),
		unsafe.SliceData(ends), C.size_t(len(s))))
}

// run runs the session with the inputs and outputs set, until it ends or ctx
// is done. A long run gets a thread of its own (fbort_submit says why); for a
// short one handing it over would cost more than it saves.
func (f *frame) run(ctx context.Context, s *C.OrtSession, inNames **C.char, long bool) error {
	call := f.call
	if long {
		call = f.callOnThread
	}
	if ctx.Done() == nil {
		return call(s, inNames)
	}
	stop := context.AfterFunc(ctx, f.terminate)
	err := call(s, inNames)
	if !stop() {
		<-f.terminated
		if e := f.options.UnsetTerminate(); e != nil {
			err = errors.Join(err, e)
		}
	}
	return err
}

func (f *frame) call(s *C.OrtSession, inNames **C.char) error {
	return status(C.fbort_run(s, f.ro, f.c, inNames, C.size_t(len(f.in)), C.size_t(len(f.ids))))
}

func (f *frame) callOnThread(s *C.OrtSession, inNames **C.char) error {
	if f.ended == nil {
		var err error
		if f.ended, err = newPipe(); err != nil { // too many open files: it works without
			return f.call(s, inNames)
		}
	}
	if C.fbort_submit(s, f.ro, f.c, inNames, C.size_t(len(f.in)), C.size_t(len(f.ids)), f.ended.fd) == 0 {
		return f.call(s, inNames)
	}
	_, _ = f.ended.r.Read(f.ended.got[:]) // if that failed, fbort_end would wait instead
	return status(C.fbort_end(f.c))
}

// clear makes f ready for the next run, whether or not this one came to run.
func (f *frame) clear() {
	C.fbort_inputs_release(f.c, C.size_t(len(f.in)))
	f.unpin()
	for _, id := range f.ids {
		f.seen[id] = false
	}
	f.ids = f.ids[:0]
}

func (f *frame) unpin() { f.pin.Unpin() }

// result holds output values of ONNX Runtime and the tensors that lie in them.
type result struct {
	mu      sync.Mutex
	values  []*C.OrtValue
	tensors engine.Feeds
}

var _ engine.Result = (*result)(nil)

// take moves the outputs of a finished run from f into a result.
func (f *frame) take(spec []engine.IO) (*result, error) {
	n := len(f.ids)
	r := &result{values: make([]*C.OrtValue, n), tensors: make(engine.Feeds, n)}
	copy(r.values, f.outs[:n])
	clear(f.outs[:n])
	tensors := make([]tensor.Tensor, n)
	for k, id := range f.ids {
		o, name := &f.out[k], spec[id].Name
		if o.kind == C.FBORT_NONE {
			continue
		}
		t := &tensors[k]
		if err := view(t, o, r.values[k]); err != nil {
			r.Close()
			return nil, fmt.Errorf("output %q: %w", name, err)
		}
		if f.isInput(o.data) {
			t.Data = t.Clone().Data
		}
		r.tensors[name] = t
	}
	return r, nil
}

// isInput reports whether p is where an input lies: an output of the graph that is an
// input too is handed over as it came, and the caller may write to its feeds again.
func (f *frame) isInput(p unsafe.Pointer) bool {
	for i := range f.in {
		if f.in[i].bytes > 0 && f.in[i].data == C.uintptr_t(uintptr(p)) {
			return true
		}
	}
	return false
}

// view makes t the tensor described by o, in the memory of v.
func view(t *tensor.Tensor, o *C.fbort_output, v *C.OrtValue) error {
	t.Type = tensor.DType(o._type)
	switch {
	case o.kind != C.FBORT_TENSOR:
		return errors.New("not a tensor")
	case !passable(t.Type):
		return fmt.Errorf("element type %v cannot be passed", t.Type)
	case o.rank > tensor.MaxRank:
		return fmt.Errorf("more than %d dimensions", tensor.MaxRank)
	}
	t.Dims = make([]int64, o.rank)
	for d := range t.Dims {
		t.Dims[d] = int64(o.dims[d])
	}
	n, err := tensor.Elems(t.Dims)
	if err != nil {
		return err
	}
	if t.Type == tensor.String {
		t.Strings, err = stringsOf(v, n)
		return err
	}
	t.Data = []byte{}
	if n > 0 {
		t.Data = unsafe.Slice((*byte)(o.data), t.Type.Bytes(n))
	}
	return nil
}

// stringsOf copies the n elements of a string tensor.
func stringsOf(v *C.OrtValue, n int64) ([][]byte, error) {
	out := make([][]byte, n)
	if n == 0 {
		return out, nil
	}
	var size C.size_t
	if err := status(C.fbort_strings_size(v, &size)); err != nil {
		return nil, err
	}
	bytes := make([]byte, size+1)
	starts := make([]C.size_t, n)
	err := status(C.fbort_strings_out(v, (*C.char)(unsafe.Pointer(unsafe.SliceData(bytes))), size,
		unsafe.SliceData(starts), C.size_t(n)))
	if err != nil {
		return nil, err
	}
	for i := range out {
		end := size
		if i+1 < len(starts) {
			end = starts[i+1]
		}
		out[i] = bytes[starts[i]:end:end]
	}
	return out, nil
}

// Tensors implements engine.Result.
func (r *result) Tensors() engine.Feeds {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.tensors
}

// Close gives the outputs back to ONNX Runtime. Tensors still held by the
// caller become empty, so that using one late reads nothing rather than freed
// memory.
func (r *result) Close() {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.values == nil {
		return
	}
	for _, t := range r.tensors {
		t.Data, t.Strings = nil, nil
	}
	if len(r.values) > 0 {
		C.fbort_values_release(&r.values[0], C.size_t(len(r.values)))
	}
	r.values, r.tensors = nil, nil
}
