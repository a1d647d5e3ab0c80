//go:build cuda

/* Each function of the driver jumps to where its slot points; arguments and stack stay as they are. */
#if defined(__x86_64__)
#define FB_JUMP(name)                \
  endbr64;                           \
  jmp *fewbit_slot_##name(%rip);
#elif defined(__aarch64__)
#define FB_JUMP(name)                            \
  hint 34; /* bti c */                           \
  adrp x16, fewbit_slot_##name;                  \
  ldr x16, [x16, :lo12:fewbit_slot_##name];      \
  br x16;
#else
#error "the driver's functions are reached on x86-64 and aarch64 only"
#endif

/* Hidden: libcuda, once loaded, must go on calling its own functions by these names. */
#define FB_SYMBOL(name)    \
  .globl name;             \
  .hidden name;            \
  .type name, %function;   \
  name:                    \
  FB_JUMP(name)            \
  .size name, . - name;

  .text
#include "symbols.h"

  .section .note.GNU-stack, "", %progbits
