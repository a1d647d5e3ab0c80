// Package batch decides which waiting requests run next, and which of them
// together.
//
// A Scheduler owns the runs that may happen at once; each loaded model has a
// Queue in it. Requests carry deadlines: the earliest is served first, and one
// whose predicted end lies past its deadline is refused at once rather than
// answered late. Nothing waits for company: a request that finds the engine
// idle runs alone, and only what piles up meanwhile is joined, as far as the
// measured cost says that it pays and every deadline in the batch still holds.
// Between models the engine's time is shared out evenly (start-time fair
// queueing, Goyal et al. 1996), whatever their request rates.
package batch

import (
	"context"
	"errors"
	"fmt"
	"runtime/debug"
	"slices"
	"sync"
	"time"

	"github.com/fewbit/fewbit/internal/engine"
	"github.com/fewbit/fewbit/internal/tensor"
)

// ErrOverloaded is refused work; errors.As finds *Overloaded with the time
// after which a retry makes sense.
var ErrOverloaded = errors.New("too much work is waiting")

// Overloaded says why a request was refused and when to come back.
type Overloaded struct {
	Why        string
	RetryAfter time.Duration
}

func (o *Overloaded) Error() string { return fmt.Sprintf("%v: %s", ErrOverloaded, o.Why) }

// Unwrap makes errors.Is(err, ErrOverloaded) hold.
func (o *Overloaded) Unwrap() error { return ErrOverloaded }

// Options configure a Scheduler.
type Options struct {
	// Runs is how many runs may happen at once, over all models. Default 1:
	// a session uses all processors by itself.
	Runs int
	// MaxWaiting bounds the requests that wait, over all models. Where there are
	// more, the model with most of them gives one up for a model with fewer.
	// Default 1024.
	MaxWaiting int
}

const (
	defaultMaxWaiting = 1024
	// maxScan bounds how many waiting requests are looked at for one batch.
	maxScan = 256
	// defaultMaxSize bounds the padded values of a batch (rows x width).
	defaultMaxSize = 16 << 10
	defaultMaxRows = 64
)

// Scheduler shares the engine between queues. Safe for concurrent use.
type Scheduler struct {
	o Options

	mu      sync.Mutex
	free    int // runs that may start
	waiting int
	queues  map[*Queue]struct{}
	clock   float64 // virtual time: of the queue served last
}

// New returns a scheduler without queues.
func New(o Options) *Scheduler {
	if o.Runs <= 0 {
		o.Runs = 1
	}
	if o.MaxWaiting <= 0 {
		o.MaxWaiting = defaultMaxWaiting
	}
	return &Scheduler{o: o, free: o.Runs, queues: map[*Queue]struct{}{}}
}

// QueueOptions configure a Queue.
type QueueOptions struct {
	// Alone never joins requests: for models whose answer to one row depends on
	// the others (dynamic per-tensor quantization), or that say so.
	Alone bool
	// MaxRows and MaxSize bound a batch: its rows, and rows times padded width.
	// Defaults 64 and 16,384.
	MaxRows, MaxSize int64
	// Weight is the model's share of the engine against others'. Default 1.
	Weight float64
}

// Queue is one session's requests. Safe for concurrent use.
type Queue struct {
	s       *Scheduler
	session engine.Session
	o       QueueOptions

	// guarded by Scheduler.mu
	rule    *rule // nil: every request runs alone
	cost    cost
	saving  saving
	waiting []*request // by deadline, then arrival
	start   float64    // virtual start time
	ends    []time.Time
	last    time.Time                   // when a run ended
	slip    float64                     // allowance of admit for a late end, as a share
	scratch []map[string]*tensor.Tensor // buffers of joined inputs that are not in use
}

// Queue adds a queue for session, which must outlive every Run.
func (s *Scheduler) Queue(session engine.Session, o QueueOptions) *Queue {
	if o.MaxRows <= 0 {
		o.MaxRows = defaultMaxRows
	}
	if o.MaxSize <= 0 {
		o.MaxSize = defaultMaxSize
	}
	if o.Weight <= 0 {
		o.Weight = 1
	}
	q := &Queue{s: s, session: session, o: o}
	if !o.Alone {
		q.rule = ruleFor(session.Spec())
	}
	return q
}

// Spec is the session's.
func (q *Queue) Spec() engine.IOSpec { return q.session.Spec() }

// Placement says which engine answers; false when the session does not know.
func (q *Queue) Placement() (engine.Placement, bool) {
	p, ok := q.session.(engine.Placed)
	if !ok {
		return engine.Placement{}, false
	}
	return p.Placement(), true
}

