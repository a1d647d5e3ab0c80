// A collector as VTune loads one: it writes the tasks that it is told of to the
// file $FAKE_LOG.
#define INTEL_NO_MACRO_BODY
#define INTEL_ITTNOTIFY_API_PRIVATE
#include "ittapi/ittnotify.h"
#include "ittapi/ittnotify_config.h"

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static pthread_mutex_t mu = PTHREAD_MUTEX_INITIALIZER;

static FILE *out(void) {
  static FILE *f;
  if (!f) f = fopen(getenv("FAKE_LOG"), "a");
  return f;
}

static __itt_domain *create(const char *name) {
  static __itt_domain d = {.flags = 1};
  d.nameA = strdup(name);
  fprintf(out(), "itt domain %s\n", name);
  fflush(out());
  return &d;
}

static __itt_string_handle *string(const char *name) {
  __itt_string_handle *h = calloc(1, sizeof *h);
  h->strA = strdup(name);
  return h;
}

static void begin(const __itt_domain *d, __itt_id id, __itt_id parent, __itt_string_handle *name) {
  (void)parent;
  pthread_mutex_lock(&mu);
  fprintf(out(), "itt begin %llu %s %s\n", id.d2, strcmp(d->nameA, "fewbit") ? "other" : "ours", name->strA);
  fflush(out());
  pthread_mutex_unlock(&mu);
}

static void end(const __itt_domain *d, __itt_id id) {
  pthread_mutex_lock(&mu);
  fprintf(out(), "itt end %llu %s\n", id.d2, strcmp(d->nameA, "fewbit") ? "other" : "ours");
  fflush(out());
  pthread_mutex_unlock(&mu);
}

void __itt_api_init(__itt_global *g, __itt_group_id groups) {
  (void)groups;
  static const struct {
    const char *name;
    void *f;
  } ours[] = {{"__itt_domain_create", create},
              {"__itt_string_handle_create", string},
              {"__itt_task_begin_overlapped", begin},
              {"__itt_task_end_overlapped", end}};
  for (__itt_api_info *a = g->api_list_ptr; a->name; a++) {
    *a->func_ptr = a->null_func;
    for (size_t i = 0; i < sizeof ours / sizeof *ours; i++)
      if (!strcmp(a->name, ours[i].name)) *a->func_ptr = ours[i].f;
  }
}
