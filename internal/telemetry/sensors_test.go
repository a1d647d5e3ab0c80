package telemetry

import (
	"context"
	"encoding/binary"
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
	"github.com/NVIDIA/go-nvml/pkg/nvml/mock/dgxh200"
	"github.com/NVIDIA/go-nvml/pkg/nvml/mock/server"
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

// fieldValue makes an answer of GetFieldValues, in milliwatts.
func fieldValue(f *nvml.FieldValue, mw uint32, r nvml.Return) {
	f.NvmlReturn, f.ValueType = uint32(r), uint32(nvml.VALUE_TYPE_UNSIGNED_INT)
	binary.NativeEndian.PutUint32(f.Value[:], mw)
}

// h200 gives every GPU of NVIDIA's own mock server the readings of one at work.
func h200(instant nvml.Return) *server.Server {
	s := dgxh200.New()
	for i := range s.Devices {
		d := &s.Devices[i].(*server.Device).Device
		d.GetFieldValuesFunc = func(fs []nvml.FieldValue) nvml.Return {
			for i := range fs {
				switch fs[i].FieldId {
				case nvml.FI_DEV_POWER_INSTANT:
					fieldValue(&fs[i], 512_500, instant)
				case nvml.FI_DEV_POWER_AVERAGE:
					fieldValue(&fs[i], 498_000, instant)
				}
			}
			return nvml.SUCCESS
		}
		d.GetPowerUsageFunc = func() (uint32, nvml.Return) { return 400_000, nvml.SUCCESS }
		d.GetEnforcedPowerLimitFunc = func() (uint32, nvml.Return) { return 700_000, nvml.SUCCESS }
		d.GetTotalEnergyConsumptionFunc = func() (uint64, nvml.Return) { return 0, nvml.ERROR_NOT_SUPPORTED }
		d.GetTemperatureFunc = func(nvml.TemperatureSensors) (uint32, nvml.Return) { return 61, nvml.SUCCESS }
		d.GetClockInfoFunc = func(k nvml.ClockType) (uint32, nvml.Return) {
			return map[nvml.ClockType]uint32{nvml.CLOCK_SM: 1755, nvml.CLOCK_MEM: 3201}[k], nvml.SUCCESS
		}
		d.GetUtilizationRatesFunc = func() (nvml.Utilization, nvml.Return) {
			return nvml.Utilization{Gpu: 97, Memory: 40}, nvml.SUCCESS
		}
		d.GetCurrentClocksThrottleReasonsFunc = func() (uint64, nvml.Return) {
			return nvml.ClocksThrottleReasonSwPowerCap | nvml.ClocksThrottleReasonGpuIdle, nvml.SUCCESS
		}
	}
	return s
}

func TestGPU(t *testing.T) {
	c := New(Options{Sys: fstest.MapFS{}, Proc: fstest.MapFS{}, GPU: NewNVML(h200(nvml.SUCCESS))})
	l := c.Model("m", "1", time.Second)
	c.Sample(time.Now())
	s := c.Snapshot()
	if len(s.GPU) != 8 || s.Reasons["gpu"] != "" {
		t.Fatalf("%d GPUs, reasons %v", len(s.GPU), s.Reasons)
	}
	g := s.GPU[3]
	for name, c := range map[string]struct {
		got  *float64
		want float64
	}{"power": {g.PowerW, 512.5}, "average": {g.PowerAverageW, 498}, "limit": {g.PowerLimitW, 700}, "temperature": {g.TemperatureC, 61}, "SM clock": {g.ClockSMMHz, 1755},
		"memory clock": {g.ClockMemoryMHz, 3201}, "utilization": {g.Utilization, .97}, "memory utilization": {g.MemoryUtilization, .4}} {
		if c.got == nil || *c.got != c.want {
			t.Errorf("%s is %v, want %v", name, c.got, c.want)
		}
	}
	if g.Index != 3 || g.Name == "" || g.UUID == "" || g.MemoryTotalBytes == nil || *g.MemoryTotalBytes < 100<<30 {
		t.Errorf("%+v", g)
	}
	if g.EnergyJ != nil || g.Reasons["energy_j"] != "not supported by this GPU" {
		t.Errorf("energy %v, reason %q; an unsupported counter is null", g.EnergyJ, g.Reasons["energy_j"])
	}
	if strings.Join(g.Throttle, ",") != "idle,power cap" {
		t.Errorf("throttle reasons %v", g.Throttle)
	}
	// What slows requests down is attached to the latency window; idling does not.
	if w := l.Snapshot(time.Now()).Windows["1m"]; strings.Join(w.GPUThrottle, ",") != "power cap" {
		t.Errorf("window has %v", w.GPUThrottle)
	}
}

func TestGPUWithoutInstantPower(t *testing.T) {
	gpus, err := NewNVML(h200(nvml.ERROR_NOT_SUPPORTED)).Read()
	if err != nil {
		t.Fatal(err)
	}
	if g := gpus[0]; g.PowerW == nil || *g.PowerW != 400 || g.PowerAverageW != nil || g.Reasons["power_average_w"] == "" {
		t.Errorf("%+v", g)
	}
}

func TestGPULost(t *testing.T) {
	s := h200(nvml.SUCCESS)
	s.DeviceGetHandleByIndexFunc = func(i int) (nvml.Device, nvml.Return) {
		if i == 1 {
			return nil, nvml.ERROR_GPU_IS_LOST
		}
		return s.Devices[i], nvml.SUCCESS
	}
	gpus, err := NewNVML(s).Read()
	if err != nil || len(gpus) != 8 || gpus[1].PowerW != nil || !strings.Contains(gpus[1].Reasons["all"], "lost") || gpus[2].PowerW == nil {
		t.Errorf("%v %+v", err, gpus[1])
	}
	b, err := json.Marshal(gpus[1])
	if err != nil || !strings.Contains(string(b), `"power_w":null`) {
		t.Errorf("%s", b)
	}
}

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
