package telemetry

import (
	"encoding/binary"
	"encoding/json"
	"maps"
	"strings"
	"testing"
	"testing/fstest"
	"time"

	"github.com/NVIDIA/go-nvml/pkg/nvml"
	"github.com/NVIDIA/go-nvml/pkg/nvml/mock/dgxa100"
	"github.com/NVIDIA/go-nvml/pkg/nvml/mock/dgxh100"
	"github.com/NVIDIA/go-nvml/pkg/nvml/mock/dgxh200"
	"github.com/NVIDIA/go-nvml/pkg/nvml/mock/server"
)

// answers fills in GetFieldValues: what is in neither map is not supported. v is
// by field, 32 bits wide; wide has the fields of 64 bits.
func answers(v map[uint32]uint32, wide map[uint32]uint64) func([]nvml.FieldValue) nvml.Return {
	return func(fs []nvml.FieldValue) nvml.Return {
		for i := range fs {
			f := &fs[i]
			f.NvmlReturn = uint32(nvml.ERROR_NOT_SUPPORTED)
			if n, ok := v[f.FieldId]; ok {
				f.NvmlReturn, f.ValueType = uint32(nvml.SUCCESS), uint32(nvml.VALUE_TYPE_UNSIGNED_INT)
				binary.NativeEndian.PutUint32(f.Value[:], n)
			}
			if n, ok := wide[f.FieldId]; ok {
				f.NvmlReturn, f.ValueType = uint32(nvml.SUCCESS), uint32(nvml.VALUE_TYPE_UNSIGNED_LONG_LONG)
				binary.NativeEndian.PutUint64(f.Value[:], n)
			}
		}
		return nvml.SUCCESS
	}
}

// working gives every GPU of one of NVIDIA's mock servers the readings of one at
// work; power is whether the two fields of power are supported.
func working(s *server.Server, power nvml.Return) *server.Server {
	for i := range s.Devices {
		d := &s.Devices[i].(*server.Device).Device
		narrow := map[uint32]uint32{nvml.FI_DEV_MEMORY_TEMP: 74}
		if power == nvml.SUCCESS {
			narrow[nvml.FI_DEV_POWER_INSTANT], narrow[nvml.FI_DEV_POWER_AVERAGE] = 512_500, 498_000
		}
		d.GetFieldValuesFunc = answers(narrow, map[uint32]uint64{
			nvml.FI_DEV_CLOCKS_EVENT_REASON_SW_POWER_CAP: 1_500_000_000, nvml.FI_DEV_PERF_POLICY_THERMAL: 900_000_000,
			nvml.FI_DEV_CLOCKS_EVENT_REASON_SW_THERM_SLOWDOWN: 250_000_000, nvml.FI_DEV_CLOCKS_EVENT_REASON_HW_THERM_SLOWDOWN: 0,
		})
		d.GetPowerUsageFunc = func() (uint32, nvml.Return) { return 400_000, nvml.SUCCESS }
		d.GetEnforcedPowerLimitFunc = func() (uint32, nvml.Return) { return 700_000, nvml.SUCCESS }
		d.GetTotalEnergyConsumptionFunc = func() (uint64, nvml.Return) { return 123_456_789, nvml.SUCCESS }
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
		d.GetEccModeFunc = func() (nvml.EnableState, nvml.EnableState, nvml.Return) {
			return nvml.FEATURE_ENABLED, nvml.FEATURE_ENABLED, nvml.SUCCESS
		}
		d.GetTotalEccErrorsFunc = func(kind nvml.MemoryErrorType, counter nvml.EccCounterType) (uint64, nvml.Return) {
			return map[nvml.MemoryErrorType]map[nvml.EccCounterType]uint64{
				nvml.MEMORY_ERROR_TYPE_CORRECTED:   {nvml.VOLATILE_ECC: 3, nvml.AGGREGATE_ECC: 30},
				nvml.MEMORY_ERROR_TYPE_UNCORRECTED: {nvml.VOLATILE_ECC: 0, nvml.AGGREGATE_ECC: 1},
			}[kind][counter], nvml.SUCCESS
		}
		d.GetRemappedRowsFunc = func() (int, int, bool, bool, nvml.Return) { return 2, 1, true, false, nvml.SUCCESS }
	}
	return s
}