// Joins reports whether requests of this model may share a run.
func (q *Queue) Joins() bool {
	q.s.mu.Lock()
	defer q.s.mu.Unlock()
	return q.rule != nil
}

// Timing is where a request's time went.
type Timing struct {
	Queue, Infer time.Duration
	// Rows are those of the whole run, the request's own and its company's.
	Rows int64
	// Leads is true for one request of each run.
	Leads bool
}

// request is one waiting or running request. Those that wait are in
// Queue.waiting; wake gets a value when res and err are set.
type request struct {
	ctx         context.Context
	feeds       engine.Feeds
	outs        []string
	rows, width int64 // rows 0: does not join
	arrived     time.Time
	deadline    time.Time
	picked      bool
	probe       bool // runs though it is predicted to end too late
	wake        chan struct{}
	expected    time.Duration // of the run that it leads
	one         [1]*request   // the group of a request that finds the engine idle
	res         engine.Result
	err         error
	timing      Timing
}

func (r *request) size() float64 { return float64(max(r.rows, 1) * max(r.width, 1)) }

var requests = sync.Pool{New: func() any { return new(request) }}

// Run computes outs as Session.Run does, when its turn comes. A deadline of ctx
// is the request's. Errors are the session's, ctx.Err(), or ErrOverloaded.
func (q *Queue) Run(ctx context.Context, feeds engine.Feeds, outs []string) (engine.Result, Timing, error) {
	r := requests.Get().(*request)
	defer func() {
		*r = request{}
		requests.Put(r)
	}()
	r.ctx, r.feeds, r.outs, r.arrived = ctx, feeds, outs, time.Now()
	r.deadline, _ = ctx.Deadline()
	s := q.s
	s.mu.Lock()
	if q.rule != nil {
		r.rows, r.width = q.rule.size(feeds)
	}
	if err := q.admit(r); err != nil {
		s.mu.Unlock()
		return nil, Timing{}, err
	}
	if s.free > 0 && s.waiting == 0 {
		r.one[0] = r
		q.begin(r.one[:], r.arrived)
		s.mu.Unlock()
		if next := q.lead(r.one[:]); next.group != nil {
			go next.drive()
		}
		return r.res, r.timing, r.err
	}
	r.wake = make(chan struct{}, 1)
	q.insert(r)
	s.mu.Unlock()
	select {
	case <-r.wake:
	case <-ctx.Done():
		s.mu.Lock()
		if !r.picked {
			q.remove(r)
			q.kept(r, time.Now())
			s.mu.Unlock()
			return nil, Timing{Queue: time.Since(r.arrived)}, ctx.Err()
		}
		// Its inputs are in a run by now: it stays until that ends, which it
		// knows how long takes.
		s.mu.Unlock()
		<-r.wake
	}
	if r.err == nil && r.res != nil && ctx.Err() != nil {
		r.res.Close()
		return nil, r.timing, ctx.Err()
	}
	return r.res, r.timing, r.err
}

// insert queues r by deadline; none is the latest. s.mu is held.
func (q *Queue) insert(r *request) {
	at, _ := slices.BinarySearchFunc(q.waiting, r, func(a, b *request) int {
		switch {
		case a.deadline.Equal(b.deadline), !a.deadline.IsZero() && (b.deadline.IsZero() || a.deadline.Before(b.deadline)):
			return -1
		}
		return 1
	})
	if len(q.waiting) == 0 {
		q.start = max(q.start, q.s.clock)
	}
	q.waiting = slices.Insert(q.waiting, at, r)
	q.s.waiting++
	q.s.queues[q] = struct{}{}
}

// remove takes r out of the queue. s.mu is held.
func (q *Queue) remove(r *request) {
	if i := slices.Index(q.waiting, r); i >= 0 {
		q.waiting = slices.Delete(q.waiting, i, i+1)
		q.s.waiting--
		q.tidy()
	}
}

// tidy forgets a queue that has nothing to do. s.mu is held.
func (q *Queue) tidy() {
	if len(q.waiting) == 0 && len(q.ends) == 0 {
		delete(q.s.queues, q)
	}
}

