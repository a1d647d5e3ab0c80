package jobs

import (
	"context"
	"encoding/json"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/nats-io/nats.go/jetstream"
)

// subscription is a mailbox that holds the newest record of a job.
type subscription struct {
	mu   sync.Mutex
	rec  record
	rev  uint64
	has  bool
	wake chan struct{} // capacity 1: there is something to take
}

func (s *subscription) put(r record, rev uint64) {
	s.mu.Lock()
	if rev > s.rev {
		s.rec, s.rev, s.has = r, rev, true
	}
	s.mu.Unlock()
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

func (s *subscription) take() (record, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	ok := s.has
	s.has = false
	return s.rec, ok
}

// subscribers maps job ids to those who want to know.
type subscribers struct {
	mu sync.Mutex
	m  map[string]map[*subscription]struct{}
}

func (s *subscribers) add(id string) *subscription {
	sub := &subscription{wake: make(chan struct{}, 1)}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.m[id] == nil {
		s.m[id] = map[*subscription]struct{}{}
	}
	s.m[id][sub] = struct{}{}
	return sub
}

func (s *subscribers) remove(id string, sub *subscription) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.m[id], sub)
	if len(s.m[id]) == 0 {
		delete(s.m, id)
	}
}

func (s *subscribers) send(id string, value []byte, rev uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.m[id]) == 0 {
		return
	}
	var r record
	if json.Unmarshal(value, &r) != nil {
		return // Get reports it
	}
	for sub := range s.m[id] {
		sub.put(r, rev)
	}
}

// ids lists those that somebody subscribed to.
func (s *subscribers) ids() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Collect(maps.Keys(s.m))
}

// watch follows all records with one ephemeral consumer and hands the changes
// to the subscribers, again for each generation of the server.
func (q *JetStream) watch() error {
	w, gen, err := q.openWatch()
	if err != nil {
		return err
	}
	q.wg.Go(func() {
		const pause = time.Second
		for {
			q.follow(gen, w)
			for q.ctx.Err() == nil {
				if w, gen, err = q.openWatch(); err == nil {
					break
				}
				select {
				case <-q.ctx.Done():
				case <-time.After(pause):
				}
			}
			if q.ctx.Err() != nil {
				return
			}
			q.catchUp(gen)
		}
	})
	return nil
}

func (q *JetStream) openWatch() (jetstream.KeyWatcher, context.Context, error) {
	gen := q.generation()
	w, err := q.store.kv.Watch(gen, "s.>", jetstream.UpdatesOnly(), jetstream.IgnoreDeletes())
	return w, gen, err
}

// follow hands on changes until gen ends, which stops w too (w.Stop would wait
// for a server that may be gone).
func (q *JetStream) follow(gen context.Context, w jetstream.KeyWatcher) {
	for {
		select {
		case <-gen.Done():
			return
		case e, ok := <-w.Updates():
			if !ok {
				return
			}
			if e != nil {
				q.subs.send(e.Key()[len("s."):], e.Value(), e.Revision())
			}
		}
	}
}

// catchUp makes up for changes that fell between two watches.
func (q *JetStream) catchUp(ctx context.Context) {
	for _, id := range q.subs.ids() {
		if e, err := q.store.kv.Get(ctx, statusKey(id)); err == nil {
			q.subs.send(id, e.Value(), e.Revision())
		}
	}
}

// Events implements Queue.
func (q *JetStream) Events(ctx context.Context, id string) (<-chan Status, error) {
	if q.ctx.Err() != nil {
		return nil, ErrClosed
	}
	sub := q.subs.add(id) // before the first read, so that no change falls between
	rec, rev, err := q.store.load(ctx, id)
	if err != nil {
		q.subs.remove(id, sub)
		return nil, q.wrap(ctx, err)
	}
	sub.put(rec, rev)
	out := make(chan Status)
	go func() {
		defer close(out)
		defer q.subs.remove(id, sub)
		for {
			select {
			case <-ctx.Done():
				return
			case <-q.ctx.Done():
				return
			case <-sub.wake:
			}
			r, ok := sub.take()
			if !ok {
				continue
			}
			st := r.Status
			if st.Status == Succeeded {
				if full, err := q.Get(ctx, id); err == nil {
					st = full
				}
			}
			select {
			case out <- st:
			case <-ctx.Done():
				return
			case <-q.ctx.Done():
				return
			}
			if st.Status.Final() {
				return
			}
		}
	}()
	return out, nil
}
