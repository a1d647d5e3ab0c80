// A library as Nsight Systems injects one: it writes the ranges that it is told
// of to the file $FAKE_LOG.
#define NVTX_NO_IMPL
#include "nvtx3/nvToolsExt.h"

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>

static pthread_mutex_t mu = PTHREAD_MUTEX_INITIALIZER;
static uint64_t ids;

static FILE *out(void) {
  static FILE *f;
  if (!f) f = fopen(getenv("FAKE_LOG"), "a");
  return f;
}

static nvtxDomainHandle_t NVTX_API create(const char *name) {
  fprintf(out(), "nvtx domain %s\n", name);
  fflush(out());
  return (nvtxDomainHandle_t)&ids;
}

static nvtxRangeId_t NVTX_API start(nvtxDomainHandle_t d, const nvtxEventAttributes_t *e) {
  pthread_mutex_lock(&mu);
  uint64_t id = ++ids;
  fprintf(out(), "nvtx begin %llu %s %s\n", (unsigned long long)id, d == (void *)&ids ? "ours" : "other",
          e->messageType == NVTX_MESSAGE_TYPE_ASCII ? e->message.ascii : "?");
  fflush(out());
  pthread_mutex_unlock(&mu);
  return id;
}

static void NVTX_API end(nvtxDomainHandle_t d, nvtxRangeId_t id) {
  pthread_mutex_lock(&mu);
  fprintf(out(), "nvtx end %llu %s\n", (unsigned long long)id, d == (void *)&ids ? "ours" : "other");
  fflush(out());
  pthread_mutex_unlock(&mu);
}

int NVTX_API InitializeInjectionNvtx2(NvtxGetExportTableFunc_t get) {
  const NvtxExportTableCallbacks *callbacks = get(NVTX_ETID_CALLBACKS);
  NvtxFunctionTable table = NULL;
  unsigned int size = 0;
  if (!callbacks || !callbacks->GetModuleFunctionTable(NVTX_CB_MODULE_CORE2, &table, &size) ||
      size <= NVTX_CBID_CORE2_DomainCreateA)
    return 0;
  *table[NVTX_CBID_CORE2_DomainCreateA] = (NvtxFunctionPointer)create;
  *table[NVTX_CBID_CORE2_DomainRangeStartEx] = (NvtxFunctionPointer)start;
  *table[NVTX_CBID_CORE2_DomainRangeEnd] = (NvtxFunctionPointer)end;
  return 1;
}
