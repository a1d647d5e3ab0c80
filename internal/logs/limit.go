package logs

import (
	"sync"
	"time"
)

// Limit lets a burst of lines through, and then a steady rate: for lines that a
// bad hour would make by the thousand. Safe for concurrent use; the zero value
// lets nothing through.
type Limit struct {
	// Burst is how many may come at once, Every the time that earns one more.
	Burst int
	Every time.Duration

	mu      sync.Mutex
	spent   int
	last    time.Time
	dropped int
}

// Allow reports whether a line may be written at now, and then how many were not
// since the one before.
func (l *Limit) Allow(now time.Time) (ok bool, dropped int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.Every > 0 {
		if earned := int(now.Sub(l.last) / l.Every); l.spent == 0 || earned >= l.spent {
			l.spent, l.last = 0, now
		} else if earned > 0 {
			l.spent -= earned
			l.last = l.last.Add(time.Duration(earned) * l.Every)
		}
	}
	if l.spent >= l.Burst {
		l.dropped++
		return false, 0
	}
	l.spent++
	dropped, l.dropped = l.dropped, 0
	return true, dropped
}
