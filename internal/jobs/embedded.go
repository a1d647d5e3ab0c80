package jobs

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats-server/v2/server"

	"github.com/fewbit/fewbit/internal/registry/disk"
	"github.com/fewbit/fewbit/internal/registry/lockfile"
)

// diskReserve is what must be free on the disk before anything is written. The
// server gives a stream up for good after one failed write, so it is kept from
// meeting a full disk, and restarted after it may have met one.
const diskReserve = 4 << 20

// embedded is a NATS server inside the process, reachable from nowhere else.
type embedded struct {
	ns  *server.Server
	o   *server.Options
	dir string

	mu      sync.Mutex // held through a restart
	suspect atomic.Bool
	healed  time.Time
}

// lockStore takes the store for this process: the server itself locks nothing,
// and two of them on one directory destroy it.
func lockStore(dir string) (*lockfile.Lock, error) {
	if dir == "" {
		return nil, errors.New("job queue: no store directory, give a data directory or the URL of a NATS cluster")
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("job queue: %w", err)
	}
	l, err := lockfile.Exclusive(filepath.Join(dir, "lock"))
	if errors.Is(err, lockfile.ErrLocked) {
		return nil, fmt.Errorf("%w: another process runs on %s, stop it or choose another data directory", ErrLocked, dir)
	}
	return l, err
}

func startEmbedded(dir string) (*embedded, error) {
	o := &server.Options{
		ServerName: "fewbit",
		DontListen: true,
		NoSigs:     true,
		NoLog:      true,
		MaxPayload: maxPayload,
		JetStream:  true,
		StoreDir:   filepath.Join(dir, "nats"),
		// Acknowledge after fsync. The default flushes every two minutes and
		// acknowledges at once (nats-server #7564).
		SyncAlways:             true,
		JetStreamMaxMemory:     16 << 20,
		JetStreamMaxStore:      storeBytes + queueBytes + 16<<20,
		DisableJetStreamBanner: true,
	}
	ns, err := server.NewServer(o)
	if err != nil {
		return nil, fmt.Errorf("job queue: embedded NATS: %w", err)
	}
	ns.Start()
	if !ns.ReadyForConnections(startTimeout) || !ns.JetStreamEnabled() {
		ns.Shutdown()
		return nil, fmt.Errorf("job queue: embedded NATS did not start within %v; is the data directory writable and the disk not full?", startTimeout)
	}
	return &embedded{ns: ns, o: o, dir: dir}, nil
}

// ready returns ErrNoSpace while the disk is (almost) full. After that, or when
// suspect was set because a write got no answer, it restarts JetStream on its
// files; consumers and connections stay.
func (e *embedded) ready() (restarted bool, err error) {
	const pause = time.Second // between restarts
	if free, _, ok := disk.Space(e.dir); ok && free < diskReserve {
		e.suspect.Store(true)
		return false, fmt.Errorf("%w: %d bytes are free, jobs need %d; delete models or data sets that are not needed", ErrNoSpace, free, diskReserve)
	}
	if !e.suspect.Load() {
		return false, nil
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	if !e.suspect.Load() || time.Since(e.healed) < pause {
		return false, nil
	}
	if err := e.ns.ShutdownJetStream(); err != nil {
		return false, fmt.Errorf("job queue: restarting the store: %w", err)
	}
	err = e.ns.EnableJetStream(&server.JetStreamConfig{
		MaxMemory: e.o.JetStreamMaxMemory, MaxStore: e.o.JetStreamMaxStore, StoreDir: e.o.StoreDir,
		SyncAlways: e.o.SyncAlways, SyncInterval: e.o.SyncInterval, Strict: true,
	})
	if err != nil {
		return false, fmt.Errorf("job queue: restarting the store: %w", err)
	}
	e.suspect.Store(false)
	e.healed = time.Now()
	return true, nil
}

func (e *embedded) shutdown() {
	e.ns.Shutdown()
	done := make(chan struct{})
	go func() { e.ns.WaitForShutdown(); close(done) }()
	select {
	case <-done:
	case <-time.After(startTimeout):
	}
}
