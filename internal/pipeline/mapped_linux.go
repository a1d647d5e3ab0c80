package pipeline

import (
	"bufio"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// dropMapped gives back the pages of the files below dir that this process has
// mapped and not written to. They stay in the page cache and are mapped again
// where they are touched: embeddings, of which each text reads other rows, would
// otherwise add up to the whole table. The engine maps weights private and
// writable, so a mapping that holds a page of its own (Anonymous) is left alone.
// What cannot be done is left. No run may be under way.
func dropMapped(dir string) {
	f, err := os.Open("/proc/self/smaps") // proc_pid_smaps(5)
	if err != nil {
		return
	}
	defer f.Close()
	var lo, hi uint64
	lines := bufio.NewScanner(f)
	for lines.Scan() {
		line := lines.Text()
		fields := strings.Fields(line)
		switch {
		case len(fields) > 1 && !strings.HasSuffix(fields[0], ":"):
			// 7f2c00000000-7f2c10000000 rw-p 00001000 fe:00 131 /path (deleted)
			lo, hi = 0, 0
			if at := strings.IndexByte(line, '/'); at >= 0 && strings.HasPrefix(line[at:], dir+"/") {
				lo, hi = addresses(fields[0])
			}
		case hi > lo && len(fields) == 3 && fields[0] == "Anonymous:" && fields[1] == "0":
			_, _, _ = unix.Syscall(unix.SYS_MADVISE, uintptr(lo), uintptr(hi-lo), unix.MADV_DONTNEED)
		}
	}
}

// addresses reads "7f2c00000000-7f2c10000000"; zeros when it is something else.
func addresses(s string) (lo, hi uint64) {
	from, to, _ := strings.Cut(s, "-")
	lo, err1 := strconv.ParseUint(from, 16, 64)
	hi, err2 := strconv.ParseUint(to, 16, 64)
	if err1 != nil || err2 != nil {
		return 0, 0
	}
	return lo, hi
}
