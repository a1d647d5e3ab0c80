#include "markers.h"

#include "ittapi/ittnotify.h"

static __itt_domain *domain;

int fbp_itt_open(void) {
  domain = __itt_domain_create("fewbit"); // loads the library
  return domain && __itt_get_collection_state() == __itt_collection_init_successful;
}

void *fbp_itt_name(const char *name) { return __itt_string_handle_create(name); }

static __itt_id task(uint64_t id) { return __itt_id_make(domain, id); }

void fbp_itt_begin(uint64_t id, void *name) { __itt_task_begin_overlapped(domain, task(id), __itt_null, name); }

void fbp_itt_end(uint64_t id) { __itt_task_end_overlapped(domain, task(id)); }
