package jobs

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/fewbit/fewbit/internal/registry/disk"
	"github.com/fewbit/fewbit/internal/registry/lockfile"
)

// Further errors of the queue.
var (
	// ErrSpec: the request itself cannot be a job (too large, bad key).
	ErrSpec = errors.New("bad job request")
	// ErrConflict: the idempotency key was already used for a different request.
	ErrConflict = errors.New("idempotency key was used for a different request")
	// ErrNoSpace: the disk under the store is full.
	ErrNoSpace = disk.ErrFull
	// ErrLocked: another process uses the store.
	ErrLocked = errors.New("job store is in use")
	// ErrLost is the cause of a Runner's cancelled context when a newer
	// delivery of the same job has taken over: whatever the runner does from
	// then on is void.
	ErrLost = errors.New("job was taken over by another worker")
	// ErrStopped is the cause of a Runner's cancelled context when the queue
	// closes; the job goes back into the queue.
	ErrStopped = errors.New("job queue is closing")
	// ErrCancelled is the cause of a Runner's cancelled context when somebody
	// cancelled the job.
	ErrCancelled = errors.New("job was cancelled")
)

// Queue accepts jobs and says how they fare. All methods are safe for
// concurrent use. Errors: ErrNotFound, ErrFinished, ErrBusy, ErrClosed,
// ErrSpec, ErrConflict, ErrNoSpace.
type Queue interface {
	// Submit stores the job durably and returns its id.
	Submit(ctx context.Context, s Spec) (id string, err error)
	// Get returns one job with its result.
	Get(ctx context.Context, id string) (Status, error)
	// List returns all jobs, newest first, without their results.
	List(ctx context.Context) ([]Status, error)
	// Events sends the present status, then each change, the final status
	// last; then it closes the channel. A slow reader misses intermediate
	// states, never the final one. Cancel ctx to stop early.
	Events(ctx context.Context, id string) (<-chan Status, error)
	// Cancel ends a queued job at once and asks a running one to stop.
	Cancel(ctx context.Context, id string) error
	// Close stops the workers, puts their jobs back and closes the store.
	Close() error
}

// Runner does a job. It must return soon after ctx ends; context.Cause says
// why it ended. progress may be called at any rate from any goroutine: frac is
// the share of the whole job that is done, 0 to 1.
//
// A job runs at least once: after a crash it starts again under the same id,
// so results must be stored under a key derived from id (or by digest).
type Runner func(ctx context.Context, id string, s Spec, progress func(phase string, frac float64)) (result json.RawMessage, err error)

// Limits of what the queue stores.
const (
	MaxSpecBytes   = 64 << 10 // one request, as JSON
	MaxResultBytes = 1 << 20  // one result
	MaxKeyBytes    = 256      // Spec.Key
	maxErrorBytes  = 2 << 10  // Status.Error
	maxPhaseBytes  = 200      // Status.Phase
	queueBytes     = 16 << 20 // the work queue: it holds ids only
	storeBytes     = 1 << 30  // statuses and results
	maxPayload     = MaxResultBytes + 64<<10
)

// Defaults of Options.
const (
	defaultWorkers       = 1
	defaultAckWait       = 30 * time.Second
	defaultMaxAttempts   = 3
	defaultMaxQueued     = 1000
	defaultKeep          = 1000
	defaultKeepFor       = 30 * 24 * time.Hour
	defaultProgressEvery = 250 * time.Millisecond
	defaultStopTimeout   = 10 * time.Second
	startTimeout         = 30 * time.Second
	storeTimeout         = 10 * time.Second // one status update, retries included
	settleTimeout        = 10 * time.Minute // the last one, while the disk is full
)

