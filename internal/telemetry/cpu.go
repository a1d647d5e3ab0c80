package telemetry

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path"
	"runtime"
	"strconv"
	"strings"
	"time"
)

// maxSensorFile bounds what is read from one file of /sys or /proc.
const maxSensorFile = 64 << 10

// CPU is the state of the machine's processors.
type CPU struct {
	Cores int `json:"cores" doc:"logical processors this process may use"`
	// QuotaCores is the cgroup's limit; null when there is none.
	QuotaCores   *float64 `json:"quota_cores"`
	Load1        *float64 `json:"load_1m"`
	Load5        *float64 `json:"load_5m"`
	Load15       *float64 `json:"load_15m"`
	PowerW       *float64 `json:"power_w" doc:"power of all packages (RAPL), mean of power_window_s"`
	PowerWindowS *float64 `json:"power_window_s" doc:"time between the two readings that power_w is from"`
	EnergyJ      *float64 `json:"energy_j" doc:"energy of all packages (RAPL) since this server started"`
	TemperatureC *float64 `json:"temperature_c" doc:"hottest package"`
	Reasons      Reasons  `json:"reasons,omitempty" doc:"why a field is null, by its name"`
}

// Process is the state of this process.
type Process struct {
	RSSBytes   *int64  `json:"rss_bytes" doc:"resident memory"`
	Goroutines int     `json:"goroutines"`
	Reasons    Reasons `json:"reasons,omitempty" doc:"why a field is null, by its name"`
}

// raplState keeps the energy counters of the sample before.
type raplState struct {
	at    time.Time
	last  map[string]uint64 // microjoules, by domain
	total float64           // joules since the first sample
	power *float64          // of the newest pair of samples
	over  *float64          // seconds between them
}

func readCPU(sys, proc fs.FS, now time.Time, st *raplState) CPU {
	c := CPU{Cores: runtime.NumCPU()}
	if q, err := readWith(sys, "fs/cgroup/cpu.max", parseCPUMax); err != nil {
		c.Reasons.set("quota_cores", "no cgroup v2 processor limit can be read")
	} else if c.QuotaCores = q; q == nil {
		c.Reasons.set("quota_cores", "no limit is set")
	}
	if l, err := readWith(proc, "loadavg", parseLoadavg); err != nil {
		for _, f := range []string{"load_1m", "load_5m", "load_15m"} {
			c.Reasons.set(f, "load average: "+reasonOf(err))
		}
	} else {
		c.Load1, c.Load5, c.Load15 = &l[0], &l[1], &l[2]
	}
	if err := st.update(sys, now); err != nil {
		c.Reasons.set("power_w", err.Error())
		c.Reasons.set("power_window_s", err.Error())
		c.Reasons.set("energy_j", err.Error())
	} else {
		total := st.total
		c.EnergyJ = &total
		if c.PowerW, c.PowerWindowS = st.power, st.over; st.power == nil {
			const wait = "two samples are needed, the second follows within seconds"
			c.Reasons.set("power_w", wait)
			c.Reasons.set("power_window_s", wait)
		}
	}
	if t, err := packageTemperature(sys); err != nil {
		c.Reasons.set("temperature_c", err.Error())
	} else {
		c.TemperatureC = &t
	}
	return c
}

func readProcess(proc fs.FS) Process {
	p := Process{Goroutines: runtime.NumGoroutine()}
	if n, err := readWith(proc, "self/status", parseRSS); err != nil {
		p.Reasons.set("rss_bytes", "resident memory: "+reasonOf(err))
	} else {
		p.RSSBytes = &n
	}
	return p
}

// readWith opens a file and hands at most maxSensorFile bytes to parse.
func readWith[T any](fsys fs.FS, name string, parse func(io.Reader) (T, error)) (T, error) {
	f, err := fsys.Open(name)
	if err != nil {
		var zero T
		return zero, err
	}
	defer f.Close()
	return parse(io.LimitReader(f, maxSensorFile))
}

