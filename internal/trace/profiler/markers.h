// The two profilers' annotations as far as trace.Marker needs them, over their
// own headers (nvtx3, ittapi), which load the profiler's library.
#ifndef FEWBIT_PROFILER_MARKERS_H
#define FEWBIT_PROFILER_MARKERS_H

#include <stdint.h>

// Loads the library that the environment names; 0: nobody listens.
int fbp_nvtx_open(void);
// A range of the process: it may end on another thread. The name is copied.
uint64_t fbp_nvtx_begin(const char *name);
void fbp_nvtx_end(uint64_t id);

int fbp_itt_open(void);
// The profiler's handle of a name, for good.
void *fbp_itt_name(const char *name);
// A task that may overlap others, by an id of the caller's.
void fbp_itt_begin(uint64_t id, void *name);
void fbp_itt_end(uint64_t id);

#endif
