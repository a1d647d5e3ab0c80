/* fake.h: how Go steers the driver made of host memory (fake.cpp). */
#ifndef FEWBIT_FAKE_H
#define FEWBIT_FAKE_H
#include <stdint.h>
#ifdef __cplusplus
extern "C" {
#endif

typedef struct fewbit_faults {
  int absent;           /* no library */
  int init_error;       /* what cuInit answers */
  int devices;          /* how many there are */
  int64_t memory;       /* bytes that the device has */
  int64_t host_memory;  /* bytes that can be pinned */
  int64_t launches;     /* kernels that succeed before one fails; < 0: none fails */
  int launch_error;     /* with what: 2 fails that launch alone, others end the context */
  int capture_error;    /* what cuGraphInstantiate answers */
  int lost;             /* the device is gone: every call answers so */
} fewbit_faults;
void fewbit_fake_inject(const fewbit_faults *f);

typedef struct fewbit_use {
  int64_t contexts, allocations, bytes, pinned, streams, events, graphs, queued, launches;
} fewbit_use;
void fewbit_fake_use(fewbit_use *u);

#ifdef __cplusplus
}
#endif
#endif