// dumb makes every reading of a mock server's GPUs end with r.
func dumb(s *server.Server, r nvml.Return) *server.Server {
	for i := range s.Devices {
		d := &s.Devices[i].(*server.Device).Device
		d.GetFieldValuesFunc = func([]nvml.FieldValue) nvml.Return { return r }
		d.GetPowerUsageFunc = func() (uint32, nvml.Return) { return 0, r }
		d.GetEnforcedPowerLimitFunc = func() (uint32, nvml.Return) { return 0, r }
		d.GetTotalEnergyConsumptionFunc = func() (uint64, nvml.Return) { return 0, r }
		d.GetTemperatureFunc = func(nvml.TemperatureSensors) (uint32, nvml.Return) { return 0, r }
		d.GetClockInfoFunc = func(nvml.ClockType) (uint32, nvml.Return) { return 0, r }
		d.GetUtilizationRatesFunc = func() (nvml.Utilization, nvml.Return) { return nvml.Utilization{}, r }
		d.GetMemoryInfoFunc = func() (nvml.Memory, nvml.Return) { return nvml.Memory{}, r }
		d.GetCurrentClocksThrottleReasonsFunc = func() (uint64, nvml.Return) { return 0, r }
		d.GetEccModeFunc = func() (nvml.EnableState, nvml.EnableState, nvml.Return) { return 0, 0, r }
		d.GetTotalEccErrorsFunc = func(nvml.MemoryErrorType, nvml.EccCounterType) (uint64, nvml.Return) { return 0, r }
		d.GetRemappedRowsFunc = func() (int, int, bool, bool, nvml.Return) { return 0, 0, false, false, r }
		d.GetMigModeFunc = func() (int, int, nvml.Return) { return 0, 0, r }
	}
	return s
}

// What a GPU does not tell is null with the reason, each of it, and never 0.
func TestUnsupportedIsNull(t *testing.T) {
	for r, want := range map[nvml.Return]string{
		nvml.ERROR_NOT_SUPPORTED: "not supported", nvml.ERROR_NO_PERMISSION: "no permission",
		nvml.ERROR_GPU_IS_LOST: "lost", nvml.ERROR_FUNCTION_NOT_FOUND: "too old", nvml.ERROR_INVALID_ARGUMENT: "status 2",
	} {
		for name, s := range map[string]*server.Server{"A100": dgxa100.New(), "H100": dgxh100.New()} {
			gpus, err := NewNVML(dumb(s, r)).Read()
			if err != nil || len(gpus) != 8 {
				t.Fatal(gpus, err)
			}
			b, err := json.Marshal(gpus[0])
			if err != nil {
				t.Fatal(err)
			}
			var v map[string]any
			if err := json.Unmarshal(b, &v); err != nil {
				t.Fatal(err)
			}
			reasons, _ := v["reasons"].(map[string]any)
			nulls := 0
			for field, value := range v {
				switch field {
				case "index", "reasons":
				case "name", "uuid":
					if value == "" {
						t.Errorf("%s: no %s", name, field)
					}
				default:
					if nulls++; value != nil || !strings.Contains(reasons[field].(string), want) {
						t.Errorf("%s: %s is %v, reason %v", name, field, value, reasons[field])
					}
				}
			}
			if nulls != len(reasons) || nulls < 20 {
				t.Errorf("%s: %d readings, %d reasons", name, nulls, len(reasons))
			}
		}
	}
}

