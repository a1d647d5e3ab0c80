package report

import (
	"runtime"
	"strings"

	"github.com/klauspost/cpuid/v2"

	"github.com/fewbit/fewbit/internal/engine"
)

// instructionSets are those that decide how fast integers multiply, by the
// names that Linux gives them in /proc/cpuinfo.
var instructionSets = []struct {
	name string
	id   cpuid.FeatureID
}{
	{"avx2", cpuid.AVX2}, {"f16c", cpuid.F16C}, {"avx_vnni", cpuid.AVXVNNI}, {"avx512f", cpuid.AVX512F}, {"avx512_vnni", cpuid.AVX512VNNI},
	{"avx512_bf16", cpuid.AVX512BF16}, {"avx512_fp16", cpuid.AVX512FP16}, {"amx_int8", cpuid.AMXINT8}, {"amx_bf16", cpuid.AMXBF16},
	{"asimddp", cpuid.ASIMDDP},
}

// ThisMachine describes where the program runs. eng is the engine's name with
// its version, fewbit the program's version, threads what the sessions use.
func ThisMachine(eng, fewbit string, threads int) Machine {
	m := Machine{
		CPU: strings.TrimSpace(cpuid.CPU.BrandName), Cores: engine.AvailableCPUs(), Threads: threads,
		OS: runtime.GOOS + "/" + runtime.GOARCH, Engine: eng, Fewbit: fewbit,
	}
	for _, s := range instructionSets {
		if cpuid.CPU.Supports(s.id) {
			m.Flags = append(m.Flags, s.name)
		}
	}
	if m.CPU == "" {
		m.CPU = runtime.GOARCH + " " + cpuid.CPU.VendorString
	}
	return m
}
