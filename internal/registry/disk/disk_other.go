//go:build !linux

package disk

import (
	"io/fs"
	"os"
	"path/filepath"
)

// Space is not known here (ok is false).
func Space(string) (free, total uint64, ok bool) { return 0, 0, false }

// SyncTree makes everything below dir durable.
func SyncTree(dir string) error {
	return filepath.WalkDir(dir, func(path string, _ fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		f, err := os.Open(path)
		if err != nil {
			return err
		}
		defer f.Close()
		return f.Sync()
	})
}
