package jobs

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"runtime/debug"
	"strings"
	"sync"
	"time"

	"github.com/nats-io/nats.go/jetstream"
)

// startWorkers creates the pull consumer and starts fetching.
func (q *JetStream) startWorkers(ctx context.Context) error {
	running := 256 // each worker fetches one: on a cluster this is only a cap
	if q.server != nil {
		running = q.o.Workers
		// Nobody else can be working on what an earlier process left: a new
		// consumer delivers it at once, the old one would wait for AckWait.
		err := q.queue.DeleteConsumer(ctx, "workers")
		if err != nil && !errors.Is(err, jetstream.ErrConsumerNotFound) {
			return err
		}
	}
	cons, err := q.queue.CreateOrUpdateConsumer(ctx, jetstream.ConsumerConfig{
		Durable:       "workers",
		AckPolicy:     jetstream.AckExplicitPolicy,
		AckWait:       q.o.AckWait,
		MaxAckPending: running,
		MaxDeliver:    -1, // attempts are counted in the record, which says so to the client
		MaxWaiting:    512,
	})
	if err != nil {
		return err
	}
	q.cons = cons
	for range q.o.Workers {
		q.wg.Go(q.work)
	}
	return nil
}

// work fetches one job after the other until the queue closes.
func (q *JetStream) work() {
	const pause = time.Second // after an error of the connection
	for q.ctx.Err() == nil {
		batch, err := q.cons.Fetch(1, jetstream.FetchContext(q.generation()))
		if err == nil {
			for msg := range batch.Messages() {
				q.handle(msg)
			}
			err = batch.Error()
		}
		if err == nil || errors.Is(err, context.Canceled) {
			continue
		}
		q.o.Log.Debug("job queue: fetch", "error", err)
		select {
		case <-q.ctx.Done():
		case <-time.After(pause):
		}
	}
}

// handle runs the job of one message, or settles the message if there is
// nothing left to run.
func (q *JetStream) handle(msg jetstream.Msg) {
	id := msg.Subject()[strings.LastIndexByte(msg.Subject(), '.')+1:]
	rec, err := q.claim(id)
	switch {
	case errors.Is(err, ErrNotFound), errors.Is(err, ErrFinished):
		q.ack(msg, id)
		return
	case err != nil: // the store is unreachable: leave the job to the next delivery
		q.o.Log.Warn("job queue: claiming a job", "id", id, "error", err)
		_ = msg.NakWithDelay(time.Second)
		return
	}
	if rec.Status.Status.Final() { // claim settled it
		q.ack(msg, id)
		q.tidy()
		return
	}
	a := &attempt{q: q, id: id, n: rec.Attempts, inputs: rec.Inputs, msg: msg, started: time.Now(), wake: make(chan struct{}, 1)}
	result, err := a.run(rec.Spec)
	switch final, err := a.settle(result, err); {
	case errors.Is(err, ErrLost), errors.Is(err, ErrFinished):
		q.o.Log.Warn("job queue: a newer delivery took the job over", "id", id, "attempt", a.n)
	case err != nil:
		q.o.Log.Warn("job queue: storing the end of a job, it will run again", "id", id, "error", err)
	case !final: // closing: the next process takes it
		_ = msg.Nak()
	default:
		q.ack(msg, id)
		q.tidy()
	}
}

// claim starts a new attempt in the record, which fences off all earlier ones.
// A job that must not run again comes back final.
func (q *JetStream) claim(id string) (record, error) {
	if err := q.ready(); err != nil {
		return record{}, err
	}
	ctx, cancel := context.WithTimeout(context.Background(), storeTimeout)
	defer cancel()
	rec, err := q.store.change(ctx, id, func(r *record) error {
		now := time.Now().UTC()
		if r.Status.Status.Final() {
			return ErrFinished
		}
		if r.Status.Status == Running { // nobody ended the attempt before
			r.Lost++
		}
		switch {
		case r.CancelAsked:
			r.finish(Cancelled, now)
			return nil
		case r.Lost >= q.o.MaxAttempts:
			r.finish(Failed, now)
			r.Error = fmt.Sprintf("the server stopped (or its disk was full) %d times while this job ran; look for lack of memory or disk, then submit it again", r.Lost)
			return nil
		}
		r.Status.Status = Running
		r.Attempts++
		r.Started = &now
		r.Phase = "starting" // Progress stays where an interrupted attempt left it
		r.ETASeconds = nil
		return nil
	})
	return rec, q.wrap(q.ctx, err)
}

