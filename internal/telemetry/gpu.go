package telemetry

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math"

	"github.com/NVIDIA/go-nvml/pkg/nvml"
)

// GPU is the state of one GPU, by NVML.
type GPU struct {
	Index int    `json:"index"`
	Name  string `json:"name"`
	UUID  string `json:"uuid"`
	// PowerW is the instantaneous board power where the driver tells it apart
	// from the one-second average.
	PowerW            *float64 `json:"power_w" doc:"board power now"`
	PowerAverageW     *float64 `json:"power_average_w" doc:"board power, mean of one second"`
	PowerLimitW       *float64 `json:"power_limit_w"`
	EnergyJ           *float64 `json:"energy_j" doc:"GPU board energy (NVML) since the driver was loaded"`
	TemperatureC      *float64 `json:"temperature_c"`
	MemoryTempC       *float64 `json:"memory_temperature_c"`
	ClockSMMHz        *float64 `json:"clock_sm_mhz"`
	ClockMemoryMHz    *float64 `json:"clock_memory_mhz"`
	Utilization       *float64 `json:"utilization" doc:"share of time with a kernel running, 0..1"`
	MemoryUtilization *float64 `json:"memory_utilization" doc:"share of time with memory traffic, 0..1"`
	MemoryUsedBytes   *float64 `json:"memory_used_bytes"`
	MemoryTotalBytes  *float64 `json:"memory_total_bytes"`
	// Throttle lists why the clocks are below their highest; null when it
	// cannot be read, empty when nothing holds them back.
	Throttle []string `json:"throttle_reasons" null:"true"`
	// ThrottleSeconds holds the reasons that the driver keeps time of.
	ThrottleSeconds map[string]float64 `json:"throttle_seconds" null:"true" doc:"time with lowered clocks since the driver was loaded, by reason"`
	ECC             *bool              `json:"ecc_enabled"`
	// Errors of the memory: those since the driver was loaded, and of the board's life.
	ECCCorrected           *float64 `json:"ecc_corrected" doc:"memory errors corrected since the driver was loaded"`
	ECCUncorrected         *float64 `json:"ecc_uncorrected" doc:"memory errors not corrected since the driver was loaded"`
	ECCCorrectedLifetime   *float64 `json:"ecc_corrected_lifetime"`
	ECCUncorrectedLifetime *float64 `json:"ecc_uncorrected_lifetime"`
	RemappedRows           *float64 `json:"remapped_rows" doc:"rows of memory replaced by spare ones after errors"`
	RemapPending           *bool    `json:"row_remap_pending" doc:"a row waits for a reset of the GPU to be replaced"`
	RemapFailed            *bool    `json:"row_remap_failed" doc:"no spare row was left: the board should be replaced"`
	MIG                    *bool    `json:"mig_enabled" doc:"the GPU is divided into instances"`

	Reasons Reasons `json:"reasons,omitempty" doc:"why a field is null, by its name"`

	throttle uint64
}

// throttleReasons are the bits of nvmlClocksEventReasons (nvml.h).
var throttleReasons = []struct {
	bit  uint64
	name string
}{
	{nvml.ClocksThrottleReasonGpuIdle, "idle"},
	{nvml.ClocksThrottleReasonApplicationsClocksSetting, "application clocks"},
	{nvml.ClocksThrottleReasonSwPowerCap, "power cap"},
	{nvml.ClocksThrottleReasonHwSlowdown, "hardware slowdown"},
	{nvml.ClocksThrottleReasonSyncBoost, "sync boost"},
	{nvml.ClocksThrottleReasonSwThermalSlowdown, softThermal},
	{nvml.ClocksThrottleReasonHwThermalSlowdown, "thermal slowdown (hardware)"},
	{nvml.ClocksThrottleReasonHwPowerBrakeSlowdown, "power brake"},
	{nvml.ClocksThrottleReasonDisplayClockSetting, "display clocks"},
	{nvml.ClocksEventReasonBoardLimit, "board limit"},
	{nvml.ClocksEventReasonReliability, "reliability"},
}

