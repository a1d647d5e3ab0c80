package access

import (
	"container/list"
	"math"
	"net/netip"
	"sync"
	"time"

	"golang.org/x/time/rate"
)

// MaxBuckets bounds the clients that are told apart. With more, the one that was
// longest away is forgotten: it begins with a full bucket again.
const MaxBuckets = 1 << 16

// What an address may get wrong: so many keys at once, and one more each time
// the interval has passed.
const (
	FailedBurst = 20
	FailedEvery = 3 * time.Second
)

// Limiter gives each client a token bucket. It is safe for concurrent use; nil
// limits nothing.
type Limiter struct {
	rate  rate.Limit
	burst int
	max   int

	mu      sync.Mutex
	buckets map[string]*list.Element // of *bucket
	order   list.List                // the latest in front
}

type bucket struct {
	who    string
	tokens *rate.Limiter
}

// NewLimiter allows each client perSecond requests a second, and burst at once;
// with burst 0 those of one second. It returns nil, no limit, for a rate of 0.
func NewLimiter(perSecond float64, burst int) *Limiter {
	if perSecond <= 0 {
		return nil
	}
	if burst <= 0 {
		burst = int(min(math.Ceil(perSecond), math.MaxInt32))
	}
	return &Limiter{rate: rate.Limit(perSecond), burst: burst, max: MaxBuckets, buckets: map[string]*list.Element{}}
}

// Allow takes a token of the client's, or says how long until there is one.
func (l *Limiter) Allow(who string, now time.Time) (ok bool, wait time.Duration) {
	if l == nil {
		return true, 0
	}
	b := l.of(who)
	r := b.ReserveN(now, 1)
	if wait = r.DelayFrom(now); wait == 0 {
		return true, 0
	}
	r.CancelAt(now)
	return false, wait
}

func (l *Limiter) of(who string) *rate.Limiter {
	l.mu.Lock()
	defer l.mu.Unlock()
	if e, ok := l.buckets[who]; ok {
		l.order.MoveToFront(e)
		return e.Value.(*bucket).tokens
	}
	for len(l.buckets) >= l.max {
		last := l.order.Back()
		l.order.Remove(last)
		delete(l.buckets, last.Value.(*bucket).who)
	}
	b := &bucket{who, rate.NewLimiter(l.rate, l.burst)}
	l.buckets[who] = l.order.PushFront(b)
	return b.tokens
}

// Len is the number of clients told apart now.
func (l *Limiter) Len() int {
	if l == nil {
		return 0
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.buckets)
}

// Address is what stands for the client at a network address, host:port: its IP
// address, of IPv6 the network of 64 bits that one subscriber has.
func Address(hostport string) string {
	ap, err := netip.ParseAddrPort(hostport)
	if err != nil {
		return hostport
	}
	a := ap.Addr().Unmap().WithZone("")
	if a.Is6() {
		if p, err := a.Prefix(64); err == nil {
			return p.String()
		}
	}
	return a.String()
}
