package eval

import (
	"bufio"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
)

// Shares above which a latency measurement is called disturbed.
const (
	stolenWarn = 0.02 // by the hypervisor
	othersWarn = 0.25 // by other processes
)

// Noise says what else the machine did while latency was measured. A field is
// nil where the system does not tell; Reason then says why.
type Noise struct {
	// Load1 is the one-minute load average at the end.
	Load1 *float64 `json:"load1"`
	// Stolen is the share 0..1 of all CPU time that the hypervisor took.
	Stolen *float64 `json:"stolen"`
	// Others is the share 0..1 of all CPU time that other processes used.
	Others *float64 `json:"others"`
	Reason string   `json:"reason,omitempty"`
}

// Warnings names each disturbance large enough to distrust the numbers.
func (n Noise) Warnings() []string {
	var w []string
	if n.Stolen != nil && *n.Stolen > stolenWarn {
		w = append(w, fmt.Sprintf("the hypervisor took %.0f %% of the CPU time during the latency measurement", 100**n.Stolen))
	}
	if n.Others != nil && *n.Others > othersWarn {
		w = append(w, fmt.Sprintf("other processes used %.0f %% of the CPU time during the latency measurement", 100**n.Others))
	}
	return w
}

// cpuTimes are the counters of /proc/stat's first line, in clock ticks.
type cpuTimes struct{ total, idle, stolen uint64 }

// snapshot is the state of the machine at one moment.
type snapshot struct {
	load   *float64
	cpu    *cpuTimes
	own    float64 // CPU seconds this process has used
	reason string
}

// clockTick is USER_HZ: Linux shows 1/100 s to user space on every
// architecture that Go supports (proc(5), time(7)).
const clockTick = 100

func readNoise() snapshot {
	s := snapshot{own: ownCPUSeconds()}
	var why []string
	if l, err := parseFile("/proc/loadavg", parseLoad); err != nil {
		why = append(why, "load average: "+err.Error())
	} else {
		s.load = &l
	}
	if c, err := parseFile("/proc/stat", parseStat); err != nil {
		why = append(why, "CPU times: "+err.Error())
	} else {
		s.cpu = &c
	}
	s.reason = strings.Join(why, "; ")
	return s
}

func noiseBetween(a, b snapshot) Noise {
	n := Noise{Load1: b.load, Reason: b.reason}
	if a.cpu == nil || b.cpu == nil {
		return n
	}
	if b.cpu.total <= a.cpu.total || b.cpu.idle < a.cpu.idle || b.cpu.stolen < a.cpu.stolen {
		n.Reason = "CPU times: the measurement was shorter than a clock tick"
		return n
	}
	total := float64(b.cpu.total - a.cpu.total)
	stolen := float64(b.cpu.stolen-a.cpu.stolen) / total
	busy := total - float64(b.cpu.idle-a.cpu.idle) - float64(b.cpu.stolen-a.cpu.stolen)
	others := min(1, max(0, (busy-(b.own-a.own)*clockTick)/total))
	n.Stolen, n.Others = &stolen, &others
	return n
}

func parseFile[T any](path string, parse func(io.Reader) (T, error)) (T, error) {
	var zero T
	f, err := os.Open(path)
	if err != nil {
		return zero, err
	}
	defer f.Close()
	return parse(io.LimitReader(f, 1<<20))
}

// parseLoad reads /proc/loadavg: "0.20 0.18 0.12 1/80 11206".
func parseLoad(r io.Reader) (float64, error) {
	b, err := io.ReadAll(r)
	if err != nil {
		return 0, err
	}
	f := strings.Fields(string(b))
	if len(f) == 0 {
		return 0, fmt.Errorf("empty")
	}
	return strconv.ParseFloat(f[0], 64)
}

// parseStat reads the "cpu" line of /proc/stat: user nice system idle iowait
// irq softirq steal guest guest_nice (proc(5)). guest is part of user already.
func parseStat(r io.Reader) (cpuTimes, error) {
	sc := bufio.NewScanner(r)
	for sc.Scan() {
		f := strings.Fields(sc.Text())
		if len(f) < 5 || f[0] != "cpu" {
			continue
		}
		var t cpuTimes
		for i, s := range f[1:min(len(f), 9)] {
			v, err := strconv.ParseUint(s, 10, 64)
			if err != nil {
				return t, err
			}
			t.total += v
			switch i {
			case 3, 4:
				t.idle += v
			case 7:
				t.stolen = v
			}
		}
		return t, nil
	}
	if err := sc.Err(); err != nil {
		return cpuTimes{}, err
	}
	return cpuTimes{}, fmt.Errorf("no cpu line")
}