// begin takes a run for group. s.mu is held.
func (q *Queue) begin(group []*request, now time.Time) {
	s := q.s
	s.free--
	rows, size := int64(0), 0.0
	for _, r := range group {
		r.picked = true
		rows += max(r.rows, 1)
	}
	size = batchSize(group)
	expected := q.cost.predict(size)
	if q.start < s.clock && len(q.ends) == 0 {
		q.start = s.clock
	}
	s.clock = q.start
	q.start += expected.Seconds() / q.o.Weight // end corrects it
	group[0].expected = expected
	q.ends = append(q.ends, now.Add(expected))
	s.queues[q] = struct{}{}
	for _, r := range group {
		r.timing = Timing{Queue: now.Sub(r.arrived), Rows: rows}
	}
	group[0].timing.Leads = true
}

// batchSize is the padded size of group as one run.
func batchSize(group []*request) float64 {
	rows, width := int64(0), int64(1)
	for _, r := range group {
		rows += max(r.rows, 1)
		width = max(width, r.width)
	}
	return float64(rows * width)
}

// job is a run that has begun: a group of requests of one queue.
type job struct {
	q     *Queue
	group []*request
}

// drive runs one job after the other until nothing waits. It is a goroutine of its
// own, so that while the engine is busy its threads stay on their processors: with
// a goroutine for each run, the next one had to be woken first, on whatever
// processor was free.
func (j job) drive() {
	for j.group != nil {
		j = j.q.lead(j.group)
	}
}

// dispatch starts what can start, and returns one of these jobs to the caller,
// who has to run it. s.mu is held.
func (s *Scheduler) dispatch(now time.Time) (mine job) {
	for s.free > 0 && s.waiting > 0 {
		var next *Queue
		for q := range s.queues {
			if len(q.waiting) > 0 && (next == nil || q.start < next.start) {
				next = q
			}
		}
		group := next.form(now)
		if len(group) == 0 {
			next.tidy()
			continue
		}
		next.begin(group, now)
		if mine.group != nil {
			go mine.drive()
		}
		mine = job{next, group}
	}
	return mine
}

// form takes the next batch out of the queue, and drops who has left or would
// be answered late. s.mu is held.
func (q *Queue) form(now time.Time) []*request {
	var group, dropped []*request
	kept := q.waiting[:0]
	scanned := 0
	for i, r := range q.waiting {
		if len(group) > 0 && (scanned >= maxScan || q.rule == nil || group[0].rows == 0) {
			kept = append(kept, q.waiting[i:]...)
			break
		}
		scanned++
		switch err := q.hopeless(r, now); {
		case err != nil:
			r.picked, r.err = true, err
			q.kept(r, now)
			dropped = append(dropped, r)
			q.s.waiting--
		case len(group) == 0 || q.pays(group, r, now):
			group = append(group, r)
			q.s.waiting--
		default:
			kept = append(kept, r)
		}
	}
	clear(q.waiting[len(kept):])
	q.waiting = kept
	for _, r := range dropped { // once woken it is no longer ours
		if o := (*Overloaded)(nil); errors.As(r.err, &o) {
			o.RetryAfter = q.backlog(now, time.Time{}, 0)
		}
		r.timing = Timing{Queue: now.Sub(r.arrived)}
		r.wake <- struct{}{}
	}
	return group
}

// hopeless reports why r should not run any more.
func (q *Queue) hopeless(r *request, now time.Time) error {
	if err := r.ctx.Err(); err != nil {
		return err
	}
	if r.deadline.IsZero() {
		return nil
	}
	if own := q.cost.late(r.size()); own > 0 && now.Add(own+answering).After(r.deadline) {
		return &Overloaded{Why: "it waited too long to be answered before its deadline"}
	}
	return nil
}

// pays reports whether r should join group: it fits, stays within the limits,
// saves time, and every deadline still holds.
func (q *Queue) pays(group []*request, r *request, now time.Time) bool {
	if r.rows == 0 || !q.rule.fits(group[0], r) {
		return false
	}
	rows := r.rows
	for _, o := range group {
		rows += o.rows
	}
	with := batchSize(append(group, r))
	if rows > q.o.MaxRows || with > float64(q.o.MaxSize) {
		return false
	}
	if most := max(q.saving.largest, r.size(), group[0].size()); with > maxGrowth*most {
		return false
	}
	switch q.saving.pays(batchSize(group), r.size(), with) {
	case no:
		return false
	case unknown:
		if len(group) > 1 {
			return false // two are enough to learn what joining costs
		}
	}
	end := now.Add(q.cost.late(with))
	for _, o := range append(group, r) {
		if !o.deadline.IsZero() && end.After(o.deadline) {
			return false
		}
	}
	return true
}