// Options configure Open. Zero values are the defaults.
type Options struct {
	// Dir is the store of the embedded server. Only one process may use it.
	Dir string
	// URL of a NATS cluster with JetStream; "" runs the embedded server.
	URL string
	// NATS are further options of the connection to URL (credentials, TLS).
	NATS []nats.Option
	// Replicas of each stream on a cluster: 1 (default), 3 or 5.
	Replicas int
	// Prefix of stream names and subjects: letters, digits, _. Default fewbit.
	Prefix string

	// Runner does the jobs; nil: this process only submits and watches.
	Runner Runner
	// Workers is the number of jobs that run at once here. Default 1.
	Workers int
	// AckWait: a worker that is silent for so long has lost its job. Default 30 s.
	AckWait time.Duration
	// MaxAttempts: a job during which the process died so many times has failed. Default 3.
	MaxAttempts int
	// MaxQueued jobs may wait or run; more are refused with ErrBusy. Default 1000.
	MaxQueued int
	// Keep and KeepFor bound the finished jobs that are remembered. Defaults 1000, 30 days.
	Keep    int
	KeepFor time.Duration
	// ProgressEvery is the shortest time between two stored progress reports. Default 250 ms.
	ProgressEvery time.Duration
	// StopTimeout is how long Close waits for running jobs. Default 10 s.
	StopTimeout time.Duration
	// Public words an error for clients. Default PublicError, which keeps the
	// text and cuts paths down to their last element.
	Public func(error) string
	// Log receives what no caller can be told (connection lost, a worker
	// fenced off). Default: nothing is logged.
	Log *slog.Logger
}

