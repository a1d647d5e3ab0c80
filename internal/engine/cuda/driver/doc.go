// Package driver loads NVIDIA's driver library when it is first wanted.
//
// Programs that use CUDA link libcuda and then do not start on a machine without
// it; and gorgonia.org/cu calls cuInit before main and ends the process when that
// fails. Here every function of the driver is a jump through a slot
// (trampolines.S); the slots are filled by Load, from libcuda.so.1 when there is
// one, and until then answer CUDA_ERROR_NOT_INITIALIZED. So one binary starts
// everywhere, and only opening a device needs a driver.
//
// With the tags cuda,cudaemu Load fills the slots with a driver made of host
// memory instead (fake.cpp), whose faults tests choose with Inject.
//
// link/libcuda.a is an archive without members: gorgonia.org/cu asks the linker
// for -lcuda, and what it calls is here. include/cuda.h lets it compile with the
// headers of CUDA 13. The Makefile puts both folders on cgo's paths (docs/cuda.md).
package driver
