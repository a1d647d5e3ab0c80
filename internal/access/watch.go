package access

import (
	"context"
	"io/fs"
	"os"
	"time"
)

// WatchEvery is how often files are looked at. Looking works where
// notifications do not: network file systems, and volumes that Kubernetes
// replaces by switching a link.
const WatchEvery = time.Second

// stamp is what tells one content of a file from the next.
type stamp struct {
	at   time.Time
	size int64
	info fs.FileInfo // for the inode
}

func stampOf(path string) stamp {
	st, err := os.Stat(path)
	if err != nil {
		return stamp{}
	}
	return stamp{st.ModTime(), st.Size(), st}
}

func (s stamp) same(o stamp) bool {
	if s.info == nil || o.info == nil {
		return s.info == nil && o.info == nil
	}
	return s.at.Equal(o.at) && s.size == o.size && os.SameFile(s.info, o.info)
}

// Watcher looks at files.
type Watcher struct {
	files []string
	read  []stamp // what they were when they were last read
}

// NewWatcher remembers what the files are now: make it before they are read.
// Names that are empty are left out.
func NewWatcher(files ...string) *Watcher {
	w := &Watcher{}
	for _, f := range files {
		if f != "" {
			w.files, w.read = append(w.files, f), append(w.read, stampOf(f))
		}
	}
	return w
}

// Run calls changed when one of the files is another one than before and has
// stayed so for one look, so that a file which is being written is not read. It
// returns when ctx ends. every is WatchEvery unless it is set.
func (w *Watcher) Run(ctx context.Context, every time.Duration, changed func()) {
	if every <= 0 {
		every = WatchEvery
	}
	seen := append([]stamp(nil), w.read...) // at the look before
	tick := time.NewTicker(every)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		differs, settled := false, true
		for i, f := range w.files {
			now := stampOf(f)
			differs = differs || !now.same(w.read[i])
			settled = settled && now.same(seen[i])
			seen[i] = now
		}
		if differs && settled {
			copy(w.read, seen)
			changed()
		}
	}
}