func (o *Options) setDefaults() {
	if o.Replicas <= 0 {
		o.Replicas = 1
	}
	if o.Prefix == "" {
		o.Prefix = "fewbit"
	}
	if o.Workers <= 0 {
		o.Workers = defaultWorkers
	}
	if o.AckWait <= 0 {
		o.AckWait = defaultAckWait
	}
	if o.MaxAttempts <= 0 {
		o.MaxAttempts = defaultMaxAttempts
	}
	if o.MaxQueued <= 0 {
		o.MaxQueued = defaultMaxQueued
	}
	if o.Keep <= 0 {
		o.Keep = defaultKeep
	}
	if o.KeepFor <= 0 {
		o.KeepFor = defaultKeepFor
	}
	if o.ProgressEvery <= 0 {
		o.ProgressEvery = defaultProgressEvery
	}
	if o.StopTimeout <= 0 {
		o.StopTimeout = defaultStopTimeout
	}
	if o.Public == nil {
		o.Public = PublicError
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
}

// JetStream is the Queue on NATS JetStream.
type JetStream struct {
	o      Options
	server *embedded // nil with an external cluster
	lock   *lockfile.Lock
	nc     *nats.Conn
	js     jetstream.JetStream
	store  *store
	queue  jetstream.Stream   // ids that wait or run
	cons   jetstream.Consumer // nil without a Runner

	ctx   context.Context // ends, with cause ErrStopped, when Close begins
	stop  context.CancelCauseFunc
	wg    sync.WaitGroup // workers and the watcher
	once  sync.Once
	subs  subscribers
	close error

	genMu sync.Mutex
	gen   context.Context // of ctx; ends when the embedded server restarts JetStream
	next  context.CancelFunc
}

var _ Queue = (*JetStream)(nil)

// Open starts the embedded server in o.Dir, or connects to o.URL, recovers the
// jobs that an earlier process left, and starts the workers.
//
// A job is one record (a key of the status bucket) and one message (its id, in
// the work queue). The record is the truth: every change is a compare-and-set
// on its revision, and each run of the job first raises the record's attempt
// number, so a worker that was presumed dead cannot write any more. The
// message only wakes a worker; it is removed after the record is final.
//
// Errors: ErrLocked when another process has the store; otherwise what NATS said.
func Open(ctx context.Context, o Options) (*JetStream, error) {
	o.setDefaults()
	q := &JetStream{o: o}
	q.ctx, q.stop = context.WithCancelCause(context.Background())
	q.gen, q.next = context.WithCancel(q.ctx)
	q.subs.m = map[string]map[*subscription]struct{}{}
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	if err := q.connect(); err != nil {
		q.shutdown()
		return nil, err
	}
	if err := q.prepare(ctx); err != nil {
		q.shutdown()
		return nil, fmt.Errorf("job store: %w", err)
	}
	return q, nil
}

// connect leaves q.nc connected to the cluster or to the embedded server.
func (q *JetStream) connect() error {
	quiet := []nats.Option{
		nats.Name("fewbit jobs"),
		nats.MaxReconnects(-1),
		nats.ErrorHandler(func(_ *nats.Conn, _ *nats.Subscription, err error) {
			if err != nil {
				q.o.Log.Warn("job queue connection", "error", err)
			}
		}),
		nats.DisconnectErrHandler(func(_ *nats.Conn, err error) {
			if err != nil {
				q.o.Log.Warn("job queue disconnected", "error", err)
			}
		}),
	}
	if q.o.URL != "" {
		nc, err := nats.Connect(q.o.URL, append(quiet, q.o.NATS...)...)
		if err != nil {
			return fmt.Errorf("job queue: cannot connect to the NATS server of the configuration (is it running, with JetStream on?): %w", err)
		}
		q.nc = nc
		return nil
	}
	lock, err := lockStore(q.o.Dir)
	if err != nil {
		return err
	}
	q.lock = lock
	if q.server, err = startEmbedded(q.o.Dir); err != nil {
		return err
	}
	if q.nc, err = nats.Connect("", append(quiet, nats.InProcessServer(q.server.ns))...); err != nil {
		return fmt.Errorf("job queue: connecting in process: %w", err)
	}
	return nil
}

// prepare creates what is missing on the server, repairs what a crash left
// between two writes, and starts the goroutines.
func (q *JetStream) prepare(ctx context.Context) error {
	var err error
	if q.js, err = jetstream.New(q.nc); err != nil {
		return err
	}
	if q.store, err = openStore(ctx, q.js, q.o.Prefix, q.o.Replicas, q.nc.MaxPayload()); err != nil {
		return err
	}
	if q.queue, err = q.js.CreateOrUpdateStream(ctx, jetstream.StreamConfig{
		Name:       q.o.Prefix + "_jobs",
		Subjects:   []string{q.subject("*")},
		Retention:  jetstream.WorkQueuePolicy,
		Discard:    jetstream.DiscardNew,
		MaxMsgs:    int64(q.o.MaxQueued),
		MaxBytes:   queueBytes,
		MaxMsgSize: 1 << 10,
		// One message a job, whoever repeats the publication.
		MaxMsgsPerSubject:    1,
		DiscardNewPerSubject: true,
		Duplicates:           time.Second, // unused: no message ids
		Storage:              jetstream.FileStorage,
		Replicas:             q.o.Replicas,
	}); err != nil {
		return err
	}
	if err := q.requeueLost(ctx); err != nil {
		return err
	}
	if err := q.prune(ctx); err != nil {
		return err
	}
	if err := q.watch(); err != nil {
		return err
	}
	if q.o.Runner == nil {
		return nil
	}
	return q.startWorkers(ctx)
}

// subject of a job's message.
func (q *JetStream) subject(id string) string { return q.o.Prefix + ".jobs.run." + id }

// Submit implements Queue.
func (q *JetStream) Submit(ctx context.Context, s Spec) (string, error) {
	return q.SubmitPinned(ctx, s, nil)
}

// SubmitPinned is Submit that stores with the request what it names. A request
// with a key that is known keeps what it was first submitted with.
func (q *JetStream) SubmitPinned(ctx context.Context, s Spec, in *Inputs) (string, error) {
	if q.ctx.Err() != nil {
		return "", ErrClosed
	}
	id, err := checkSpec(s)
	if err != nil {
		return "", err
	}
	if err := q.ready(); err != nil {
		return "", err
	}
	rec := record{Status: Status{ID: id, Status: Queued, Spec: s, Inputs: in, Submitted: time.Now().UTC()}}
	switch err := q.store.create(ctx, rec); {
	case errors.Is(err, errExists):
		old, _, err := q.store.load(ctx, id)
		if err != nil {
			return "", q.wrap(ctx, err)
		}
		return q.again(ctx, old, s)
	case err != nil:
		return "", q.wrap(ctx, err)
	}
	if err := q.enqueue(ctx, id); err != nil {
		clean, cancel := context.WithTimeout(context.WithoutCancel(ctx), storeTimeout)
		defer cancel()
		if derr := q.store.remove(clean, id); derr != nil {
			q.o.Log.Warn("job queue: removing a refused job", "id", id, "error", derr)
		}
		return "", q.wrap(ctx, err)
	}
	return id, nil
}

// Known returns the job that was submitted with the key of s, "" when there is none.
// ErrConflict: it was another request's.
func (q *JetStream) Known(ctx context.Context, s Spec) (string, error) {
	if s.Key == "" {
		return "", nil
	}
	id, err := checkSpec(s)
	if err != nil {
		return "", err
	}
	old, _, err := q.store.load(ctx, id)
	switch {
	case errors.Is(err, ErrNotFound):
		return "", nil
	case err != nil:
		return "", q.wrap(ctx, err)
	}
	return q.again(ctx, old, s)
}

// again answers a request whose key is that of an older one.
func (q *JetStream) again(ctx context.Context, old record, s Spec) (string, error) {
	if !sameSpec(old.Spec, s) {
		return "", fmt.Errorf("%w: use a new key for a new request", ErrConflict)
	}
	if old.Status.Status == Queued { // its first submission may have died before the message
		if err := q.enqueue(ctx, old.Status.ID); err != nil {
			return "", q.wrap(ctx, err)
		}
	}
	return old.Status.ID, nil
}

// enqueue publishes the job's message; it is not an error if it is there already.
func (q *JetStream) enqueue(ctx context.Context, id string) error {
	_, err := q.js.Publish(ctx, q.subject(id), nil)
	var api *jetstream.APIError
	if !errors.As(err, &api) {
		return err
	}
	// The stream refuses a second message on a subject and a message past its
	// limits with the same code; only the store can say which it was.
	if _, e := q.queue.GetLastMsgForSubject(ctx, q.subject(id)); e == nil {
		return nil
	}
	if r, _, e := q.store.load(ctx, id); e == nil && r.Status.Status != Queued { // it was there and a worker has it
		return nil
	}
	return fmt.Errorf("%w: at most %d jobs may wait or run, try again later", ErrBusy, q.o.MaxQueued)
}

// Get implements Queue.
func (q *JetStream) Get(ctx context.Context, id string) (Status, error) {
	if q.ctx.Err() != nil {
		return Status{}, ErrClosed
	}
	rec, _, err := q.store.load(ctx, id)
	if err != nil {
		return Status{}, q.wrap(ctx, err)
	}
	if rec.Status.Status == Succeeded {
		if rec.Result, err = q.store.result(ctx, id, rec.Attempts); err != nil {
			return Status{}, q.wrap(ctx, err)
		}
	}
	return rec.Status, nil
}

// List implements Queue.
func (q *JetStream) List(ctx context.Context) ([]Status, error) {
	if q.ctx.Err() != nil {
		return nil, ErrClosed
	}
	recs, err := q.store.list(ctx)
	if err != nil {
		return nil, q.wrap(ctx, err)
	}
	out := make([]Status, len(recs))
	for i := range recs {
		out[i] = recs[i].Status
	}
	return out, nil
}

// Cancel implements Queue.
func (q *JetStream) Cancel(ctx context.Context, id string) error {
	if q.ctx.Err() != nil {
		return ErrClosed
	}
	if err := q.ready(); err != nil {
		return err
	}
	rec, err := q.store.change(ctx, id, func(r *record) error {
		if r.Status.Status.Final() {
			return fmt.Errorf("%w: it has %s", ErrFinished, r.Status.Status)
		}
		r.CancelAsked = true
		if r.Status.Status == Queued {
			r.finish(Cancelled, time.Now())
		} else {
			r.Phase = "cancelling"
		}
		return nil
	})
	if err != nil {
		return q.wrap(ctx, err)
	}
	if rec.Status.Status == Cancelled {
		// A worker that gets the message anyway sees the final record.
		if err := q.queue.Purge(ctx, jetstream.WithPurgeSubject(q.subject(id))); err != nil {
			q.o.Log.Warn("job queue: removing a cancelled job", "id", id, "error", err)
		}
	}
	return nil
}

// Close implements Queue. Jobs that do not stop within Options.StopTimeout are
// found by the next process and start again.
func (q *JetStream) Close() error {
	q.once.Do(func() {
		q.stop(ErrStopped)
		done := make(chan struct{})
		go func() { q.wg.Wait(); close(done) }()
		select {
		case <-done:
		case <-time.After(q.o.StopTimeout):
			q.close = fmt.Errorf("job queue: a job did not stop within %v; it will start again with the next process", q.o.StopTimeout)
		}
		q.shutdown()
	})
	return q.close
}

// shutdown closes whatever Open had opened.
func (q *JetStream) shutdown() {
	q.stop(ErrStopped)
	if q.nc != nil {
		q.nc.Close()
	}
	if q.server != nil {
		q.server.shutdown()
	}
	q.lock.Release()
}

// ready is called before writing; see embedded.ready.
func (q *JetStream) ready() error {
	if q.server == nil {
		return nil
	}
	restarted, err := q.server.ready()
	if restarted { // what waits for the old one would find out by missing heartbeats only
		q.genMu.Lock()
		defer q.genMu.Unlock()
		q.next()
		q.gen, q.next = context.WithCancel(q.ctx)
	}
	return err
}

// generation is the context of requests that wait on the server.
func (q *JetStream) generation() context.Context {
	q.genMu.Lock()
	defer q.genMu.Unlock()
	return q.gen
}

// wrap gives errors their identity: of a closed connection, and of a store
// that does not answer, unless it is ctx, the caller's, that has ended. The
// embedded one is looked after before the next write.
func (q *JetStream) wrap(ctx context.Context, err error) error {
	switch {
	case err == nil || ctx.Err() != nil && q.ctx.Err() == nil:
		return err
	case q.ctx.Err() != nil && errors.Is(err, nats.ErrConnectionClosed):
		return ErrClosed
	case errors.Is(err, context.DeadlineExceeded), errors.Is(err, nats.ErrNoResponders),
		errors.Is(err, jetstream.ErrNoStreamResponse), errors.Is(err, jetstream.ErrJetStreamNotEnabled):
		if q.server != nil {
			q.server.suspect.Store(true)
		}
		return fmt.Errorf("the job store does not answer, try again: %w", err)
	}
	return err
}

// requeueLost publishes again the messages of unfinished jobs whose message is
// missing: a process died between the record and the message. Records of forgotten
// jobs, which the store may give back after a crash, have none either.
func (q *JetStream) requeueLost(ctx context.Context) error {
	recs, err := q.store.list(ctx)
	if err != nil {
		return err
	}
	forgotten, err := q.store.forgotten(ctx)
	if err != nil {
		return err
	}
	for _, r := range slices.Backward(recs) { // the oldest first
		if r.Status.Status.Final() {
			continue
		}
		_, err := q.queue.GetLastMsgForSubject(ctx, q.subject(r.ID))
		switch {
		case errors.Is(err, jetstream.ErrMsgNotFound) && !r.Submitted.After(forgotten):
			err = q.store.remove(ctx, r.ID)
		case errors.Is(err, jetstream.ErrMsgNotFound):
			err = q.enqueue(ctx, r.ID)
		}
		if errors.Is(err, ErrBusy) { // the next start has places for more
			q.o.Log.Warn("job queue: jobs without a place wait for the next start", "error", err)
			return nil
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// prune forgets the oldest finished jobs past Keep, KeepFor or half the store.
func (q *JetStream) prune(ctx context.Context) error {
	recs, err := q.store.list(ctx) // newest first
	if err != nil {
		return err
	}
	used, err := q.store.bytes(ctx)
	if err != nil {
		return err
	}
	keep := q.o.Keep
	if used > storeBytes/2 {
		keep = min(keep, len(recs)/2)
	}
	var forget []record // newest first
	finished := 0
	for _, r := range recs {
		if !r.Status.Status.Final() {
			continue
		}
		finished++
		old := r.Finished != nil && time.Since(*r.Finished) > q.o.KeepFor
		if finished > keep || old {
			forget = append(forget, r)
		}
	}
	if len(forget) == 0 {
		return nil
	}
	if err := q.store.forgetUntil(ctx, forget[0].Submitted); err != nil {
		return err
	}
	for _, r := range forget {
		if err := q.store.remove(ctx, r.ID); err != nil {
			return err
		}
	}
	return nil
}