// reasonOf words an error without paths.
func reasonOf(err error) string {
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return "not provided by this system"
	case errors.Is(err, fs.ErrPermission):
		return "permission denied"
	}
	var pe *fs.PathError
	if errors.As(err, &pe) {
		return pe.Err.Error()
	}
	return err.Error()
}

// parseUint reads one unsigned decimal number.
func parseUint(r io.Reader) (uint64, error) {
	b, err := io.ReadAll(r)
	if err != nil {
		return 0, err
	}
	n, err := strconv.ParseUint(string(bytes.TrimSpace(b)), 10, 64)
	if err != nil {
		return 0, errors.New("no decimal number where one was expected")
	}
	return n, nil
}

func parseInt(r io.Reader) (int64, error) {
	b, err := io.ReadAll(r)
	if err != nil {
		return 0, err
	}
	n, err := strconv.ParseInt(string(bytes.TrimSpace(b)), 10, 64)
	if err != nil {
		return 0, errors.New("no decimal number where one was expected")
	}
	return n, nil
}

func parseLine(r io.Reader) (string, error) {
	b, err := io.ReadAll(r)
	line, _, _ := strings.Cut(string(b), "\n")
	return strings.TrimSpace(line), err
}

// parseCPUMax reads cgroup v2's cpu.max: "QUOTA PERIOD" in microseconds, QUOTA
// "max" for no limit (nil).
func parseCPUMax(r io.Reader) (*float64, error) {
	line, err := parseLine(r)
	if err != nil {
		return nil, err
	}
	quota, period, ok := strings.Cut(line, " ")
	if !ok {
		return nil, fmt.Errorf("cpu.max holds %.40q, expected two fields", line)
	}
	if quota == "max" {
		return nil, nil
	}
	q, err1 := strconv.ParseUint(quota, 10, 63)
	p, err2 := strconv.ParseUint(period, 10, 63)
	if err1 != nil || err2 != nil || p == 0 {
		return nil, fmt.Errorf("cpu.max holds %.40q, expected two numbers", line)
	}
	cores := float64(q) / float64(p)
	return &cores, nil
}

// parseLoadavg reads the first three fields of /proc/loadavg (proc(5)).
func parseLoadavg(r io.Reader) (l [3]float64, err error) {
	line, err := parseLine(r)
	if err != nil {
		return l, err
	}
	f := strings.Fields(line)
	if len(f) < 3 {
		return l, fmt.Errorf("%.40q has fewer than three fields", line)
	}
	for i := range l {
		if l[i], err = strconv.ParseFloat(f[i], 64); err != nil || !(l[i] >= 0) || l[i] > 1e9 {
			return l, fmt.Errorf("%.40q is no load average", f[i])
		}
	}
	return l, nil
}

// parseRSS reads VmRSS from /proc/self/status (proc(5)), in bytes.
func parseRSS(r io.Reader) (int64, error) {
	s := bufio.NewScanner(r)
	for s.Scan() {
		rest, ok := strings.CutPrefix(s.Text(), "VmRSS:")
		if !ok {
			continue
		}
		kb, ok := strings.CutSuffix(strings.TrimSpace(rest), " kB")
		n, err := strconv.ParseInt(strings.TrimSpace(kb), 10, 40)
		if !ok || err != nil || n < 0 {
			return 0, fmt.Errorf("VmRSS holds %.40q, expected kB", rest)
		}
		return n << 10, nil
	}
	if err := s.Err(); err != nil {
		return 0, err
	}
	return 0, errors.New("no VmRSS line")
}