// ack removes the job's message. A lost ack is harmless: the next delivery
// finds a final record.
func (q *JetStream) ack(msg jetstream.Msg, id string) {
	ctx, cancel := context.WithTimeout(context.Background(), storeTimeout)
	defer cancel()
	if err := msg.DoubleAck(ctx); err != nil {
		q.o.Log.Debug("job queue: acknowledging", "id", id, "error", err)
	}
}

// tidy prunes after a job has ended.
func (q *JetStream) tidy() {
	ctx, cancel := context.WithTimeout(context.Background(), storeTimeout)
	defer cancel()
	if err := q.prune(ctx); err != nil {
		q.o.Log.Warn("job queue: forgetting old jobs", "error", err)
	}
}

// attempt is one run of one job.
type attempt struct {
	q       *JetStream
	id      string
	n       int // Status.Attempts while this attempt is the valid one
	inputs  *Inputs
	msg     jetstream.Msg
	started time.Time

	mu    sync.Mutex
	phase string
	frac  float64
	wake  chan struct{} // progress has changed
}

// run calls the Runner, keeping the delivery alive and the record up to date
// meanwhile.
func (a *attempt) run(s Spec) (result json.RawMessage, err error) {
	ctx, cancel := context.WithCancelCause(context.WithValue(a.q.ctx, attemptKey{}, a))
	defer cancel(nil)
	sub := a.q.subs.add(a.id)
	defer a.q.subs.remove(a.id, sub)

	kept := make(chan struct{})
	done := make(chan struct{})
	go func() { defer close(kept); a.keep(sub, done, cancel) }()
	defer func() {
		close(done)
		<-kept
		if err != nil && ctx.Err() != nil {
			err = fmt.Errorf("%w: %w", context.Cause(ctx), err)
		}
	}()
	defer func() {
		if p := recover(); p != nil {
			a.q.o.Log.Error("job panicked", "id", a.id, "panic", p, "stack", string(debug.Stack()))
			err = errors.New("internal error while running the job; the server's log has the details")
		}
	}()
	return a.q.o.Runner(ctx, a.id, s, a.progress)
}

func (a *attempt) progress(phase string, frac float64) {
	a.mu.Lock()
	a.phase = clip(phase, maxPhaseBytes)
	if frac > a.frac { // never backwards; also drops NaN
		a.frac = min(frac, 1)
	}
	a.mu.Unlock()
	select {
	case a.wake <- struct{}{}:
	default:
	}
}

// keep extends the delivery every AckWait/3, stores progress, at most every
// ProgressEvery, and cancels the run when the job was cancelled or lost.
func (a *attempt) keep(sub *subscription, done <-chan struct{}, cancel context.CancelCauseFunc) {
	alive := time.NewTicker(a.q.o.AckWait / 3)
	defer alive.Stop()
	var (
		wake  = a.wake
		later = time.NewTimer(time.Hour) // runs while wake is nil
	)
	later.Stop()
	check := func(r record) {
		switch {
		case r.Attempts != a.n || r.Status.Status.Final():
			cancel(ErrLost)
		case r.CancelAsked:
			cancel(ErrCancelled)
		}
	}
	look := func() {
		ctx, stop := context.WithTimeout(context.Background(), storeTimeout)
		defer stop()
		if r, _, err := a.q.store.load(ctx, a.id); err == nil {
			check(r)
		}
	}
	look() // for what came between the claim and the subscription
	for {
		select {
		case <-done:
			return
		case <-alive.C:
			_ = a.msg.InProgress() // a lost one is made up for by the next
			look()
		case <-sub.wake:
			if r, ok := sub.take(); ok {
				check(r)
			}
		case <-later.C:
			wake = a.wake
		case <-wake:
			a.report(check)
			wake = nil
			later.Reset(a.q.o.ProgressEvery)
		}
	}
}

