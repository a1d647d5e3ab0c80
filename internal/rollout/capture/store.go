package capture

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/fewbit/fewbit/internal/atomicfile"
)

// Layout of a store's directory.
//
//	MODEL/capture.json   settings, counters, salt; replaced whole
//	MODEL/samples        sealed samples, one behind the other
//	.NAME                being written or removed; what a crash left is removed
const (
	manifestName = "capture.json"
	hidden       = "."
)

// maxManifest bounds a manifest.
const maxManifest = 1 << 20

// Store holds the captures of all models. Its methods are safe for concurrent use.
type Store struct {
	dir string
	key *Key // nil: nothing can be captured or read

	// live are the captures that run, by model; replaced, never changed, so
	// that a request to a model without one costs a look.
	live atomic.Pointer[map[string]*capture]

	mu     sync.Mutex // guards all and closed; before capture.mu
	all    map[string]*capture
	closed bool

	queue   chan taken
	full    chan struct{} // the queue should be written now
	pending atomic.Int64  // bytes in the queue
	quit    chan struct{}
	done    chan struct{}
}

// manifest is capture.json.
type manifest struct {
	KeyID  string `json:"key_id"`
	Salt   []byte `json:"salt"`
	Status Status `json:"status"`
}

// Open opens or creates the store in dir. Captures that an earlier process left
// running go on, when key is theirs. A capture whose manifest is damaged stays
// on disk and is not seen. key may be nil: then captures can be listed and deleted.
func Open(dir string, key *Key) (*Store, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("captured inputs: %w", noPath(err))
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, fmt.Errorf("captured inputs: %w", noPath(err))
	}
	s := &Store{dir: dir, key: key, all: map[string]*capture{}, queue: make(chan taken, queued), full: make(chan struct{}, 1), quit: make(chan struct{}), done: make(chan struct{})}
	for _, e := range entries {
		name := e.Name()
		if strings.HasPrefix(name, hidden) {
			if err := os.RemoveAll(filepath.Join(dir, name)); err != nil {
				return nil, fmt.Errorf("captured inputs: %w", noPath(err))
			}
			continue
		}
		if c, err := s.load(name); err == nil {
			s.all[name] = c
		}
	}
	s.publish()
	go s.write()
	return s, nil
}

// load reads the capture of a model.
func (s *Store) load(model string) (*capture, error) {
	dir := filepath.Join(s.dir, model)
	f, err := os.Open(filepath.Join(dir, manifestName))
	if err != nil {
		return nil, err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, maxManifest+1))
	if err != nil || len(b) > maxManifest {
		return nil, fmt.Errorf("%w: manifest", ErrFormat)
	}
	var m manifest
	if err := json.Unmarshal(b, &m); err != nil || len(m.Salt) != saltBytes {
		return nil, fmt.Errorf("%w: manifest", ErrFormat)
	}
	if _, err := m.Status.Settings.WithDefaults(); err != nil {
		return nil, err
	}
	c := newCapture(model, dir, m)
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), hidden) { // half written
			_ = os.Remove(filepath.Join(dir, e.Name()))
		}
	}
	if err := c.scan(); err != nil {
		return nil, err
	}
	c.st.Seen = max(c.st.Seen, int64(c.st.Samples)) // the counters are written less often
	switch {
	case s.key == nil || s.key.ID() != m.KeyID:
		if c.st.State == Running {
			c.stopLocked(time.Now(), "the server was started without the key that it was begun with")
		}
	default:
		if c.box, err = s.key.box(m.Salt); err != nil {
			return nil, err
		}
	}
	return c, nil
}

// publish makes live of all. s.mu is held, or nobody else knows s.
func (s *Store) publish() {
	live := map[string]*capture{}
	for name, c := range s.all {
		if c.status().State == Running {
			live[name] = c
		}
	}
	if len(live) == 0 {
		s.live.Store(nil)
		return
	}
	s.live.Store(&live)
}

// checkModel refuses what cannot be the name of a folder here.
func checkModel(name string) error {
	if name == "" || len(name) > 128 || strings.HasPrefix(name, hidden) || strings.ContainsAny(name, "/\\\x00") {
		return fmt.Errorf("%w: a model cannot be called %.40q", ErrSettings, name)
	}
	return nil
}

