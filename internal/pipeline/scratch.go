package pipeline

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/fewbit/fewbit/internal/bare"
	"github.com/fewbit/fewbit/internal/registry/lockfile"
)

// Prefixes of the folders in which a run works; a person may delete one that no
// process needs.
const (
	labPrefix   = ".fewbit-lab-"
	stagePrefix = ".fewbit-stage-"
)

const (
	// scratchLock lies in each folder, locked as long as its process lives,
	// however that ends. It appears under this name already locked.
	scratchLock = ".lock"
	// orphanAge is when a folder without the file is nobody's: its process died
	// while making it.
	orphanAge = 24 * time.Hour
)

// scratchDir is a temporary folder that does not outlive its process for long:
// the next one that makes one beside it removes it.
type scratchDir struct {
	path string
	lock *lockfile.Lock
}

// newScratch makes a folder in parent ("" is the system's) and removes those of
// the same prefix whose processes have died.
func newScratch(parent, prefix string) (*scratchDir, error) {
	if parent == "" {
		parent = os.TempDir()
	}
	sweepScratch(parent, prefix)
	dir, err := os.MkdirTemp(parent, prefix+"*")
	if err != nil {
		return nil, bare.Error(err)
	}
	s := &scratchDir{path: dir}
	// Without locks (a file system may lack them) nobody removes the folder but
	// its own process, and a later one after orphanAge.
	fresh := filepath.Join(dir, scratchLock+".new")
	if s.lock, err = lockfile.Exclusive(fresh); err == nil {
		if err := os.Rename(fresh, filepath.Join(dir, scratchLock)); err != nil {
			_ = s.remove() // the next process does it
			return nil, bare.Error(err)
		}
	}
	return s, nil
}

// remove removes the folder with what is in it.
func (s *scratchDir) remove() error {
	err := os.RemoveAll(s.path)
	s.lock.Release()
	return err
}

// sweepScratch removes folders of dead processes. What it may not or cannot
// remove stays.
func sweepScratch(parent, prefix string) {
	entries, err := os.ReadDir(parent)
	if err != nil {
		return
	}
	for _, e := range entries {
		if !e.IsDir() || !strings.HasPrefix(e.Name(), prefix) {
			continue
		}
		info, err := e.Info()
		// In a folder that others share, theirs are none of our business: what
		// lies in them may be a trap.
		if err != nil || !ownedByUs(info) {
			continue
		}
		dir := filepath.Join(parent, e.Name())
		lock := filepath.Join(dir, scratchLock)
		switch _, err := os.Lstat(lock); {
		case err == nil:
			l, err := lockfile.ExclusiveExisting(lock)
			if err != nil { // alive, or ending
				continue
			}
			_ = os.RemoveAll(dir)
			l.Release()
		case errors.Is(err, fs.ErrNotExist) && time.Since(info.ModTime()) > orphanAge:
			_ = os.RemoveAll(dir)
		}
	}
}