// report stores the present progress.
func (a *attempt) report(check func(record)) {
	a.mu.Lock()
	phase, frac := a.phase, a.frac
	a.mu.Unlock()
	if a.q.ready() != nil {
		return // no room for news
	}
	ctx, stop := context.WithTimeout(context.Background(), storeTimeout)
	defer stop()
	r, err := a.q.store.change(ctx, a.id, func(r *record) error {
		if r.Attempts != a.n || r.Status.Status != Running {
			return ErrLost
		}
		if !r.CancelAsked {
			r.Phase = phase
		}
		r.Progress = max(r.Progress, frac) // a second attempt catches up unseen
		r.ETASeconds = eta(time.Since(a.started), frac)
		return nil
	})
	if err == nil || errors.Is(err, ErrLost) {
		check(r)
	} else {
		_ = a.q.wrap(a.q.ctx, err)
	}
}

// settle writes the end of the attempt into the record. final is false when
// the job went back into the queue. While the store refuses (a full disk) it
// tries on, for the sake of the work that was done.
func (a *attempt) settle(result json.RawMessage, runErr error) (final bool, err error) {
	const pause = time.Second
	if runErr == nil {
		switch {
		case len(result) > a.q.store.maxResult:
			runErr = fmt.Errorf("the result has %d bytes, at most %d can be stored", len(result), a.q.store.maxResult)
		case len(result) > 0 && !json.Valid(result):
			runErr = errors.New("the result is not JSON")
		}
	}
	for end := time.Now().Add(settleTimeout); ; {
		final, err = a.trySettle(result, runErr)
		switch {
		case err == nil, errors.Is(err, ErrLost), errors.Is(err, ErrFinished), errors.Is(err, ErrNotFound):
			return final, err
		case time.Now().After(end):
			return false, err
		}
		_ = a.msg.InProgress()
		select {
		case <-a.q.ctx.Done():
			return false, err
		case <-time.After(pause):
		}
	}
}

func (a *attempt) trySettle(result json.RawMessage, runErr error) (final bool, err error) {
	if err := a.q.ready(); err != nil {
		return false, err
	}
	ctx, cancel := context.WithTimeout(context.Background(), storeTimeout)
	defer cancel()
	if runErr == nil && len(result) > 0 {
		if err := a.q.store.putResult(ctx, a.id, a.n, result); err != nil {
			return false, a.q.wrap(a.q.ctx, err)
		}
	}
	r, err := a.q.store.change(ctx, a.id, func(r *record) error {
		switch {
		case r.Attempts != a.n:
			return ErrLost
		case r.Status.Status.Final():
			return ErrFinished
		}
		now := time.Now()
		switch {
		case runErr == nil:
			r.finish(Succeeded, now)
		case r.CancelAsked:
			r.finish(Cancelled, now)
		case errors.Is(runErr, ErrStopped):
			r.Status.Status = Queued
			r.Phase, r.ETASeconds = "", nil
		default:
			r.finish(Failed, now)
			r.Error = clip(a.q.o.Public(runErr), maxErrorBytes)
		}
		return nil
	})
	return r.Status.Status.Final(), a.q.wrap(a.q.ctx, err)
}

type attemptKey struct{}

// Owned asks the store whether the run that owns ctx (a Runner's context) is
// still the valid one, and returns ErrLost when it is not. Call it right
// before a step that must not happen twice.
func Owned(ctx context.Context) error {
	a, ok := ctx.Value(attemptKey{}).(*attempt)
	if !ok {
		return nil
	}
	r, _, err := a.q.store.load(ctx, a.id)
	if err != nil {
		return err
	}
	if r.Attempts != a.n || r.Status.Status != Running {
		return ErrLost
	}
	return nil
}

// InputsOf returns what was stored with the job whose run owns ctx (a Runner's
// context); nil when nothing was.
func InputsOf(ctx context.Context) *Inputs {
	if a, ok := ctx.Value(attemptKey{}).(*attempt); ok {
		return a.inputs
	}
	return nil
}

// eta estimates the remaining seconds from the mean rate of this attempt; nil
// while there is too little to go by.
func eta(elapsed time.Duration, frac float64) *float64 {
	const (
		minFrac    = 0.01
		minElapsed = 500 * time.Millisecond
	)
	if frac < minFrac || elapsed < minElapsed {
		return nil
	}
	s := elapsed.Seconds() * (1 - frac) / frac
	s = float64(int64(s*10+0.5)) / 10
	return &s
}