// Start begins to capture the inputs of a model. Starting again with the settings
// of a capture that runs changes nothing.
// Errors: ErrNoKey, ErrSettings, ErrExists, ErrTooMany, and those of the disk.
func (s *Store) Start(model string, set Settings) (Status, error) {
	if err := checkModel(model); err != nil {
		return Status{}, err
	}
	set, err := set.WithDefaults()
	if err != nil {
		return Status{}, err
	}
	if s.key == nil {
		return Status{}, ErrNoKey
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return Status{}, fmt.Errorf("%w: the server is stopping", ErrNotFound)
	}
	if c := s.all[model]; c != nil {
		st := c.status()
		if st.State == Running && sameSettings(st.Settings, set) {
			return st, nil
		}
		return st, fmt.Errorf("%w of model %s, %s, with %d samples: delete it first", ErrExists, model, st.State, st.Samples)
	}
	if len(s.all) >= MaxModels {
		return Status{}, fmt.Errorf("%w: %d models have one", ErrTooMany, len(s.all))
	}
	if err := checkRoom(s.dir, set.MaxBytes); err != nil {
		return Status{}, err
	}
	now := time.Now().UTC()
	m := manifest{KeyID: s.key.ID(), Salt: randomBytes(saltBytes), Status: Status{
		Model: model, State: Running, Settings: set, Started: now, Ends: now.Add(seconds(set.Seconds)), Deletes: now.Add(seconds(set.Seconds) + seconds(set.Keep)),
		Routes: map[string]int64{}, Inputs: []Input{},
	}}
	dir := filepath.Join(s.dir, model)
	c := newCapture(model, dir, m)
	if c.box, err = s.key.box(m.Salt); err != nil {
		return Status{}, err
	}
	// A folder without a manifest is what a damaged capture left.
	if err := s.remove(dir); err != nil {
		return Status{}, err
	}
	if err := os.Mkdir(dir, 0o700); err != nil {
		return Status{}, noPath(err)
	}
	if err := c.save(true); err != nil {
		_ = os.RemoveAll(dir)
		return Status{}, err
	}
	s.all[model] = c
	s.publish()
	return c.status(), nil
}

func sameSettings(a, b Settings) bool {
	x, err1 := json.Marshal(a)
	y, err2 := json.Marshal(b)
	return err1 == nil && err2 == nil && string(x) == string(y)
}

func seconds(s float64) time.Duration { return time.Duration(s * float64(time.Second)) }

// find returns the capture of a model.
func (s *Store) find(model string) (*capture, error) {
	c := s.all[model]
	if c == nil {
		return nil, fmt.Errorf("%w of model %s: PUT /models/%s/capture starts one", ErrNotFound, model, model)
	}
	return c, nil
}

// Status describes the capture of a model. Errors: ErrNotFound.
func (s *Store) Status(model string) (Status, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	c, err := s.find(model)
	if err != nil {
		return Status{}, err
	}
	return c.status(), nil
}

// List describes all captures, by model.
func (s *Store) List() []Status {
	s.mu.Lock()
	defer s.mu.Unlock()
	list := make([]Status, 0, len(s.all))
	for _, name := range slices.Sorted(maps.Keys(s.all)) {
		list = append(list, s.all[name].status())
	}
	return list
}

// Stop ends a capture; its samples stay. Errors: ErrNotFound.
func (s *Store) Stop(model string) (Status, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	c, err := s.find(model)
	if err != nil {
		return Status{}, err
	}
	c.stop(time.Now(), "stopped on request")
	s.publish()
	return c.status(), c.save(true)
}

// Delete ends a capture and removes its samples. What jobs read already they
// keep until they end. Errors: ErrNotFound.
func (s *Store) Delete(model string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, err := s.find(model); err != nil {
		return err
	}
	return s.deleteLocked(model)
}

// deleteLocked needs s.mu.
func (s *Store) deleteLocked(model string) error {
	c := s.all[model]
	delete(s.all, model)
	s.publish()
	c.io.Lock()
	defer c.io.Unlock()
	c.deleted = true
	c.closeLog()
	return s.remove(c.dir)
}

// remove takes a folder away: out of sight first, so that a crash leaves no half.
func (s *Store) remove(dir string) error {
	if _, err := os.Lstat(dir); errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	tmp, err := os.MkdirTemp(s.dir, hidden+"dead-*")
	if err != nil {
		return noPath(err)
	}
	if err := os.Rename(dir, filepath.Join(tmp, "capture")); err != nil {
		return noPath(err)
	}
	if err := atomicfile.SyncDir(s.dir); err != nil {
		return noPath(err)
	}
	return noPath(os.RemoveAll(tmp))
}

// Close writes what is queued. Captures that run go on when the store is opened
// again.
func (s *Store) Close() error {
	s.mu.Lock()
	if s.closed {
		s.mu.Unlock()
		return nil
	}
	s.closed = true
	s.live.Store(nil)
	s.mu.Unlock()
	close(s.quit)
	<-s.done
	s.mu.Lock()
	defer s.mu.Unlock()
	var errs []error
	for _, c := range s.all {
		errs = append(errs, c.save(true))
		c.io.Lock()
		c.closeLog()
		c.io.Unlock()
	}
	return errors.Join(errs...)
}