// throttleSlow are the reasons that slow requests down, unlike being idle.
const throttleSlow = nvml.ClocksThrottleReasonSwPowerCap | nvml.ClocksThrottleReasonHwSlowdown |
	nvml.ClocksThrottleReasonSwThermalSlowdown | nvml.ClocksThrottleReasonHwThermalSlowdown |
	nvml.ClocksThrottleReasonHwPowerBrakeSlowdown | nvml.ClocksEventReasonBoardLimit | nvml.ClocksEventReasonReliability

func throttleNames(bits uint64) []string {
	names := []string{}
	for _, r := range throttleReasons {
		if bits&r.bit != 0 {
			names = append(names, r.name)
		}
	}
	return names
}

// library is what is used of nvml.Interface.
type library interface {
	Init() nvml.Return
	Shutdown() nvml.Return
	DeviceGetCount() (int, nvml.Return)
	DeviceGetHandleByIndex(int) (nvml.Device, nvml.Return)
}

// maxGPUs bounds what a driver may report.
const maxGPUs = 64

// NVML reads GPUs through NVIDIA's management library, which it loads at run
// time.
type NVML struct{ lib library }

var _ GPUReader = (*NVML)(nil)

// NewNVML returns a reader over lib, or over the driver's library when lib is
// nil.
func NewNVML(lib nvml.Interface) *NVML {
	if lib == nil {
		lib = nvml.New()
	}
	return &NVML{lib: lib}
}

// Open loads the library; the error is worded for clients.
func (n *NVML) Open() error {
	switch r := n.lib.Init(); r {
	case nvml.SUCCESS:
		return nil
	case nvml.ERROR_LIBRARY_NOT_FOUND:
		return errors.New("NVML not found: no NVIDIA driver on this machine")
	case nvml.ERROR_DRIVER_NOT_LOADED:
		return errors.New("NVML found, but the NVIDIA driver is not loaded")
	default:
		return fmt.Errorf("NVML cannot be used: %s", returnText(r))
	}
}

// Close lets go of the library.
func (n *NVML) Close() error {
	if r := n.lib.Shutdown(); r != nvml.SUCCESS {
		return fmt.Errorf("NVML shutdown: %s", returnText(r))
	}
	return nil
}

// Read reads every GPU.
func (n *NVML) Read() ([]GPU, error) {
	count, r := n.lib.DeviceGetCount()
	if r != nvml.SUCCESS {
		return nil, fmt.Errorf("NVML cannot count GPUs: %s", returnText(r))
	}
	if count <= 0 {
		return nil, errors.New("the NVIDIA driver sees no GPU")
	}
	gpus := make([]GPU, 0, min(count, maxGPUs))
	for i := range min(count, maxGPUs) {
		g := GPU{Index: i}
		d, r := n.lib.DeviceGetHandleByIndex(i)
		if r != nvml.SUCCESS {
			g.Reasons.set("all", returnText(r))
			gpus = append(gpus, g)
			continue
		}
		g.read(d)
		gpus = append(gpus, g)
	}
	return gpus, nil
}

// read fills in whatever d tells.
func (g *GPU) read(d nvml.Device) {
	g.Name, _ = d.GetName()
	g.UUID, _ = d.GetUUID()
	set := func(field string, to **float64, v float64, r nvml.Return) {
		if r != nvml.SUCCESS {
			g.Reasons.set(field, returnText(r))
			return
		}
		*to = &v
	}
	g.readFields(d, set)
	mw, r := d.GetEnforcedPowerLimit()
	set("power_limit_w", &g.PowerLimitW, float64(mw)/1000, r)
	mj, r := d.GetTotalEnergyConsumption()
	set("energy_j", &g.EnergyJ, float64(mj)/1000, r)
	c, r := d.GetTemperature(nvml.TEMPERATURE_GPU)
	set("temperature_c", &g.TemperatureC, float64(c), r)
	mhz, r := d.GetClockInfo(nvml.CLOCK_SM)
	set("clock_sm_mhz", &g.ClockSMMHz, float64(mhz), r)
	mhz, r = d.GetClockInfo(nvml.CLOCK_MEM)
	set("clock_memory_mhz", &g.ClockMemoryMHz, float64(mhz), r)
	u, r := d.GetUtilizationRates()
	set("utilization", &g.Utilization, float64(u.Gpu)/100, r)
	set("memory_utilization", &g.MemoryUtilization, float64(u.Memory)/100, r)
	m, r := d.GetMemoryInfo()
	set("memory_used_bytes", &g.MemoryUsedBytes, float64(m.Used), r)
	set("memory_total_bytes", &g.MemoryTotalBytes, float64(m.Total), r)
	if bits, r := d.GetCurrentClocksThrottleReasons(); r == nvml.SUCCESS {
		g.throttle, g.Throttle = bits, throttleNames(bits)
	} else {
		g.Reasons.set("throttle_reasons", returnText(r))
	}
	g.readHealth(d, set)
}

