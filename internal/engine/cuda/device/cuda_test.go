//go:build cuda

// Tests of a device, the real one or the emulated one.
package device

import (
	"bytes"
	"encoding/binary"
	"errors"
	"math"
	"sync"
	"testing"

	"github.com/fewbit/fewbit/cuda"
	"github.com/fewbit/fewbit/internal/engine/cuda/driver"
)

// device opens GPU 0 until the test ends.
func device(t *testing.T) *Device {
	t.Helper()
	d, err := Open(0)
	if err != nil {
		if driver.Emulated {
			t.Fatal(err)
		}
		t.Skip(err)
	}
	t.Cleanup(func() { check(t, d.Close()) })
	return d
}

func check(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func stream(t *testing.T, d *Device) *Stream {
	t.Helper()
	s, err := d.NewStream()
	check(t, err)
	t.Cleanup(func() { check(t, s.Close()) })
	return s
}

func alloc(t *testing.T, d *Device, n int64) *Memory {
	t.Helper()
	m, err := d.Alloc(n)
	check(t, err)
	t.Cleanup(func() { check(t, m.Close()) })
	return m
}

func pinned(t *testing.T, d *Device, n int64) *HostMemory {
	t.Helper()
	h, err := d.AllocHost(n)
	check(t, err)
	t.Cleanup(func() { check(t, h.Close()) })
	return h
}

// dequantize queues x = q * 0.5 for the n bytes of q.
func dequantize(d *Device, s *Stream, q, x Span) error {
	return d.Do(func() error {
		return d.Check(cuda.DequantizeTensor(cuda.Ptr(q.Ptr), q.Bytes, 0.5, 0, cuda.Ptr(x.Ptr), cuda.Stream(s.Handle())))
	})
}

func floats(b []byte) []float32 {
	v := make([]float32, len(b)/4)
	for i := range v {
		v[i] = math.Float32frombits(binary.LittleEndian.Uint32(b[4*i:]))
	}
	return v
}

func TestOpen(t *testing.T) {
	d := device(t)
	i := d.Info()
	if i.SM < minSM || i.Multiprocessors < 1 || i.Memory < 1<<28 || i.SharedMemory < 48<<10 || len(i.UUID) != 40 || i.Emulated != driver.Emulated {
		t.Errorf("%+v", i)
	}
	if n, err := Count(); n < 1 || err != nil {
		t.Errorf("Count: %d, %v", n, err)
	}
	if _, err := Open(99); !errors.Is(err, ErrNoDevice) {
		t.Errorf("Open(99): %v", err)
	}
	again, err := Open(0)
	check(t, err)
	if again != d {
		t.Error("two devices share one context without knowing of each other")
	}
	check(t, again.Close())
	check(t, d.Sync())
}

func TestCopies(t *testing.T) {
	d := device(t)
	s := stream(t, d)
	const n = 1000
	a, b := alloc(t, d, n), alloc(t, d, n)
	in, out := pinned(t, d, n), pinned(t, d, n)
	for i := range in.Bytes() {
		in.Bytes()[i] = byte(i * 7)
	}
	check(t, s.CopyIn(a.Span, in.Bytes()))
	check(t, s.Copy(b.Span, a.Span))
	tail, err := b.Slice(n-8, 8)
	check(t, err)
	check(t, s.Fill(tail, 0xEE))
	check(t, s.CopyOut(out.Bytes(), b.Span))
	if driver.Emulated && !bytes.Equal(out.Bytes(), make([]byte, n)) {
		t.Error("the copy did not wait for Sync, so a missing one would not be noticed")
	}
	check(t, s.Sync())
	want := append(bytes.Clone(in.Bytes()[:n-8]), bytes.Repeat([]byte{0xEE}, 8)...)
	if !bytes.Equal(out.Bytes(), want) {
		t.Error("pinned copy differs")
	}
	// Memory of Go's own: complete when the call returns.
	plain := make([]byte, n)
	check(t, s.CopyIn(a.Span, want))
	check(t, s.CopyOut(plain, a.Span))
	if !bytes.Equal(plain, want) {
		t.Error("copy of pageable memory differs")
	}
	for what, err := range map[string]error{
		"in":  s.CopyIn(tail, want),
		"out": s.CopyOut(plain, tail),
		"on":  s.Copy(tail, a.Span),
	} {
		if err == nil {
			t.Errorf("copy %s: past the end", what)
		}
	}
	check(t, s.CopyIn(tail, nil))
	check(t, s.CopyOut(nil, tail))
	check(t, s.Copy(tail, Span{}))
	check(t, s.Fill(Span{}, 1))
}

func TestEventsOrderStreams(t *testing.T) {
	d := device(t)
	first, second := stream(t, d), stream(t, d)
	m, h := alloc(t, d, 64), pinned(t, d, 64)
	start, err := d.NewEvent(true)
	check(t, err)
	end, err := d.NewEvent(true)
	check(t, err)
	defer start.Close()
	defer end.Close()
	check(t, start.Record(first))
	check(t, first.Fill(m.Span, 5))
	check(t, end.Record(first))
	check(t, second.Wait(end))
	check(t, second.CopyOut(h.Bytes(), m.Span))
	check(t, second.Sync())
	if h.Bytes()[63] != 5 {
		t.Error("the second stream did not wait")
	}
	check(t, end.Sync())
	took, err := end.Since(start)
	if err != nil || took < 0 {
		t.Errorf("%v, %v", took, err)
	}
	for _, done := range []func() (bool, error){end.Done, first.Done} {
		if ok, err := done(); !ok || err != nil {
			t.Errorf("not done after Sync: %v", err)
		}
	}
	for tries := 0; ; tries++ {
		if ok, err := second.Done(); ok || err != nil || tries > 1000 {
			check(t, err)
			break
		}
	}
	plain, err := d.NewEvent(false)
	check(t, err)
	check(t, plain.Record(first))
	check(t, plain.Sync())
	if _, err := plain.Since(start); err == nil {
		t.Error("time of an event without timing")
	}
	check(t, plain.Close())
}

func TestGraph(t *testing.T) {
	d := device(t)
	s := stream(t, d)
	const n = 300
	q, x := alloc(t, d, n), alloc(t, d, 4*n)
	in, out := pinned(t, d, n), pinned(t, d, 4*n)
	g, err := s.Capture(func() error {
		return errors.Join(s.CopyIn(q.Span, in.Bytes()), dequantize(d, s, q.Span, x.Span), s.CopyOut(out.Bytes(), x.Span))
	})
	check(t, err)
	defer g.Close()
	check(t, s.Sync())
	if g.Nodes() != 3 || !bytes.Equal(out.Bytes(), make([]byte, 4*n)) {
		t.Errorf("%d nodes; capturing must not run them", g.Nodes())
	}
	for round := range 3 {
		for i := range in.Bytes() {
			in.Bytes()[i] = byte(i + round)
		}
		check(t, g.Launch(s))
		check(t, s.Sync())
		for i, v := range floats(out.Bytes()) {
			if want := float32(int8(i+round)) * 0.5; v != want {
				t.Fatalf("round %d: x[%d] = %v, want %v", round, i, v, want)
			}
		}
	}
}

func TestCaptureAcrossStreams(t *testing.T) {
	d := device(t)
	main, side := stream(t, d), stream(t, d)
	m, out := alloc(t, d, 2), pinned(t, d, 2)
	fork, err := d.NewEvent(false)
	check(t, err)
	join, err := d.NewEvent(false)
	check(t, err)
	defer fork.Close()
	defer join.Close()
	left, right := Span{m.Ptr, 1}, Span{m.Ptr + 1, 1}
	g, err := main.Capture(func() error {
		return errors.Join(fork.Record(main), side.Wait(fork), side.Fill(right, 2), join.Record(side), main.Fill(left, 1), main.Wait(join), main.CopyOut(out.Bytes(), m.Span))
	})
	check(t, err)
	defer g.Close()
	check(t, g.Launch(main))
	check(t, main.Sync())
	if !bytes.Equal(out.Bytes(), []byte{1, 2}) {
		t.Error(out.Bytes())
	}
}

// What must not be captured fails the capture, and the stream works afterwards.
func TestCaptureRefuses(t *testing.T) {
	d := device(t)
	s, side := stream(t, d), stream(t, d)
	m, h := alloc(t, d, 8), pinned(t, d, 8)
	fork, err := d.NewEvent(false)
	check(t, err)
	defer fork.Close()
	mine := errors.New("mine")
	for name, f := range map[string]func() error{
		"own error":   func() error { return mine },
		"synchronize": s.Sync,
		"allocate": func() error {
			m, err := d.Alloc(8)
			if err == nil {
				return m.Close()
			}
			return err
		},
		"pageable memory": func() error { return s.CopyIn(m.Span, make([]byte, 8)) },
		"a stream that is not joined": func() error {
			return errors.Join(fork.Record(s), side.Wait(fork), side.Fill(m.Span, 1))
		},
	} {
		g, err := s.Capture(f)
		if err == nil {
			t.Errorf("%s: captured %d nodes", name, g.Nodes())
		}
		if errors.Is(err, ErrLost) || (name == "own error") != errors.Is(err, mine) {
			t.Errorf("%s: %v", name, err)
		}
		check(t, s.Fill(m.Span, 3))
		check(t, s.CopyOut(h.Bytes(), m.Span))
		check(t, s.Sync())
		if h.Bytes()[7] != 3 {
			t.Errorf("%s: the stream does not work any more", name)
		}
	}
}

func TestMemory(t *testing.T) {
	d := device(t)
	before, total, err := d.MemInfo()
	if err != nil || before <= 0 || before > total {
		t.Fatal(before, total, err)
	}
	const n = 64 << 20
	m, err := d.Alloc(n)
	check(t, err)
	if m.Ptr%256 != 0 || m.Bytes != n {
		t.Errorf("%+v", m.Span)
	}
	if during, _, _ := d.MemInfo(); driver.Emulated && during != before-n {
		t.Errorf("%d free before, %d with %d taken", before, during, n)
	}
	check(t, m.Close())
	check(t, m.Close())
	if after, _, _ := d.MemInfo(); driver.Emulated && after != before {
		t.Errorf("%d free before, %d after", before, after)
	}
	_, err = d.Alloc(total + 1)
	var e *Error
	if !errors.Is(err, ErrOutOfMemory) || !errors.As(err, &e) || e.Detail == "" {
		t.Errorf("more than there is: %v", err)
	}
	for _, n := range []int64{0, -1, math.MinInt64} {
		if _, err := d.Alloc(n); err == nil {
			t.Errorf("allocated %d bytes", n)
		}
		if _, err := d.AllocHost(n); err == nil {
			t.Errorf("pinned %d bytes", n)
		}
	}
	check(t, d.Sync())
}

// Many goroutines, which the scheduler moves between threads, each with its own stream.
func TestGoroutines(t *testing.T) {
	d := device(t)
	var wg sync.WaitGroup
	for i := range 8 {
		s := stream(t, d)
		m, h := alloc(t, d, 4096), pinned(t, d, 4096)
		wg.Add(1)
		go func() {
			defer wg.Done()
			for j := range 50 {
				b := byte(16*i + j)
				if err := errors.Join(s.Fill(m.Span, b), s.CopyOut(h.Bytes(), m.Span), s.Sync()); err != nil {
					t.Error(err)
					return
				}
				if h.Bytes()[4095] != b {
					t.Errorf("stream %d: %d, want %d", i, h.Bytes()[4095], b)
				}
			}
		}()
	}
	wg.Wait()
}

func TestClosed(t *testing.T) {
	d, err := Open(0)
	if err != nil {
		t.Skip(err)
	}
	m, err := d.Alloc(8)
	check(t, err)
	h, err := d.AllocHost(8)
	check(t, err)
	s, err := d.NewStream()
	check(t, err)
	check(t, d.Close())
	check(t, d.Close())
	if err := s.Fill(m.Span, 1); !errors.Is(err, ErrClosed) {
		t.Errorf("Fill: %v", err)
	}
	if _, err := d.Alloc(8); !errors.Is(err, ErrClosed) {
		t.Errorf("Alloc: %v", err)
	}
	h.Bytes()[7] = 1
	for _, c := range []interface{ Close() error }{m, h, s} {
		check(t, c.Close())
	}
	if h.Bytes() != nil {
		t.Error("bytes after Close")
	}
}
