package jobs

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/nats-io/nats.go/jetstream"
)

// record is what the bucket holds for one job: the public status (its Result
// lies under a key of its own) and what the queue needs to know.
type record struct {
	Status
	// Lost counts the attempts that ended without a word.
	Lost int `json:"lost,omitempty"`
	// CancelAsked: a client cancelled the job while it ran.
	CancelAsked bool `json:"cancel_asked,omitempty"`
}

func (r *record) finish(s State, now time.Time) {
	now = now.UTC()
	r.Status.Status = s
	r.Phase = ""
	r.ETASeconds = nil
	r.Finished = &now
	if s == Succeeded {
		r.Progress = 1
	}
}

// store keeps the records in a key-value bucket:
//
//	s.<id>            record
//	r.<id>.<attempt>  result of that attempt; visible once the record names it
//	forgotten         when the newest job was submitted that has been forgotten
type store struct {
	kv        jetstream.KeyValue
	stream    jetstream.Stream // the bucket's stream: purging a subject leaves no marker
	bucket    string
	maxResult int
}

var errExists = errors.New("job exists")

func openStore(ctx context.Context, js jetstream.JetStream, prefix string, replicas int, maxPayload int64) (*store, error) {
	s := &store{bucket: prefix + "_status", maxResult: MaxResultBytes}
	if m := int(maxPayload) - 16<<10; m < s.maxResult { // a cluster may accept less
		s.maxResult = m
	}
	var err error
	s.kv, err = js.CreateOrUpdateKeyValue(ctx, jetstream.KeyValueConfig{
		Bucket:       s.bucket,
		Description:  "fewbit jobs",
		History:      1,
		MaxValueSize: int32(MaxResultBytes),
		MaxBytes:     storeBytes,
		Storage:      jetstream.FileStorage,
		Replicas:     replicas,
	})
	if err != nil {
		return nil, err
	}
	s.stream, err = js.Stream(ctx, "KV_"+s.bucket)
	return s, err
}

func statusKey(id string) string              { return "s." + id }
func resultKey(id string, attempt int) string { return "r." + id + "." + strconv.Itoa(attempt) }

func (s *store) create(ctx context.Context, r record) error {
	b, err := json.Marshal(r)
	if err != nil {
		return err
	}
	_, err = s.kv.Create(ctx, statusKey(r.ID), b)
	if errors.Is(err, jetstream.ErrKeyExists) {
		return errExists
	}
	return err
}

// load returns the record and its revision, or ErrNotFound.
func (s *store) load(ctx context.Context, id string) (record, uint64, error) {
	if !validID(id) {
		return record{}, 0, ErrNotFound
	}
	e, err := s.kv.Get(ctx, statusKey(id))
	if errors.Is(err, jetstream.ErrKeyNotFound) {
		return record{}, 0, ErrNotFound
	}
	if err != nil {
		return record{}, 0, err
	}
	var r record
	if err := json.Unmarshal(e.Value(), &r); err != nil {
		return record{}, 0, fmt.Errorf("job record: %w", err)
	}
	return r, e.Revision(), nil
}

// change applies f to the record and stores it, again from the start when
// somebody else changed it in between. An error of f ends it.
func (s *store) change(ctx context.Context, id string, f func(*record) error) (record, error) {
	for {
		r, rev, err := s.load(ctx, id)
		if err != nil {
			return r, err
		}
		if err := f(&r); err != nil {
			return r, err
		}
		b, err := json.Marshal(r)
		if err != nil {
			return r, err
		}
		_, err = s.kv.Update(ctx, statusKey(id), b, rev)
		if err == nil {
			return r, nil
		}
		if !errors.Is(err, jetstream.ErrKeyExists) { // another revision
			return r, err
		}
		if ctx.Err() != nil {
			return r, ctx.Err()
		}
	}
}

func (s *store) putResult(ctx context.Context, id string, attempt int, b []byte) error {
	_, err := s.kv.Put(ctx, resultKey(id, attempt), b)
	return err
}

func (s *store) result(ctx context.Context, id string, attempt int) (json.RawMessage, error) {
	e, err := s.kv.Get(ctx, resultKey(id, attempt))
	if errors.Is(err, jetstream.ErrKeyNotFound) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	return e.Value(), nil
}

// list returns all records, newest first.
func (s *store) list(ctx context.Context) ([]record, error) {
	w, err := s.kv.Watch(ctx, "s.>", jetstream.IgnoreDeletes())
	if err != nil {
		return nil, err
	}
	defer w.Stop()
	var out []record
	for {
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case e, ok := <-w.Updates():
			if !ok {
				return nil, ErrClosed
			}
			if e == nil { // all present values have been sent
				slices.SortFunc(out, func(a, b record) int {
					if c := b.Submitted.Compare(a.Submitted); c != 0 {
						return c
					}
					return strings.Compare(b.ID, a.ID)
				})
				return out, nil
			}
			var r record
			if err := json.Unmarshal(e.Value(), &r); err != nil {
				return nil, fmt.Errorf("job record: %w", err)
			}
			out = append(out, r)
		}
	}
}

const forgottenKey = "forgotten"

// forgotten is when the newest forgotten job was submitted. After a crash the server
// finds which values were replaced by newer ones anew; where the newest has been
// purged, one before it, of a job that had not ended, is back.
func (s *store) forgotten(ctx context.Context) (t time.Time, err error) {
	e, err := s.kv.Get(ctx, forgottenKey)
	if errors.Is(err, jetstream.ErrKeyNotFound) {
		return t, nil
	}
	if err != nil {
		return t, err
	}
	return t, t.UnmarshalText(e.Value())
}

// forgetUntil notes it before jobs that were submitted until t are removed.
func (s *store) forgetUntil(ctx context.Context, t time.Time) error {
	was, err := s.forgotten(ctx)
	if err != nil || !t.After(was) {
		return err
	}
	b, err := t.MarshalText()
	if err != nil {
		return err
	}
	_, err = s.kv.Put(ctx, forgottenKey, b)
	return err
}

// remove forgets a job and its results. The record goes first, so that a
// crash in between leaves only an invisible result.
func (s *store) remove(ctx context.Context, id string) error {
	for _, subject := range []string{statusKey(id), "r." + id + ".*"} {
		if err := s.stream.Purge(ctx, jetstream.WithPurgeSubject("$KV."+s.bucket+"."+subject)); err != nil {
			return err
		}
	}
	return nil
}

func (s *store) bytes(ctx context.Context) (int64, error) {
	st, err := s.kv.Status(ctx)
	if err != nil {
		return 0, err
	}
	return int64(st.Bytes()), nil
}
