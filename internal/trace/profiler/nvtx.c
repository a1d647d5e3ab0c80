#include "markers.h"

#include "nvtx3/nvToolsExt.h"

static nvtxDomainHandle_t domain;

int fbp_nvtx_open(void) {
  domain = nvtxDomainCreateA("fewbit"); // NULL when no library was loaded
  return domain != NULL;
}

uint64_t fbp_nvtx_begin(const char *name) {
  nvtxEventAttributes_t e = {0};
  e.version = NVTX_VERSION;
  e.size = NVTX_EVENT_ATTRIB_STRUCT_SIZE;
  e.messageType = NVTX_MESSAGE_TYPE_ASCII;
  e.message.ascii = name;
  return nvtxDomainRangeStartEx(domain, &e);
}

void fbp_nvtx_end(uint64_t id) { nvtxDomainRangeEnd(domain, id); }
