package main

// architectures are those that CMake compiles for (cuda/toolkit.cmake).
var architectures = []string{"sm_75", "sm_80", "sm_89", "sm_90a"}

// rules name the instructions that make a kernel what it is:
// IMMA, HMMA and IGMMA multiply matrices on tensor cores (the last is Hopper's
// asynchronous form), LDSM loads their fragments from shared memory, LDGSTS
// copies to shared memory in the background, IDP.4A is __dp4a.
var rules = []rule{}

// localAllowed are the kernels that may use local memory, and why.
var localAllowed = map[string]string{
	"unary_f32": "the argument reduction of sinf and cosf for large arguments",
}