// lead runs group in the caller's goroutine, hands out the results and returns
// what the caller has to run next, if anything.
func (q *Queue) lead(group []*request) job {
	for _, o := range group {
		notify(o.ctx)
	}
	begun := time.Now()
	var results []engine.Result
	var err error
	if len(group) > 1 {
		results, err = q.together(group)
	}
	took, measured := time.Since(begun), results != nil
	switch {
	case err != nil:
		for _, o := range group {
			o.err = err
		}
	case results != nil:
		for i, o := range group {
			o.timing.Infer, o.res = took, results[i]
		}
	case len(group) == 1:
		r := group[0]
		r.res, r.err = q.run(r.ctx, r.feeds, r.outs)
		took = time.Since(begun)
		r.timing.Infer, measured = took, r.err == nil
	default:
		for _, o := range group {
			one := time.Now()
			o.res, o.err = q.run(o.ctx, o.feeds, o.outs)
			o.timing.Infer, o.timing.Rows, o.timing.Leads = time.Since(one), max(o.rows, 1), true
		}
	}
	next := q.end(group, took, measured)
	for _, o := range group { // once woken it is no longer ours
		if o.wake != nil {
			o.wake <- struct{}{}
		}
	}
	return next
}

// ErrPanic: the engine panicked; the text has the stack.
var ErrPanic = errors.New("the engine panicked")

// run makes an error of an engine's panic: the runs and requests of others
// depend on this goroutine going on.
func (q *Queue) run(ctx context.Context, feeds engine.Feeds, outs []string) (res engine.Result, err error) {
	defer func() {
		if v := recover(); v != nil {
			res, err = nil, fmt.Errorf("%w: %v\n%s", ErrPanic, v, debug.Stack())
		}
	}()
	return q.session.Run(ctx, feeds, outs)
}

// together runs the group as one batch. nil: each has to run alone, because the
// model does not keep rows apart, or to find whose input is at fault. The error is
// a panic's.
func (q *Queue) together(group []*request) (parts []engine.Result, err error) {
	defer func() {
		if v := recover(); v != nil {
			parts, err = nil, fmt.Errorf("%w: %v\n%s", ErrPanic, v, debug.Stack())
		}
	}()
	s := q.s
	s.mu.Lock()
	rule := q.rule
	var into map[string]*tensor.Tensor
	if n := len(q.scratch); n > 0 {
		into, q.scratch = q.scratch[n-1], q.scratch[:n-1]
	} else {
		into = map[string]*tensor.Tensor{}
	}
	s.mu.Unlock()
	defer func() {
		s.mu.Lock()
		q.scratch = append(q.scratch, into)
		s.mu.Unlock()
	}()
	if rule == nil {
		return nil, nil
	}
	feeds := rule.join(group, into)
	if feeds == nil {
		return nil, nil
	}
	// One that leaves does not stop the others; the last deadline does.
	ctx, last, bounded := context.Background(), time.Time{}, true
	rows, width := int64(0), int64(1)
	for _, r := range group {
		rows, width = rows+r.rows, max(width, r.width)
		bounded = bounded && !r.deadline.IsZero()
		if r.deadline.After(last) {
			last = r.deadline
		}
	}
	if bounded {
		var cancel context.CancelFunc
		ctx, cancel = context.WithDeadline(ctx, last)
		defer cancel()
	}
	res, failed := q.run(engine.WithRequests(ctx, len(group)), feeds, group[0].outs)
	if failed != nil {
		return nil, nil
	}
	parts = rule.split(res, group, rows, width)
	if parts == nil {
		res.Close()
		s.mu.Lock()
		q.rule = nil
		s.mu.Unlock()
	}
	return parts, nil
}

// end gives the run back and returns the next.
func (q *Queue) end(group []*request, took time.Duration, measured bool) job {
	now := time.Now()
	s := q.s
	s.mu.Lock()
	defer s.mu.Unlock()
	if measured && group[0].probe {
		q.cost.corrected(batchSize(group), took)
	}
	if measured {
		q.cost.observe(batchSize(group), took)
		q.saving.observe(batchSize(group), len(group) > 1, took)
	}
	for _, r := range group {
		q.kept(r, now)
	}
	// A model pays for what it took, whatever was expected.
	q.start += max(took-group[0].expected, time.Microsecond-group[0].expected).Seconds() / q.o.Weight
	q.last = now
	q.ends = q.ends[:len(q.ends)-1] // which of several ends is the same for a prediction
	s.free++
	q.tidy()
	return s.dispatch(now)
}
