package engine

import (
	"testing"
	"testing/fstest"
)

func TestTotalMemory(t *testing.T) {
	const meminfo = "MemTotal:       24576 kB\nMemFree:           10 kB\n"
	for name, tc := range map[string]struct {
		fs   fstest.MapFS
		want int64 // 0: unknown
	}{
		"nothing known": {fstest.MapFS{}, 0},
		"the machine's": {fstest.MapFS{"proc/meminfo": file(meminfo)}, 24 << 20},
		"a group's": {fstest.MapFS{"proc/meminfo": file(meminfo), "proc/self/cgroup": file("0::/a/b\n"), "proc/self/mountinfo": file(mountsV2),
			"sys/fs/cgroup/a/b/memory.max": file("max\n"), "sys/fs/cgroup/a/memory.max": file("1048576\n")}, 1 << 20},
		"a group allows more than there is": {fstest.MapFS{"proc/meminfo": file(meminfo), "proc/self/cgroup": file("0::/\n"), "proc/self/mountinfo": file(mountsV2),
			"sys/fs/cgroup/memory.max": file("1099511627776\n")}, 24 << 20},
		"a group's, version 1": {fstest.MapFS{"proc/meminfo": file(meminfo), "proc/self/cgroup": file("3:memory:/a\n"), "proc/self/mountinfo": file(mountsV1),
			"sys/fs/cgroup/memory/a/memory.limit_in_bytes": file("9223372036854771712\n"), "sys/fs/cgroup/memory/memory.limit_in_bytes": file("2097152\n")}, 2 << 20},
		"nonsense": {fstest.MapFS{"proc/meminfo": file("MemTotal: -5 kB\nMemTotal: many kB\n")}, 0},
	} {
		if got, ok := totalMemory(tc.fs); got != tc.want || ok != (tc.want > 0) {
			t.Errorf("%s: %d, %v, want %d", name, got, ok, tc.want)
		}
	}
}
