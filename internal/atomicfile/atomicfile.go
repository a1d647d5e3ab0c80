// Package atomicfile replaces a file whole: whoever opens it, and whoever comes
// after a kill, finds the old contents or the new ones and nothing between.
//
// Temporary files carry a pattern of the caller's, by which the caller's own
// sweep finds what a killed process left. That is why it is not a library:
// those name them after the file, in folders that belong to a user.
package atomicfile

import (
	"errors"
	"io"
	"os"
	"path/filepath"
	"syscall"
)

// File says how to write one.
type File struct {
	Path string
	// Temp is the pattern of the temporary file beside it, as in os.CreateTemp.
	Temp string
	Mode os.FileMode // of the new file; 0600 if it is 0
	// Fleeting leaves out the syncs: after a power failure the file may be
	// short or gone, which its reader must be able to tell.
	Fleeting bool
}

// Write calls write with the new contents' file and puts it under its name. On
// an error the old file stays and nothing new is left behind, except that a
// folder which could not be synced has the new one.
func (o File) Write(write func(io.Writer) error) error {
	dir := filepath.Dir(o.Path)
	f, err := os.CreateTemp(dir, o.Temp)
	if err != nil {
		return err
	}
	placed := false
	defer func() {
		if !placed {
			f.Close() // a second time at worst
			_ = os.Remove(f.Name())
		}
	}()
	if err := write(f); err != nil {
		return err
	}
	if o.Mode != 0 {
		if err := f.Chmod(o.Mode); err != nil {
			return err
		}
	}
	if !o.Fleeting {
		if err := f.Sync(); err != nil {
			return err
		}
	}
	if err := f.Close(); err != nil {
		return err
	}
	if err := os.Rename(f.Name(), o.Path); err != nil {
		return err
	}
	placed = true
	if o.Fleeting {
		return nil
	}
	return SyncDir(dir)
}

// WriteBytes is Write for contents in memory.
func (o File) WriteBytes(b []byte) error {
	return o.Write(func(w io.Writer) error {
		_, err := w.Write(b)
		return err
	})
}

// SyncDir makes the names in a folder durable. File systems that cannot sync a
// folder (some of networks and of user space) are no error: the files in it are
// whole without.
func SyncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	if err := d.Sync(); err != nil && !errors.Is(err, syscall.EINVAL) && !errors.Is(err, errors.ErrUnsupported) {
		return err
	}
	return nil
}