// gpuFields are read in one call. Times are in nanoseconds (nvml.h, NVML_FI_*).
var gpuFields = []struct {
	id     uint32
	reason string // the throttle reason that it keeps time of
}{
	{id: nvml.FI_DEV_POWER_INSTANT},
	{id: nvml.FI_DEV_POWER_AVERAGE},
	{id: nvml.FI_DEV_MEMORY_TEMP},
	{nvml.FI_DEV_CLOCKS_EVENT_REASON_SW_POWER_CAP, "power cap"},
	{nvml.FI_DEV_CLOCKS_EVENT_REASON_SYNC_BOOST, "sync boost"},
	{nvml.FI_DEV_PERF_POLICY_BOARD_LIMIT, "board limit"},
	{nvml.FI_DEV_PERF_POLICY_RELIABILITY, "reliability"},
	{nvml.FI_DEV_PERF_POLICY_THERMAL, softThermal}, // what older drivers have of the next
	{nvml.FI_DEV_CLOCKS_EVENT_REASON_SW_THERM_SLOWDOWN, softThermal},
	{nvml.FI_DEV_CLOCKS_EVENT_REASON_HW_THERM_SLOWDOWN, "thermal slowdown (hardware)"},
	{nvml.FI_DEV_CLOCKS_EVENT_REASON_HW_POWER_BRAKE_SLOWDOWN, "power brake"},
}

const softThermal = "thermal slowdown (software)"

// readFields reads power, the memory's temperature and the time of throttling. It
// prefers the fields that say which power they mean: GetPowerUsage is a one-second
// average on Ampere and later, except GA100, and instantaneous before (nvml.h,
// nvmlDeviceGetPowerUsage).
func (g *GPU) readFields(d nvml.Device, set func(string, **float64, float64, nvml.Return)) {
	values := make([]nvml.FieldValue, len(gpuFields))
	for i := range values {
		values[i].FieldId = gpuFields[i].id
	}
	if r := d.GetFieldValues(values); r != nvml.SUCCESS {
		for i := range values {
			values[i].NvmlReturn = uint32(r)
		}
	}
	mw, r := fieldNumber(values[0])
	if r != nvml.SUCCESS {
		var usage uint32
		usage, r = d.GetPowerUsage()
		mw = float64(usage)
	}
	set("power_w", &g.PowerW, mw/1000, r)
	mw, r = fieldNumber(values[1])
	set("power_average_w", &g.PowerAverageW, mw/1000, r)
	c, r := fieldNumber(values[2])
	if r == nvml.SUCCESS && c <= 0 { // a board without this sensor
		r = nvml.ERROR_NOT_SUPPORTED
	}
	set("memory_temperature_c", &g.MemoryTempC, c, r)
	for i, f := range gpuFields[3:] {
		ns, r := fieldNumber(values[3+i])
		if r != nvml.SUCCESS {
			if g.ThrottleSeconds == nil {
				g.Reasons.set("throttle_seconds", returnText(r))
			}
			continue
		}
		if g.ThrottleSeconds == nil {
			g.ThrottleSeconds = map[string]float64{}
			delete(g.Reasons, "throttle_seconds")
		}
		g.ThrottleSeconds[f.reason] = ns / 1e9
	}
}

