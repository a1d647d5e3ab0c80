package engine

import (
	"math"
	"testing"
	"testing/fstest"
)

func file(s string) *fstest.MapFile { return &fstest.MapFile{Data: []byte(s)} }

const (
	mountsV2 = "31 24 0:27 / /sys/fs/cgroup rw,nosuid shared:9 - cgroup2 cgroup2 rw,nsdelegate\n"
	mountsV1 = "32 31 0:29 / /sys/fs/cgroup/cpu,cpuacct rw,relatime - cgroup cgroup rw,cpu,cpuacct\n" +
		"33 31 0:30 / /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory\n"
)

func TestAvailableCPUs(t *testing.T) {
	for _, tc := range []struct {
		name     string
		fs       fstest.MapFS
		affinity int
		want     int
	}{
		{"no proc", fstest.MapFS{}, 6, 6},
		{"affinity 0 is 1", fstest.MapFS{}, 0, 1},
		{"v2 unlimited", fstest.MapFS{
			"proc/self/cgroup": file("0::/\n"), "proc/self/mountinfo": file(mountsV2),
			"sys/fs/cgroup/cpu.max": file("max 100000\n")}, 4, 4},
		{"v2 quota", fstest.MapFS{
			"proc/self/cgroup": file("0::/a/b\n"), "proc/self/mountinfo": file(mountsV2),
			"sys/fs/cgroup/a/b/cpu.max": file("250000 100000\n")}, 8, 2},
		{"v2 the parent is tighter", fstest.MapFS{
			"proc/self/cgroup": file("0::/a/b\n"), "proc/self/mountinfo": file(mountsV2),
			"sys/fs/cgroup/a/b/cpu.max": file("400000 100000\n"),
			"sys/fs/cgroup/a/cpu.max":   file("300000 100000\n")}, 8, 3},
		{"v2 less than one", fstest.MapFS{
			"proc/self/cgroup": file("0::/a\n"), "proc/self/mountinfo": file(mountsV2),
			"sys/fs/cgroup/a/cpu.max": file("50000 100000\n")}, 8, 1},
		{"v2 affinity is tighter", fstest.MapFS{
			"proc/self/cgroup": file("0::/\n"), "proc/self/mountinfo": file(mountsV2),
			"sys/fs/cgroup/cpu.max": file("800000 100000\n")}, 2, 2},
		{"v1 quota, whole path not visible", fstest.MapFS{
			"proc/self/cgroup":                            file("4:cpu,cpuacct:/docker/abc\n3:memory:/docker/abc\n"),
			"proc/self/mountinfo":                         file("32 31 0:29 /docker/abc /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct\n"),
			"sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us":  file("200000\n"),
			"sys/fs/cgroup/cpu,cpuacct/cpu.cfs_period_us": file("100000\n")}, 8, 2},
		{"v1 unlimited", fstest.MapFS{
			"proc/self/cgroup": file("4:cpu,cpuacct:/\n"), "proc/self/mountinfo": file(mountsV1),
			"sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us":  file("-1\n"),
			"sys/fs/cgroup/cpu,cpuacct/cpu.cfs_period_us": file("100000\n")}, 8, 8},
		{"nonsense", fstest.MapFS{
			"proc/self/cgroup": file("x\n0::/../..\n::::\n"), "proc/self/mountinfo": file("a - b\n" + mountsV2),
			"sys/fs/cgroup/cpu.max": file("9e99 0 0\n")}, 3, 3},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if got := availableCPUs(tc.fs, tc.affinity); got != tc.want {
				t.Errorf("got %d CPUs, want %d", got, tc.want)
			}
		})
	}
	if AvailableCPUs() < 1 {
		t.Error("this machine has no CPU")
	}
}

func TestRatio(t *testing.T) {
	for _, tc := range []struct {
		q, p string
		want float64
	}{
		{"150000", "100000", 1.5}, {"max", "100000", math.Inf(1)}, {"-1", "1", math.Inf(1)}, {"1", "0", math.Inf(1)},
	} {
		if got := ratio(tc.q, tc.p); got != tc.want {
			t.Errorf("ratio(%s, %s) = %v, want %v", tc.q, tc.p, got, tc.want)
		}
	}
}
