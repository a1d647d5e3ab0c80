//go:build !linux

package registry

import (
	"io/fs"
	"os"
	"path/filepath"
)

func diskSpace(string) (free, total uint64, ok bool) { return 0, 0, false }

func syncTree(dir string) error {
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
