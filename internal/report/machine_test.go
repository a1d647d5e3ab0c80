package report

import (
	"bufio"
	"os"
	"runtime"
	"slices"
	"strings"
	"testing"
)

// TestThisMachine compares with what the kernel says.
func TestThisMachine(t *testing.T) {
	m := ThisMachine("engine 1", "v1", 2)
	if m.CPU == "" || m.Cores < 1 || m.Threads != 2 || m.OS != runtime.GOOS+"/"+runtime.GOARCH || m.Engine != "engine 1" || m.Fewbit != "v1" {
		t.Errorf("got %+v", m)
	}
	if runtime.GOARCH != "amd64" {
		t.Skip("the names of the flags are compared on amd64 only")
	}
	f, err := os.Open("/proc/cpuinfo")
	if err != nil {
		t.Skipf("nothing to compare with: %v", err)
	}
	defer f.Close()
	sc := bufio.NewScanner(f)
	for sc.Scan() {
		key, val, _ := strings.Cut(sc.Text(), ":")
		if strings.TrimSpace(key) != "flags" {
			continue
		}
		flags := strings.Fields(val)
		for _, s := range instructionSets {
			if got, want := slices.Contains(m.Flags, s.name), slices.Contains(flags, s.name); got != want {
				t.Errorf("%s: %v, the kernel says %v", s.name, got, want)
			}
		}
		return
	}
	t.Skip("the kernel lists no flags")
}
