package engine

import (
	"bufio"
	"bytes"
	"io/fs"
	"math"
	"os"
	"path"
	"runtime"
	"strconv"
	"strings"
)

// AvailableCPUs returns the number of processors this process may keep busy:
// the smaller of its affinity mask and the CPU quota of its control group
// (version 2 or 1, and of every group above it), at least 1.
//
// A fractional quota is rounded down: a pool one thread too large uses up the
// quota early in each period and is then stopped for the rest of it, which
// shows as latency spikes of up to 100 ms; the fraction left serves the rest
// of the process.
func AvailableCPUs() int { return availableCPUs(os.DirFS("/"), runtime.NumCPU()) }

// availableCPUs reads the control groups below root; affinity is what
// sched_getaffinity allows (runtime.NumCPU).
func availableCPUs(root fs.FS, affinity int) int {
	n := max(affinity, 1)
	if q := cpuQuota(root); q < float64(n) {
		n = max(int(q), 1)
	}
	return n
}

// maxCgroupDepth bounds how many parents of a control group are read.
const maxCgroupDepth = 64

// cpuQuota returns the processors that the tightest control group allows, +Inf
// when none limits or the files cannot be read.
func cpuQuota(root fs.FS) float64 {
	groups, err := fs.ReadFile(root, "proc/self/cgroup")
	if err != nil {
		return math.Inf(1)
	}
	mounts, err := fs.ReadFile(root, "proc/self/mountinfo")
	if err != nil {
		return math.Inf(1)
	}
	v2, v1 := cgroupPaths(groups, "cpu")
	q := math.Inf(1)
	for _, m := range parseMounts(mounts) {
		switch {
		case m.fstype == "cgroup2" && v2 != "":
			q = min(q, walkCgroup(root, m, v2, quotaV2))
		case m.fstype == "cgroup" && v1 != "" && m.hasOption("cpu"):
			q = min(q, walkCgroup(root, m, v1, quotaV1))
		}
	}
	return q
}

// cgroupPaths reads /proc/self/cgroup (cgroups(7)): lines of
// "id:controllers:path", version 2 having id 0 and no controllers. v1 is the
// group of that controller.
func cgroupPaths(b []byte, controller string) (v2, v1 string) {
	for line := range strings.Lines(string(b)) {
		f := strings.SplitN(strings.TrimSuffix(line, "\n"), ":", 3)
		if len(f) != 3 {
			continue
		}
		if f[0] == "0" && f[1] == "" {
			v2 = f[2]
		}
		for c := range strings.SplitSeq(f[1], ",") {
			if c == controller {
				v1 = f[2]
			}
		}
	}
	return v2, v1
}

type mount struct{ root, point, fstype, options string }

func (m mount) hasOption(o string) bool {
	for x := range strings.SplitSeq(m.options, ",") {
		if x == o {
			return true
		}
	}
	return false
}

// parseMounts reads /proc/self/mountinfo (proc_pid_mountinfo(5)):
// "36 35 98:0 /root /point opts optional... - fstype source superopts".
func parseMounts(b []byte) []mount {
	var ms []mount
	sc := bufio.NewScanner(bytes.NewReader(b))
	for sc.Scan() {
		left, right, ok := strings.Cut(sc.Text(), " - ")
		l, r := strings.Fields(left), strings.Fields(right)
		if !ok || len(l) < 5 || len(r) < 3 {
			continue
		}
		ms = append(ms, mount{root: l[3], point: l[4], fstype: r[0], options: r[2]})
	}
	return ms
}

// walkCgroup returns the smallest quota from group up to the mount's root.
func walkCgroup(root fs.FS, m mount, group string, quota func(fs.FS, string) float64) float64 {
	// Inside a container the mount may show only a part of the hierarchy.
	rel := group
	if m.root != "/" {
		rel = strings.TrimPrefix(group, m.root)
		if rel == group {
			rel = "/"
		}
	}
	q := math.Inf(1)
	rel = path.Clean("/" + rel)
	for range maxCgroupDepth {
		q = min(q, quota(root, strings.TrimPrefix(path.Join(m.point, rel), "/")))
		if rel == "/" {
			break
		}
		rel = path.Dir(rel)
	}
	return q
}

// quotaV2 reads cpu.max: "max 100000" or "150000 100000" (microseconds of
// quota and period).
func quotaV2(root fs.FS, dir string) float64 {
	b, err := fs.ReadFile(root, path.Join(dir, "cpu.max"))
	if err != nil {
		return math.Inf(1)
	}
	f := strings.Fields(string(b))
	if len(f) != 2 {
		return math.Inf(1)
	}
	return ratio(f[0], f[1])
}

// quotaV1 reads cpu.cfs_quota_us (-1 is unlimited) and cpu.cfs_period_us.
func quotaV1(root fs.FS, dir string) float64 {
	q, err := fs.ReadFile(root, path.Join(dir, "cpu.cfs_quota_us"))
	if err != nil {
		return math.Inf(1)
	}
	p, err := fs.ReadFile(root, path.Join(dir, "cpu.cfs_period_us"))
	if err != nil {
		return math.Inf(1)
	}
	return ratio(strings.TrimSpace(string(q)), strings.TrimSpace(string(p)))
}

func ratio(quota, period string) float64 {
	q, err := strconv.ParseInt(quota, 10, 64)
	if err != nil || q <= 0 {
		return math.Inf(1)
	}
	p, err := strconv.ParseInt(period, 10, 64)
	if err != nil || p <= 0 {
		return math.Inf(1)
	}
	return float64(q) / float64(p)
}
