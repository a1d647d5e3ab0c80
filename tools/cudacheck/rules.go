package main

// architectures are those that CMake compiles for (cuda/toolkit.cmake).
var architectures = []string{"sm_75", "sm_80", "sm_89", "sm_90a"}

// rules name the instructions that make a kernel what it is:
// IMMA, HMMA and IGMMA multiply matrices on tensor cores (the last is Hopper's
// asynchronous form), LDSM loads their fragments from shared memory, LDGSTS
// copies to shared memory in the background, UTMALDG is such a copy by TMA,
// whose barriers are SYNCS; IDP.4A is __dp4a.
var rules = append([]rule{
	{"gemm_s8_dp4a", "sm_75", []string{"IDP.4A.S8.S8"}},
	{"conv_s8_dp4a", "sm_75", []string{"IDP.4A.S8.S8"}},
	{"gemm_s8_wgmma", "sm_90a", []string{"IGMMA.64", "UTMALDG.2D", "SYNCS.PHASECHK", "WARPGROUP.ARRIVE"}},
}, onEach([]string{"sm_80", "sm_89", "sm_90a"}, []rule{
	{kernel: "gemm_s8_mma", want: []string{"IMMA.16832.S8.S8", "LDSM.16.M88", "LDGSTS.E.BYPASS"}},
	{kernel: "conv_s8_mma", want: []string{"IMMA.16832.S8.S8", "LDSM.16.M88"}},
	{kernel: "gemm_w4_mma", want: []string{"IMMA.16832.S8.S8|HMMA.16816.F32", "LDGSTS.E.BYPASS"}},
	{kernel: "gemm_mma", want: []string{"HMMA.16816.F32|HMMA.1688.F32.TF32", "LDSM.16.M88", "LDGSTS.E.BYPASS"}},
	{kernel: "conv_tf32_mma", want: []string{"HMMA.1688.F32.TF32", "LDSM.16.M88", "LDGSTS.E.BYPASS"}},
	{kernel: "conv_f16_mma", want: []string{"HMMA.16816.F32", "LDSM.16.M88", "LDGSTS.E.BYPASS"}},
	{kernel: "conv_tf32_unaligned", want: []string{"HMMA.1688.F32.TF32", "LDSM.16.M88", "LDGSTS.E"}},
	{kernel: "conv_f16_unaligned", want: []string{"HMMA.16816.F32", "LDSM.16.M88"}},
	{kernel: "attention_f16", want: []string{"HMMA.16816.F32", "LDSM.16.M88", "LDSM.16.MT88", "LDGSTS"}},
	{kernel: "attention_s8", want: []string{"IMMA.16832.S8.S8", "HMMA.16816.F32", "LDSM.16.M88", "LDSM.16.MT88", "LDGSTS"}},
})...)

// onEach are the rules for each of several architectures.
func onEach(archs []string, rules []rule) []rule {
	var all []rule
	for _, a := range archs {
		for _, r := range rules {
			all = append(all, rule{r.kernel, a, r.want})
		}
	}
	return all
}

// localAllowed are the kernels that may access local memory, in how many instructions, and why.
var localAllowed = map[string]exception{
	"unary_f32":          {10, "the argument reduction of sinf and cosf for large arguments"},
	"quantize_rows":      {2, "a register is kept during the slow path of a division, outside the loops"},
	"quantize_blocks_s4": {6, "as quantize_rows"},
}