// readHealth reads the memory's errors and how the GPU is divided.
func (g *GPU) readHealth(d nvml.Device, set func(string, **float64, float64, nvml.Return)) {
	flag := func(field string, to **bool, v bool, r nvml.Return) {
		if r != nvml.SUCCESS {
			g.Reasons.set(field, returnText(r))
			return
		}
		*to = &v
	}
	on, _, r := d.GetEccMode()
	flag("ecc_enabled", &g.ECC, on == nvml.FEATURE_ENABLED, r)
	for _, c := range []struct {
		field   string
		to      **float64
		kind    nvml.MemoryErrorType
		counter nvml.EccCounterType
	}{
		{"ecc_corrected", &g.ECCCorrected, nvml.MEMORY_ERROR_TYPE_CORRECTED, nvml.VOLATILE_ECC},
		{"ecc_uncorrected", &g.ECCUncorrected, nvml.MEMORY_ERROR_TYPE_UNCORRECTED, nvml.VOLATILE_ECC},
		{"ecc_corrected_lifetime", &g.ECCCorrectedLifetime, nvml.MEMORY_ERROR_TYPE_CORRECTED, nvml.AGGREGATE_ECC},
		{"ecc_uncorrected_lifetime", &g.ECCUncorrectedLifetime, nvml.MEMORY_ERROR_TYPE_UNCORRECTED, nvml.AGGREGATE_ECC},
	} {
		if g.ECC != nil && !*g.ECC {
			g.Reasons.set(c.field, "error correction is switched off")
			continue
		}
		n, r := d.GetTotalEccErrors(c.kind, c.counter)
		set(c.field, c.to, float64(n), r)
	}
	corrected, uncorrected, pending, failed, r := d.GetRemappedRows()
	set("remapped_rows", &g.RemappedRows, float64(corrected+uncorrected), r)
	flag("row_remap_pending", &g.RemapPending, pending, r)
	flag("row_remap_failed", &g.RemapFailed, failed, r)
	mode, _, r := d.GetMigMode()
	flag("mig_enabled", &g.MIG, mode == nvml.DEVICE_MIG_ENABLE, r)
}

// fieldNumber decodes an nvmlFieldValue_t.
func fieldNumber(f nvml.FieldValue) (float64, nvml.Return) {
	if r := nvml.Return(f.NvmlReturn); r != nvml.SUCCESS {
		return 0, r
	}
	bits := binary.NativeEndian.Uint64(f.Value[:])
	switch nvml.ValueType(f.ValueType) {
	case nvml.VALUE_TYPE_DOUBLE:
		return math.Float64frombits(bits), nvml.SUCCESS
	case nvml.VALUE_TYPE_UNSIGNED_INT:
		return float64(binary.NativeEndian.Uint32(f.Value[:])), nvml.SUCCESS
	case nvml.VALUE_TYPE_UNSIGNED_LONG, nvml.VALUE_TYPE_UNSIGNED_LONG_LONG:
		return float64(bits), nvml.SUCCESS
	case nvml.VALUE_TYPE_SIGNED_LONG_LONG:
		return float64(int64(bits)), nvml.SUCCESS
	case nvml.VALUE_TYPE_SIGNED_INT:
		return float64(int32(binary.NativeEndian.Uint32(f.Value[:]))), nvml.SUCCESS
	}
	return 0, nvml.ERROR_NOT_SUPPORTED
}

// returnText words an NVML status without asking the library, which may be
// missing.
func returnText(r nvml.Return) string {
	switch r {
	case nvml.ERROR_NOT_SUPPORTED:
		return "not supported by this GPU"
	case nvml.ERROR_NO_PERMISSION:
		return "no permission"
	case nvml.ERROR_GPU_IS_LOST:
		return "the GPU is lost: it fell off the bus or is otherwise inaccessible"
	case nvml.ERROR_TIMEOUT:
		return "the driver did not answer in time"
	case nvml.ERROR_UNINITIALIZED:
		return "NVML is not initialized"
	case nvml.ERROR_RESET_REQUIRED:
		return "the GPU needs a reset"
	case nvml.ERROR_FUNCTION_NOT_FOUND:
		return "the driver is too old for this reading"
	}
	return fmt.Sprintf("NVML status %d", int32(r))
}
