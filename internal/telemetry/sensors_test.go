package telemetry

import (
	"context"
	"encoding/json"
	"errors"
	"io/fs"
	"math"
	"strings"
	"testing"
	"testing/fstest"
	"time"

	"github.com/NVIDIA/go-nvml/pkg/nvml"
	"github.com/NVIDIA/go-nvml/pkg/nvml/mock"
)

func file(s string) *fstest.MapFile { return &fstest.MapFile{Data: []byte(s)} }

// machine is a /sys with two packages, a core zone and a second view of one
// package that must not be counted twice.
func machine() fstest.MapFS {
	return fstest.MapFS{
		"class/powercap/intel-rapl:0/name":                file("package-0\n"),
		"class/powercap/intel-rapl:0/energy_uj":           file("1000000\n"),
		"class/powercap/intel-rapl:0/max_energy_range_uj": file("262143328850\n"),
		"class/powercap/intel-rapl:0:0/name":              file("core\n"),
		"class/powercap/intel-rapl:0:0/energy_uj":         file("999\n"),
		"class/powercap/intel-rapl:1/name":                file("package-1\n"),
		"class/powercap/intel-rapl:1/energy_uj":           file("262143000000\n"),
		"class/powercap/intel-rapl:1/max_energy_range_uj": file("262143328850\n"),
		"class/powercap/intel-rapl:2/name":                file("psys\n"),
		"class/powercap/intel-rapl:2/energy_uj":           file("5\n"),
		"class/powercap/intel-rapl-mmio:0/name":           file("package-0\n"),
		"class/powercap/intel-rapl-mmio:0/energy_uj":      file("7\n"),
		"class/hwmon/hwmon0/name":                         file("nvme\n"),
		"class/hwmon/hwmon0/temp1_input":                  file("90000\n"),
		"class/hwmon/hwmon0/temp1_label":                  file("Package id 9\n"),
		"class/hwmon/hwmon1/name":                         file("coretemp\n"),
		"class/hwmon/hwmon1/temp1_label":                  file("Package id 0\n"),
		"class/hwmon/hwmon1/temp1_input":                  file("51000\n"),
		"class/hwmon/hwmon1/temp2_label":                  file("Core 0\n"),
		"class/hwmon/hwmon1/temp2_input":                  file("99000\n"),
		"class/hwmon/hwmon2/name":                         file("coretemp\n"),
		"class/hwmon/hwmon2/temp1_label":                  file("Package id 1\n"),
		"class/hwmon/hwmon2/temp1_input":                  file("54500\n"),
		"fs/cgroup/cpu.max":                               file("150000 100000\n"),
	}
}

func procFS() fstest.MapFS {
	return fstest.MapFS{"loadavg": file("0.52 1.58 2.05 3/467 31337\n"), "self/status": file("Name:\tfewbit\nVmPeak:\t  999 kB\nVmRSS:\t  12345 kB\nThreads:\t9\n")}
}

func TestCPU(t *testing.T) {
	sys := machine()
	c := New(Options{Sys: sys, Proc: procFS(), GPU: absent{}})
	start := time.Now()
	c.Sample(start)
	if c.cpu.PowerW != nil || !strings.Contains(c.cpu.Reasons["power_w"], "two samples") {
		t.Errorf("power after one sample: %v %v", c.cpu.PowerW, c.cpu.Reasons)
	}
	sys["class/powercap/intel-rapl:0/energy_uj"] = file("61000000\n") // +60 J
	sys["class/powercap/intel-rapl:1/energy_uj"] = file("39671150\n") // wraps: +40 J
	c.Sample(start.Add(2 * time.Second))
	near := func(name string, got *float64, want float64) {
		t.Helper()
		if got == nil || math.Abs(*got-want) > 1e-9*math.Abs(want) {
			t.Errorf("%s is %v, want %v (%v)", name, got, want, c.cpu.Reasons)
		}
	}
	near("power", c.cpu.PowerW, 50)
	near("energy", c.cpu.EnergyJ, 100)
	near("temperature", c.cpu.TemperatureC, 54.5)
	near("quota", c.cpu.QuotaCores, 1.5)
	near("load 15", c.cpu.Load15, 2.05)
	if c.process.RSSBytes == nil || *c.process.RSSBytes != 12345<<10 {
		t.Errorf("RSS %v", c.process.RSSBytes)
	}
}

// denied is a /sys whose energy counters only root may read.
type denied struct{ fstest.MapFS }

func (d denied) Open(name string) (fs.File, error) {
	if strings.HasSuffix(name, "energy_uj") {
		return nil, &fs.PathError{Op: "open", Path: "/sys/" + name, Err: fs.ErrPermission}
	}
	return d.MapFS.Open(name)
}

