package jobs

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/nats-io/nats-server/v2/server"

	"github.com/fewbit/fewbit/internal/registry/lockfile"
)

// embedded is a NATS server inside the process, reachable from nowhere else.
type embedded struct{ ns *server.Server }

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
	ns, err := server.NewServer(&server.Options{
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
	})
	if err != nil {
		return nil, fmt.Errorf("job queue: embedded NATS: %w", err)
	}
	ns.Start()
	if !ns.ReadyForConnections(startTimeout) || !ns.JetStreamEnabled() {
		ns.Shutdown()
		return nil, fmt.Errorf("job queue: embedded NATS did not start within %v; is the data directory writable and the disk not full?", startTimeout)
	}
	return &embedded{ns: ns}, nil
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
