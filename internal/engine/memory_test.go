package engine

import (
	"errors"
	"os"
	"strings"
	"testing"
)

func TestParseStatus(t *testing.T) {
	const good = "Name:\tx\nVmHWM:\t  2048 kB\nVmRSS:\t  1024 kB\nRssAnon:\t   512 kB\n"
	m, err := parseStatus(strings.NewReader(good))
	if err != nil || m != (Memory{RSS: 1 << 20, Peak: 2 << 20, Anon: 512 << 10}) {
		t.Fatalf("got %+v, %v", m, err)
	}
	for _, bad := range []string{"", "VmRSS:\n", "VmRSS: x kB\nVmHWM: 1 kB\n", "VmRSS: 9999999999999999999 kB\n", "VmRSS: 12 MB\n"} {
		if _, err := parseStatus(strings.NewReader(bad)); !errors.Is(err, ErrUnavailable) {
			t.Errorf("%q: got %v, want ErrUnavailable", bad, err)
		}
	}
}

func TestReadMemoryGrows(t *testing.T) {
	if _, err := os.Stat(procStatus); err != nil {
		t.Skipf("no %s here", procStatus)
	}
	before, err := ReadMemory()
	if err != nil {
		t.Fatal(err)
	}
	const size = 64 << 20
	b := make([]byte, size)
	for i := 0; i < size; i += 4096 {
		b[i] = 1
	}
	after, err := ReadMemory()
	if err != nil {
		t.Fatal(err)
	}
	if got := after.RSS - before.RSS; got < size*9/10 {
		t.Errorf("RSS grew by %d bytes after touching %d", got, size)
	}
	if after.Peak < after.RSS {
		t.Errorf("peak %d below RSS %d", after.Peak, after.RSS)
	}
	_ = b[0]
	if err := ResetPeakMemory(); err != nil && !errors.Is(err, ErrUnavailable) {
		t.Error(err)
	}
}
