package batch

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/fewbit/fewbit/internal/engine"
)

// probeTimes is how many times its predicted duration an engine must have been
// idle before a request runs that is predicted to end too late: what is refused
// is not measured, and a prediction made on a busy day would hold for ever.
const probeTimes = 4

const (
	// answering is left of a deadline for the answer to be written and read.
	answering = time.Millisecond
	// maxBroken is the share of admitted requests that may miss their deadline,
	// caution how much a miss adds to the allowance for it, and maxSlip its bound.
	maxBroken = 0.01
	caution   = 0.05
	maxSlip   = 1
)

// kept counts whether a request that was admitted was answered before its
// deadline; those whose client has left do not count. Each miss widens the allowance with which others are admitted, each
// answer in time narrows it a little, so that in the long run maxBroken miss:
// what runs vary by, and what else the machine does, need not be known. s.mu is
// held.
func (q *Queue) kept(r *request, now time.Time) {
	if r.deadline.IsZero() || r.probe || errors.Is(r.ctx.Err(), context.Canceled) {
		return
	}
	if errors.Is(r.err, ErrOverloaded) || now.Add(answering).After(r.deadline) {
		q.slip = min(q.slip+caution*(1-maxBroken), maxSlip)
	} else {
		q.slip = max(q.slip-caution*maxBroken, 0)
	}
}

// admit refuses a request that could not be answered in time, or that too many
// wait before. s.mu is held.
func (q *Queue) admit(r *request) error {
	if err := r.ctx.Err(); err != nil {
		return err
	}
	wait, probe, err := q.inTime(r.arrived, r.deadline, r.size())
	if err != nil {
		return err
	}
	r.probe = probe
	if s := q.s; s.waiting >= s.o.MaxWaiting && !s.yield(q, wait) {
		return s.full(wait)
	}
	return nil
}

// Refuses says why a request with that deadline, which is of that size at least, would
// be refused if it came now; nil when it would not, or might not. It changes nothing:
// who asks before reading a request spares reading it. Size 0 stands for one of which
// nothing is known.
func (q *Queue) Refuses(size float64, deadline time.Time) error {
	s := q.s
	s.mu.Lock()
	defer s.mu.Unlock()
	var wait time.Duration
	if size > 0 {
		var err error
		if wait, _, err = q.inTime(time.Now(), deadline, size); err != nil {
			return err
		}
	}
	if s.waiting >= s.o.MaxWaiting && s.longest(q) == nil {
		return s.full(wait)
	}
	return nil
}

// Size is what admission predicts the duration of a run from: the padded values of a
// request's largest input.
func (q *Queue) Size(feeds engine.Feeds) float64 {
	q.s.mu.Lock()
	rule := q.rule
	q.s.mu.Unlock()
	r := request{}
	if rule != nil {
		r.rows, r.width = rule.size(feeds)
	}
	return r.size()
}

// inTime predicts how long a request waits, and refuses it when it would be answered
// after its deadline, unless it is to probe whether that is still so. s.mu is held.
func (q *Queue) inTime(now, deadline time.Time, size float64) (wait time.Duration, probe bool, err error) {
	s := q.s
	own := q.cost.predict(size)
	wait = q.backlog(now, deadline, own)
	ends := q.cost.late(size) // and what runs before it may be late as well
	if own > 0 {
		ends += time.Duration(float64(wait) * float64(ends) / float64(own))
	}
	ends += time.Duration(q.slip*float64(ends)) + answering
	if left := deadline.Sub(now); !deadline.IsZero() && own > 0 && ends > left {
		if s.free == 0 || s.waiting > 0 || now.Sub(q.last) <= probeTimes*own {
			return wait, false, &Overloaded{Why: fmt.Sprintf("the answer would take about %v, the deadline is in %v", ends.Round(time.Millisecond), left.Round(time.Millisecond)), RetryAfter: wait}
		}
		probe = true
	}
	return wait, probe, nil
}

// full words that too many wait. s.mu is held.
func (s *Scheduler) full(wait time.Duration) error {
	return &Overloaded{Why: fmt.Sprintf("%d requests wait already", s.waiting), RetryAfter: wait}
}

// longest is the queue that gives a place up for a request of q: of the model with
// most requests waiting; nil when that is q itself. s.mu is held.
func (s *Scheduler) longest(q *Queue) *Queue {
	longest := q
	for o := range s.queues {
		if len(o.waiting) > len(longest.waiting) {
			longest = o
		}
	}
	if len(longest.waiting) <= len(q.waiting)+1 {
		return nil
	}
	return longest
}

// yield makes a place for a request of q, at the cost of the last one of the
// model with most requests waiting; false when that is q itself. s.mu is held.
func (s *Scheduler) yield(q *Queue, wait time.Duration) bool {
	longest := s.longest(q)
	if longest == nil {
		return false
	}
	last := longest.waiting[len(longest.waiting)-1]
	last.picked = true
	last.err = &Overloaded{Why: "too many requests wait, most of them for this model", RetryAfter: wait}
	last.timing = Timing{Queue: time.Since(last.arrived)}
	longest.remove(last)
	last.wake <- struct{}{}
	return true
}

// backlog predicts how long it takes until a request of q with that deadline,
// which takes own by itself, is begun. s.mu is held.
//
// Of other models only what fairness lets run before counts: while q has work,
// they get as much of the engine as q by its weight, and a run more.
func (q *Queue) backlog(now, deadline time.Time, own time.Duration) time.Duration {
	ahead := q.work(deadline)
	total := ahead
	for o := range q.s.queues {
		for _, end := range o.ends {
			total += max(end.Sub(now), 0)
		}
		if o == q || len(o.waiting) == 0 {
			continue
		}
		run := o.cost.predict(o.waiting[0].size())
		total += min(o.work(time.Time{}), time.Duration(float64(ahead+own)*o.o.Weight/q.o.Weight)+run)
	}
	return total / time.Duration(q.s.o.Runs)
}

// work predicts how long what waits, and is served before a request with that
// deadline, keeps the engine busy. s.mu is held.
func (q *Queue) work(deadline time.Time) time.Duration {
	a, b := q.cost.line()
	alone, n := 0.0, int64(0)
	for _, r := range q.waiting {
		if !deadline.IsZero() && (r.deadline.IsZero() || r.deadline.After(deadline)) {
			break // served after it
		}
		n++
		alone += b * r.size()
		if q.rule == nil || r.rows == 0 {
			alone += a
		}
	}
	if n > 0 && q.rule != nil { // joined requests share the cost of a run
		alone += a * float64((n+q.o.MaxRows-1)/q.o.MaxRows)
	}
	return time.Duration(alone * float64(time.Second))
}