// update reads the package energy counters of the powercap class
// (Documentation/power/powercap in the Linux source): energy_uj counts
// microjoules and wraps at max_energy_range_uj.
func (st *raplState) update(sys fs.FS, now time.Time) error {
	entries, err := fs.ReadDir(sys, "class/powercap")
	if err != nil {
		return fmt.Errorf("RAPL energy counters: %s (class powercap)", reasonOf(err))
	}
	next := map[string]uint64{}
	var joules float64
	complete := st.last != nil
	for _, e := range entries {
		// intel-rapl:0 is a package, intel-rapl:0:1 a part of it; AMD uses the
		// same names; intel-rapl-mmio:0 is the same package seen twice.
		zone := e.Name()
		if !strings.HasPrefix(zone, "intel-rapl:") || strings.Count(zone, ":") != 1 {
			continue
		}
		dir := path.Join("class/powercap", zone)
		name, err := readWith(sys, path.Join(dir, "name"), parseLine)
		if err != nil || !strings.HasPrefix(name, "package") {
			continue
		}
		uj, err := readWith(sys, path.Join(dir, "energy_uj"), parseUint)
		if err != nil {
			st.last, st.power, st.over = nil, nil, nil
			if errors.Is(err, fs.ErrPermission) {
				return errors.New("RAPL energy counters: permission denied; let the server's user read energy_uj of class powercap (only root may by default)")
			}
			return fmt.Errorf("RAPL energy counters: %s", reasonOf(err))
		}
		next[zone] = uj
		before, ok := st.last[zone]
		if !ok {
			complete = false
			continue
		}
		delta := uj - before
		if uj < before {
			wrap, err := readWith(sys, path.Join(dir, "max_energy_range_uj"), parseUint)
			if err != nil || wrap < before {
				complete = false
				continue
			}
			delta = wrap - before + uj
		}
		joules += float64(delta) / 1e6
	}
	if len(next) == 0 {
		return errors.New("RAPL energy counters: this system has no package domain")
	}
	seconds := now.Sub(st.at).Seconds()
	st.power, st.over = nil, nil
	if complete && seconds > 0 {
		watts := joules / seconds
		st.power, st.over = &watts, &seconds
		st.total += joules
	}
	st.last, st.at = next, now
	return nil
}

// packageTemperature returns the hottest processor package in degrees Celsius,
// from hwmon (Documentation/hwmon/sysfs-interface: temp*_input in
// millidegrees) or, failing that, the thermal zone x86_pkg_temp.
func packageTemperature(sys fs.FS) (float64, error) {
	hottest, found := 0.0, false
	see := func(file string) {
		m, err := readWith(sys, file, parseInt)
		if c := float64(m) / 1000; err == nil && c > -100 && c < 200 {
			if !found || c > hottest {
				hottest = c
			}
			found = true
		}
	}
	chips, hwErr := fs.ReadDir(sys, "class/hwmon")
	for _, chip := range chips {
		dir := path.Join("class/hwmon", chip.Name())
		name, err := readWith(sys, path.Join(dir, "name"), parseLine)
		if err != nil {
			continue
		}
		switch name {
		case "coretemp", "k10temp", "zenpower":
		case "cpu_thermal", "soc_thermal":
			see(path.Join(dir, "temp1_input"))
			continue
		default:
			continue
		}
		labels, _ := fs.Glob(sys, path.Join(dir, "temp*_label"))
		for _, l := range labels {
			label, err := readWith(sys, l, parseLine)
			if err == nil && (strings.HasPrefix(label, "Package id") || label == "Tdie" || label == "Tctl") {
				see(strings.TrimSuffix(l, "_label") + "_input")
			}
		}
	}
	if found {
		return hottest, nil
	}
	zones, zoneErr := fs.Glob(sys, "class/thermal/thermal_zone*/type")
	for _, z := range zones {
		if kind, err := readWith(sys, z, parseLine); err == nil && (kind == "x86_pkg_temp" || kind == "cpu-thermal") {
			see(path.Join(path.Dir(z), "temp"))
		}
	}
	if found {
		return hottest, nil
	}
	if hwErr != nil && !errors.Is(hwErr, fs.ErrNotExist) {
		return 0, fmt.Errorf("processor temperature: %s", reasonOf(hwErr))
	}
	if zoneErr != nil {
		return 0, fmt.Errorf("processor temperature: %s", reasonOf(zoneErr))
	}
	return 0, errors.New("processor temperature: no sensor of the processor is visible (virtual machines and containers often hide it)")
}