// What cannot be read is null with a reason, and never 0; the reason names no
// path.
func TestUnreadable(t *testing.T) {
	broken := machine()
	broken["class/powercap/intel-rapl:0/energy_uj"] = file("many\n")
	for f := range broken {
		if strings.Contains(f, "temp") {
			broken[f] = file("hot\n")
		}
	}
	for name, o := range map[string]Options{
		"nothing":  {Sys: fstest.MapFS{}, Proc: fstest.MapFS{}},
		"denied":   {Sys: denied{machine()}, Proc: procFS()},
		"nonsense": {Sys: broken, Proc: fstest.MapFS{"loadavg": file("high\n"), "self/status": file("VmRSS: lots\n")}},
	} {
		o.GPU = absent{}
		b, err := json.Marshal(New(o).Snapshot())
		if err != nil {
			t.Fatal(err)
		}
		var v map[string]any
		if err := json.Unmarshal(b, &v); err != nil {
			t.Fatal(err)
		}
		nulls := 0
		for where, o := range map[string]map[string]any{"": v, "cpu": v["cpu"].(map[string]any), "process": v["process"].(map[string]any)} {
			reasons, _ := o["reasons"].(map[string]any)
			for field, value := range o {
				if value != nil {
					continue
				}
				nulls++
				reason, _ := reasons[field].(string)
				if reason == "" || strings.Contains(reason, "/sys") || strings.Contains(reason, "/proc") {
					t.Errorf("%s: %s.%s is null, reason %q", name, where, field, reason)
				}
			}
		}
		if nulls == 0 || v["cpu"].(map[string]any)["power_w"] != nil {
			t.Errorf("%s: %s", name, b)
		}
	}
}

type absent struct{}

func (absent) Open() error          { return errors.New("no driver") }
func (absent) Read() ([]GPU, error) { panic("read without a driver") }
func (absent) Close() error         { panic("closed without a driver") }

func TestNVMLAbsent(t *testing.T) {
	for r, want := range map[nvml.Return]string{nvml.ERROR_LIBRARY_NOT_FOUND: "no NVIDIA driver", nvml.ERROR_DRIVER_NOT_LOADED: "not loaded", nvml.ERROR_NO_PERMISSION: "no permission", nvml.ERROR_UNKNOWN: "status"} {
		lib := &mock.Interface{InitFunc: func() nvml.Return { return r }}
		c := New(Options{Sys: fstest.MapFS{}, Proc: fstest.MapFS{}, GPU: NewNVML(lib)})
		for range 3 {
			c.Sample(time.Now())
		}
		if s := c.Snapshot(); s.GPU != nil || !strings.Contains(s.Reasons["gpu"], want) {
			t.Errorf("%v: %v", r, s.Reasons)
		}
		if n := len(lib.InitCalls()); n != 1 {
			t.Errorf("the missing driver was looked for %d times within a second", n)
		}
	}
	lib := &mock.Interface{InitFunc: func() nvml.Return { return nvml.SUCCESS }, ShutdownFunc: func() nvml.Return { return nvml.SUCCESS }, DeviceGetCountFunc: func() (int, nvml.Return) { return 0, nvml.SUCCESS }}
	c := New(Options{Sys: fstest.MapFS{}, Proc: fstest.MapFS{}, GPU: NewNVML(lib)})
	if s := c.Snapshot(); s.GPU != nil || !strings.Contains(s.Reasons["gpu"], "sees no GPU") {
		t.Errorf("%v", s.Reasons)
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	c.Run(ctx)
	if len(lib.ShutdownCalls()) != 1 {
		t.Error("Run did not let go of the driver")
	}
}

// This machine, whatever it has: no panic, every null has a reason.
func TestThisMachine(t *testing.T) {
	s := New(Options{}).Snapshot()
	if s.CPU.Cores < 1 {
		t.Errorf("%+v", s.CPU)
	}
	if s.GPU == nil && s.Reasons["gpu"] == "" {
		t.Error("no GPU and no reason")
	}
	for field, v := range map[string]*float64{"power_w": s.CPU.PowerW, "temperature_c": s.CPU.TemperatureC, "load_1m": s.CPU.Load1, "quota_cores": s.CPU.QuotaCores} {
		if v == nil && s.CPU.Reasons[field] == "" {
			t.Errorf("%s is null without a reason", field)
		}
	}
	t.Logf("GPU: %s; CPU: %v", s.Reasons["gpu"], s.CPU.Reasons)
}

func TestModels(t *testing.T) {
	c := New(Options{Sys: fstest.MapFS{}, Proc: fstest.MapFS{}, GPU: absent{}})
	l := c.Model("b", "2", time.Second)
	if c.Model("b", "2", 2*time.Second) != l || l.Target() != 2*time.Second {
		t.Error("the same names must give the same recorder, with the new target")
	}
	c.Model("b", "10", 0)
	c.Model("a", "1", 0)
	var got []string
	for _, m := range c.Snapshot().Models {
		got = append(got, m.Name+m.Version)
	}
	if strings.Join(got, " ") != "a1 b2 b10" {
		t.Errorf("order %v", got)
	}
	c.Forget("a", "1")
	if n := len(c.Snapshot().Models); n != 2 {
		t.Errorf("%d models after one was forgotten", n)
	}
}

func FuzzSensorFiles(f *testing.F) {
	for _, s := range []string{"0.52 1.58 2.05 3/467 1\n", "max 100000\n", "150000 100000", "VmRSS:\t 1 kB\n", "-1\n", "18446744073709551616", "NaN NaN NaN"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		if q, err := parseCPUMax(strings.NewReader(s)); err == nil && q != nil && !(*q >= 0) {
			t.Fatalf("quota %v from %q", *q, s)
		}
		if l, err := parseLoadavg(strings.NewReader(s)); err == nil && !(l[0] >= 0 && l[1] >= 0 && l[2] >= 0) {
			t.Fatalf("load %v from %q", l, s)
		}
		if n, err := parseRSS(strings.NewReader(s)); err == nil && n < 0 {
			t.Fatalf("RSS %d from %q", n, s)
		}
		_, _ = parseUint(strings.NewReader(s))
		_, _ = parseInt(strings.NewReader(s))
		_, _ = parseLine(strings.NewReader(s))
	})
}