// Each of NVIDIA's machines: everything is read, MIG and ECC as they are set.
func TestGPUsOfEachKind(t *testing.T) {
	for name, s := range map[string]*server.Server{"A100": dgxa100.New(), "H100": dgxh100.New()} {
		working(s, nvml.SUCCESS)
		divided := &s.Devices[1].(*server.Device).Device
		divided.SetMigMode(nvml.DEVICE_MIG_ENABLE)
		plain := &s.Devices[2].(*server.Device).Device
		plain.GetEccModeFunc = func() (nvml.EnableState, nvml.EnableState, nvml.Return) {
			return nvml.FEATURE_DISABLED, nvml.FEATURE_ENABLED, nvml.SUCCESS
		}
		// A driver before the thermal reasons were told apart, and a board without the sensor.
		plain.GetFieldValuesFunc = answers(map[uint32]uint32{nvml.FI_DEV_MEMORY_TEMP: 0}, map[uint32]uint64{nvml.FI_DEV_PERF_POLICY_THERMAL: 2e9})
		gpus, err := NewNVML(s).Read()
		if err != nil {
			t.Fatal(err)
		}
		if g := gpus[0]; !strings.Contains(g.Name, name) || len(g.Reasons) != 0 {
			t.Errorf("%s: %q lacks %v", name, g.Name, g.Reasons)
		}
		if g := gpus[1]; g.MIG == nil || !*g.MIG {
			t.Errorf("%s: MIG %v", name, g.MIG)
		}
		g := gpus[2]
		if g.ECC == nil || *g.ECC || g.ECCCorrected != nil || !strings.Contains(g.Reasons["ecc_corrected"], "switched off") {
			t.Errorf("%s: ECC %v, errors %v, %v", name, g.ECC, g.ECCCorrected, g.Reasons)
		}
		if g.MemoryTempC != nil || g.Reasons["memory_temperature_c"] == "" {
			t.Errorf("%s: memory at %v", name, g.MemoryTempC)
		}
		if !maps.Equal(g.ThrottleSeconds, map[string]float64{softThermal: 2}) || g.Reasons["throttle_seconds"] != "" {
			t.Errorf("%s: %v, %v", name, g.ThrottleSeconds, g.Reasons)
		}
	}
}

func TestGPU(t *testing.T) {
	c := New(Options{Sys: fstest.MapFS{}, Proc: fstest.MapFS{}, GPU: NewNVML(working(dgxh200.New(), nvml.SUCCESS))})
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
		"memory clock": {g.ClockMemoryMHz, 3201}, "utilization": {g.Utilization, .97}, "memory utilization": {g.MemoryUtilization, .4}, "energy": {g.EnergyJ, 123456.789}, "memory temperature": {g.MemoryTempC, 74},
		"corrected": {g.ECCCorrected, 3}, "uncorrected": {g.ECCUncorrected, 0}, "corrected in its life": {g.ECCCorrectedLifetime, 30}, "uncorrected in its life": {g.ECCUncorrectedLifetime, 1}, "rows": {g.RemappedRows, 3}} {
		if c.got == nil || *c.got != c.want {
			t.Errorf("%s is %v, want %v", name, c.got, c.want)
		}
	}
	if g.Index != 3 || g.Name == "" || g.UUID == "" || g.MemoryTotalBytes == nil || *g.MemoryTotalBytes < 100<<30 {
		t.Errorf("%+v", g)
	}
	if strings.Join(g.Throttle, ",") != "idle,power cap" {
		t.Errorf("throttle reasons %v", g.Throttle)
	}
	want := map[string]float64{"power cap": 1.5, "thermal slowdown (software)": 0.25, "thermal slowdown (hardware)": 0}
	if !maps.Equal(g.ThrottleSeconds, want) {
		t.Errorf("time of throttling %v, want %v", g.ThrottleSeconds, want)
	}
	for name, c := range map[string]struct {
		got  *bool
		want bool
	}{"ECC": {g.ECC, true}, "remap pending": {g.RemapPending, true}, "remap failed": {g.RemapFailed, false}, "MIG": {g.MIG, false}} {
		if c.got == nil || *c.got != c.want {
			t.Errorf("%s is %v, want %v", name, c.got, c.want)
		}
	}
	// What slows requests down is attached to the latency window; idling does not.
	if w := l.Snapshot(time.Now()).Windows["1m"]; strings.Join(w.GPUThrottle, ",") != "power cap" {
		t.Errorf("window has %v", w.GPUThrottle)
	}
}

func TestGPUWithoutInstantPower(t *testing.T) {
	gpus, err := NewNVML(working(dgxh200.New(), nvml.ERROR_NOT_SUPPORTED)).Read()
	if err != nil {
		t.Fatal(err)
	}
	if g := gpus[0]; g.PowerW == nil || *g.PowerW != 400 || g.PowerAverageW != nil || g.Reasons["power_average_w"] == "" {
		t.Errorf("%+v", g)
	}
}

func TestGPULost(t *testing.T) {
	s := working(dgxh200.New(), nvml.SUCCESS)
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
