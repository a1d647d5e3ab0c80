package disk

import (
	"os"

	"golang.org/x/sys/unix"
)

// Space returns the bytes that this user may still write to the file
// system of dir, and its size.
func Space(dir string) (free, total uint64, ok bool) {
	var st unix.Statfs_t
	if unix.Statfs(dir, &st) != nil || st.Bsize <= 0 {
		return 0, 0, false
	}
	return st.Bavail * uint64(st.Bsize), st.Blocks * uint64(st.Bsize), true
}

// SyncTree makes everything below dir durable, with one call instead of one
// for each of many small files.
func SyncTree(dir string) error {
	f, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer f.Close()
	return unix.Syncfs(int(f.Fd()))
}
