package engine

import (
	"io/fs"
	"math"
	"os"
	"path"
	"strconv"
	"strings"
)

// TotalMemory returns the bytes of memory that this process may fill at most:
// the machine's, or less when a control group (version 2 or 1) allows less. ok is
// false where the system does not tell.
func TotalMemory() (bytes int64, ok bool) { return totalMemory(os.DirFS("/")) }

func totalMemory(root fs.FS) (int64, bool) {
	least := math.Inf(1)
	if b, err := fs.ReadFile(root, "proc/meminfo"); err == nil {
		for line := range strings.Lines(string(b)) {
			f := strings.Fields(line)
			if len(f) == 3 && f[0] == "MemTotal:" && f[2] == "kB" {
				least = ratio(f[1], "1") * 1024
			}
		}
	}
	groups, err1 := fs.ReadFile(root, "proc/self/cgroup")
	mounts, err2 := fs.ReadFile(root, "proc/self/mountinfo")
	if err1 == nil && err2 == nil {
		v2, v1 := cgroupPaths(groups, "memory")
		for _, m := range parseMounts(mounts) {
			switch {
			case m.fstype == "cgroup2" && v2 != "":
				least = min(least, walkCgroup(root, m, v2, memoryFile("memory.max")))
			case m.fstype == "cgroup" && v1 != "" && m.hasOption("memory"):
				least = min(least, walkCgroup(root, m, v1, memoryFile("memory.limit_in_bytes")))
			}
		}
	}
	if least > 1<<62 {
		return 0, false
	}
	return int64(least), true
}

// memoryFile reads a limit: "max" or bytes. Version 1 has a huge number for none.
func memoryFile(name string) func(fs.FS, string) float64 {
	return func(root fs.FS, dir string) float64 {
		b, err := fs.ReadFile(root, path.Join(dir, name))
		if err != nil {
			return math.Inf(1)
		}
		n, err := strconv.ParseInt(strings.TrimSpace(string(b)), 10, 64)
		if err != nil || n <= 0 {
			return math.Inf(1)
		}
		return float64(n)
	}
}
