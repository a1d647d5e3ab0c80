//go:build cuda && !cudaemu

#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdio.h>

#include "slots.h"

static void *library;

int fewbit_load_driver(char *text, unsigned long bytes) {
  if (!library) {
    /* The name that every installation of the driver provides, WSL and containers included. */
    library = dlopen("libcuda.so.1", RTLD_NOW | RTLD_LOCAL);
    if (!library) {
      const char *why = dlerror();
      snprintf(text, bytes, "%s", why ? why : "libcuda.so.1 cannot be loaded");
      return FEWBIT_NO_LIBRARY;
    }
    fewbit_fill_slots(dlsym, library, 500 /* CUDA_ERROR_NOT_FOUND */);
  }
  int (*init)(unsigned) = (int (*)(unsigned))dlsym(library, "cuInit");
  return init ? init(0) : 500;
}
