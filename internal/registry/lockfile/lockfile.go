// Package lockfile takes advisory locks that the kernel drops when the process
// ends, however it ends.
package lockfile

import (
	"errors"
	"fmt"
	"os"
)

// ErrLocked reports that another process (or another holder in this one) has
// the lock.
var ErrLocked = errors.New("already locked")

// Lock is a held lock. The zero value holds nothing.
type Lock struct{ f *os.File }

// Exclusive creates path if needed and locks it without waiting. It returns
// ErrLocked when it is held elsewhere. The file stays after Release: removing
// it would let a second holder lock a different inode of the same name.
func Exclusive(path string) (*Lock, error) { return open(path, os.O_CREATE, true, false) }

// ExclusiveExisting is Exclusive that does not create the file.
func ExclusiveExisting(path string) (*Lock, error) { return open(path, 0, true, false) }

// ExclusiveWait is Exclusive that waits.
func ExclusiveWait(path string) (*Lock, error) { return open(path, os.O_CREATE, true, true) }

// SharedWait waits for a lock that many may hold while nobody is exclusive.
func SharedWait(path string) (*Lock, error) { return open(path, os.O_CREATE, false, true) }

func open(path string, create int, exclusive, wait bool) (*Lock, error) {
	f, err := os.OpenFile(path, create|os.O_RDWR, 0o600)
	if err != nil {
		return nil, fmt.Errorf("lock file: %w", err)
	}
	if err := flock(f, exclusive, wait); err != nil {
		f.Close()
		return nil, err
	}
	return &Lock{f: f}, nil
}

// Release gives the lock back. It may be called more than once.
func (l *Lock) Release() {
	if l == nil || l.f == nil {
		return
	}
	// A child that is being started holds a copy of every descriptor until it runs its
	// own program: to unlock drops the lock for the copies too, to close would not.
	unlock(l.f)
	l.f.Close()
	l.f = nil
}
