package engine

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
)

// Memory is what the kernel says this process occupies, in bytes.
type Memory struct {
	RSS  int64 `json:"rss"`  // resident now (VmRSS)
	Peak int64 `json:"peak"` // largest RSS since the start or ResetPeakMemory (VmHWM)
	Anon int64 `json:"anon"` // resident and not backed by a file (RssAnon): mapped weights are not in it
}

const procStatus = "/proc/self/status"

// ReadMemory returns the process's memory. Where the system does not tell (no
// /proc) the error is the reason to report beside a null: it wraps
// ErrUnavailable.
func ReadMemory() (Memory, error) {
	f, err := os.Open(procStatus)
	if err != nil {
		return Memory{}, fmt.Errorf("%w: memory of the process cannot be read: no %s on this system", ErrUnavailable, procStatus)
	}
	defer f.Close()
	return parseStatus(f)
}

// ResetPeakMemory makes the peak start again from the current RSS
// (/proc/self/clear_refs, proc_pid_clear_refs(5)), so that two models in one
// process can be told apart.
func ResetPeakMemory() error {
	if err := os.WriteFile("/proc/self/clear_refs", []byte("5"), 0); err != nil {
		return fmt.Errorf("%w: peak memory cannot be reset on this system: %w", ErrUnavailable, errors.Unwrap(err))
	}
	return nil
}

// maxStatusBytes bounds what is read of /proc/self/status (about 1.5 kB).
const maxStatusBytes = 1 << 16

func parseStatus(r io.Reader) (Memory, error) {
	var m Memory
	want := map[string]*int64{"VmRSS": &m.RSS, "VmHWM": &m.Peak, "RssAnon": &m.Anon}
	sc := bufio.NewScanner(io.LimitReader(r, maxStatusBytes))
	for sc.Scan() {
		key, rest, _ := strings.Cut(sc.Text(), ":")
		p, ok := want[key]
		if !ok {
			continue
		}
		f := strings.Fields(rest)
		if len(f) != 2 || f[1] != "kB" {
			return Memory{}, fmt.Errorf("%w: %s has %q, expected a number of kB", ErrUnavailable, key, rest)
		}
		kb, err := strconv.ParseInt(f[0], 10, 64)
		if err != nil || kb < 0 || kb > 1<<50 {
			return Memory{}, fmt.Errorf("%w: %s has %q, expected a number of kB", ErrUnavailable, key, rest)
		}
		*p = kb << 10
		delete(want, key)
	}
	if m.RSS == 0 || m.Peak == 0 {
		return Memory{}, fmt.Errorf("%w: the system's process status has no VmRSS or VmHWM", ErrUnavailable)
	}
	return m, nil
}
