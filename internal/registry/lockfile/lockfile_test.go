package lockfile

import (
	"errors"
	"io/fs"
	"path/filepath"
	"syscall"
	"testing"
	"time"
)

func lock(t *testing.T, f func(string) (*Lock, error), path string) *Lock {
	t.Helper()
	l, err := f(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(l.Release)
	return l
}

func TestExclusiveExcludes(t *testing.T) {
	path := filepath.Join(t.TempDir(), "lock")
	l := lock(t, Exclusive, path)
	if _, err := Exclusive(path); !errors.Is(err, ErrLocked) {
		t.Errorf("second holder: %v", err)
	}
	l.Release()
	l.Release()
	lock(t, Exclusive, path)
	if _, err := ExclusiveExisting(path); !errors.Is(err, ErrLocked) {
		t.Errorf("second holder: %v", err)
	}
	if _, err := ExclusiveExisting(path + "2"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a file that is not there: %v", err)
	}
	if _, err := Exclusive(filepath.Join(path, "below", "a file")); err == nil || errors.Is(err, ErrLocked) {
		t.Errorf("a path that cannot be: %v", err)
	}
}

func TestSharedWaitsForExclusiveOnly(t *testing.T) {
	path := filepath.Join(t.TempDir(), "lock")
	a := lock(t, SharedWait, path)
	b := lock(t, SharedWait, path)
	got := make(chan error, 1)
	go func() {
		l, err := ExclusiveWait(path)
		l.Release()
		got <- err
	}()
	a.Release()
	select {
	case <-got:
		t.Fatal("exclusive beside a shared holder")
	case <-time.After(20 * time.Millisecond):
	}
	b.Release()
	if err := <-got; err != nil {
		t.Error(err)
	}
}

// TestReleaseBeyondCopies: a copy of the descriptor, as a child that starts has it, holds
// nothing once the lock is given back.
func TestReleaseBeyondCopies(t *testing.T) {
	path := filepath.Join(t.TempDir(), "lock")
	l, err := Exclusive(path)
	if err != nil {
		t.Fatal(err)
	}
	child, err := syscall.Dup(int(l.f.Fd()))
	if err != nil {
		t.Fatal(err)
	}
	defer syscall.Close(child)
	l.Release()
	again, err := Exclusive(path)
	if err != nil {
		t.Fatalf("still locked by a copy: %v", err)
	}
	again.Release()
}
