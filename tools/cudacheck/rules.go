package main

// architectures are those that CMake compiles for (cuda/toolkit.cmake).
var architectures = []string{"sm_75", "sm_80", "sm_89", "sm_90a"}

// rules name the instructions that make a kernel what it is:
// IMMA, HMMA and IGMMA multiply matrices on tensor cores (the last is Hopper's
// asynchronous form), LDSM loads their fragments from shared memory, LDGSTS
// copies to shared memory in the background, IDP.4A is __dp4a. ATOMS.POPC.INC counts
// the lanes of a warp that meet in one bin in one go.
var rules = []rule{
	{"observe", "sm_75", []string{"LDG.E.128"}},
	{"observe", "sm_80", []string{"ATOMS.POPC.INC", "LDG.E.128"}},
	{"observe", "sm_89", []string{"ATOMS.POPC.INC", "LDG.E.128"}},
	{"observe", "sm_90a", []string{"ATOMS.POPC.INC", "LDG.E.128"}},
}

// localAllowed are the kernels that may use local memory, and why.
var localAllowed = map[string]string{
	"unary_f32": "the argument reduction of sinf and cosf for large arguments",
}
