//go:build unix

package eval

import "golang.org/x/sys/unix"

// ownCPUSeconds returns the CPU time of this process, all threads.
func ownCPUSeconds() float64 {
	var u unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &u); err != nil {
		return 0
	}
	return float64(u.Utime.Nano()+u.Stime.Nano()) / 1e9
}
