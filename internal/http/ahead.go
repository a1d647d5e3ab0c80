package http

import (
	"math/bits"
	"net/http"
	"strconv"
	"sync"
	"time"

	"github.com/gin-gonic/gin"
)

// Requests that cannot be admitted are refused by their head: under overload the time
// that reading and parsing them would take belongs to those that are answered.

// headerTimeout says in microseconds what the parameter timeout says in the body.
const headerTimeout = "Inference-Timeout"

// timeoutOf returns what the head says of the timeout, 0 for nothing.
func timeoutOf(h http.Header) (time.Duration, error) {
	values := h[headerTimeout]
	if len(values) == 0 {
		return 0, nil
	}
	n, err := strconv.ParseInt(values[0], 10, 64)
	if len(values) > 1 || err != nil || n < 1 || n > MaxTimeoutMicros {
		return 0, badf("%s is %s, expected one number of microseconds from 1 to %d", headerTimeout, clip([]byte(values[0])), MaxTimeoutMicros)
	}
	return time.Duration(n) * time.Microsecond, nil
}

const (
	// learnedSizes is after how many requests the smallest size seen before is
	// forgotten, at least, and twice that at most.
	learnedSizes = 64
	// refusedInRow is how many requests are refused by their head before one is read
	// to see whether its size is what it was.
	refusedInRow = 16
)

// lengths knows how large requests of a model are by the length of their bodies: the
// smallest size, as the scheduler counts it, of those seen lately whose lengths
// have the same highest bit.
type lengths struct {
	mu    sync.Mutex
	sizes [2][65]struct { // JSON, and tensors behind JSON
		least, next float64 // 0: none seen; next is of the time that has begun
		seen        int
		refused     int
	}
}

func column(binary bool) int {
	if binary {
		return 1
	}
	return 0
}

// learn takes in a request that was read.
func (l *lengths) learn(binary bool, length int64, size float64) {
	if length <= 0 {
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	e := &l.sizes[column(binary)][bits.Len64(uint64(length))]
	e.refused = 0
	if e.next == 0 || size < e.next {
		e.next = size
	}
	if e.seen++; e.seen >= learnedSizes || e.least == 0 {
		e.least, e.next, e.seen = e.next, 0, 0
	}
}

// size is the least that a request of that length is expected to be, 0 when that is not
// known or to be seen again.
func (l *lengths) size(binary bool, length int64) float64 {
	if length <= 0 {
		return 0
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	e := &l.sizes[column(binary)][bits.Len64(uint64(length))]
	if e.refused >= refusedInRow {
		e.refused = 0
		return 0
	}
	if e.next > 0 {
		return min(e.least, e.next)
	}
	return e.least
}

// refused counts a request that was refused for its expected size.
func (l *lengths) refused(binary bool, length int64) {
	if length <= 0 {
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.sizes[column(binary)][bits.Len64(uint64(length))].refused++
}

// lengthOf is the length of a body that arrives as it is, 0 when it is not known.
func lengthOf(r *http.Request) int64 {
	if len(r.Header["Content-Encoding"]) > 0 {
		return 0
	}
	return max(r.ContentLength, 0)
}

// ahead refuses a request whose body has not been read when it would not be admitted.
func (s *Server) ahead(c *gin.Context, lease Lease, m *modelStats, arrival time.Time) error {
	timeout, err := timeoutOf(c.Request.Header)
	if err != nil {
		return err
	}
	if err := m.room(); err != nil {
		return leave(c, err)
	}
	// Without the header the deadline may stand in the body.
	size, deadline := 0.0, time.Time{}
	binary, length := len(c.Request.Header[headerLength]) > 0, lengthOf(c.Request)
	if timeout > 0 {
		size, deadline = m.lengths.size(binary, length), arrival.Add(timeout)
	}
	if err := lease.Refuses(size, deadline); err != nil {
		m.lengths.refused(binary, length)
		return leave(c, err)
	}
	return nil
}

// drainMost is the longest body that is read though its request was refused, so that
// the connection serves the next one. After a longer one it is closed.
const drainMost = 64 << 10

// leave prepares a connection for the refusal of a request whose body is not read.
func leave(c *gin.Context, err error) error {
	if r := c.Request; r.ProtoMajor == 1 && (r.ContentLength < 0 || r.ContentLength > drainMost) {
		c.Writer.Header()["Connection"] = []string{"close"}
	}
	return err
}
