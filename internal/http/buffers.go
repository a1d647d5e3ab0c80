package http

import (
	"runtime/debug"
	"sync"
	"sync/atomic"
	"time"
	"unsafe"
)

// arena hands out the memory of one request: 8-byte aligned, not zeroed,
// reused by later requests.
type arena struct {
	words []uint64
	used  int
	// charge, when set, is asked for memory that a request makes beyond its body.
	charge func(n int) error
}

// take asks for n bytes.
func (a *arena) take(n int64) error {
	if a.charge == nil {
		return nil
	}
	return a.charge(int(n))
}

// bytes returns n bytes aligned for any element type. Their contents are left
// over from earlier requests: the caller overwrites all of them.
func (a *arena) bytes(n int) []byte {
	if n == 0 {
		return []byte{}
	}
	w := (n + 7) / 8
	if a.used+w > len(a.words) {
		// What was handed out before stays alive through its own slices.
		a.words = make([]uint64, max(w, 2*len(a.words), 1024))
		a.used = 0
	}
	p := a.words[a.used : a.used+w]
	a.used += w
	return unsafe.Slice((*byte)(unsafe.Pointer(&p[0])), n)
}

func (a *arena) reset() {
	a.used, a.charge = 0, nil
	if len(a.words)*8 > keptBuffer {
		a.words = nil
	}
}

// buffer is a pooled byte slice.
type buffer struct{ b []byte }

var buffers = sync.Pool{New: func() any { return &buffer{b: make([]byte, 0, 4096)} }}

func getBuffer() *buffer { return buffers.Get().(*buffer) }

func (b *buffer) free() {
	if cap(b.b) <= keptBuffer {
		b.b = b.b[:0]
		buffers.Put(b)
	}
}

const (
	// trimFrom is how much memory of large bodies has to be let go of before the
	// Go heap is collected for the system's sake, and trimAfter how long after it:
	// by itself Go keeps such a heap for minutes. At most once in that time, since
	// it costs a collection.
	trimFrom  = 64 << 20
	trimAfter = 5 * time.Second
)

// trimmer gives the memory of large bodies back to the system.
type trimmer struct {
	after time.Duration
	loose atomic.Int64 // bytes of large bodies that nobody holds any more
	due   atomic.Bool
}

// dropped counts a body of n bytes. Small ones go back into pools.
func (t *trimmer) dropped(n int64) {
	if n <= keptBuffer || t.loose.Add(n) < trimFrom || !t.due.CompareAndSwap(false, true) {
		return
	}
	time.AfterFunc(t.after, func() {
		t.loose.Store(0)
		t.due.Store(false)
		debug.FreeOSMemory()
	})
}
