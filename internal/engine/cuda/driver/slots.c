//go:build cuda

#include "slots.h"

#include <stddef.h>

static int answer = 3; /* CUDA_ERROR_NOT_INITIALIZED */
static int missing_function(void) { return answer; }

/* gorgonia.org/cu calls this before main, and would end the process if it failed.
 * The driver's own cuInit is called by fewbit_load_driver. */
__attribute__((visibility("hidden"))) int cuInit(unsigned flags) {
  (void)flags;
  return 0;
}

#define FB_SYMBOL(name) __attribute__((visibility("hidden"))) void *fewbit_slot_##name = (void *)missing_function;
#include "symbols.h"
#undef FB_SYMBOL

static const struct {
  const char *name;
  void **slot;
} slots[] = {
#define FB_SYMBOL(name) {#name, &fewbit_slot_##name},
#include "symbols.h"
#undef FB_SYMBOL
};

void fewbit_fill_slots(void *(*find)(void *from, const char *name), void *from, int missing) {
  answer = missing;
  for (size_t i = 0; i < sizeof slots / sizeof *slots; i++) {
    void *p = find(from, slots[i].name);
    *slots[i].slot = p ? p : (void *)missing_function;
  }
}
