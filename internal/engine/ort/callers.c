#define _GNU_SOURCE
#include "shim.h"

#include <pthread.h>
#include <signal.h>
#include <unistd.h>

static struct {
  pthread_mutex_t mu;
  pthread_cond_t work, ended;
  fbort_frame *first, *last; // submitted and not begun
  int waiting;               // frames in that list
  int idle;                  // threads that wait for work
} callers = {.mu = PTHREAD_MUTEX_INITIALIZER, .work = PTHREAD_COND_INITIALIZER, .ended = PTHREAD_COND_INITIALIZER};

static void *caller(void *nothing) {
  (void)nothing;
#ifdef __linux__
  pthread_setname_np(pthread_self(), "fewbit-run");
#endif
  pthread_mutex_lock(&callers.mu);
  for (;;) {
    while (!callers.first) {
      if (callers.idle >= FBORT_IDLE_CALLERS) {
        pthread_mutex_unlock(&callers.mu);
        return NULL;
      }
      callers.idle++;
      pthread_cond_wait(&callers.work, &callers.mu);
      callers.idle--;
    }
    fbort_frame *f = callers.first;
    callers.first = f->next;
    callers.waiting--;
    pthread_mutex_unlock(&callers.mu);
    f->status = fbort_run(f->session, f->options, f, f->in_names, f->n_in, f->n_out);
    // The pipe is empty, so this neither waits nor fails.
    ssize_t written = write(f->done_fd, "", 1);
    (void)written;
    pthread_mutex_lock(&callers.mu);
    f->ended = 1; // f is the Go side's again
    pthread_cond_broadcast(&callers.ended);
  }
}

// start creates one more thread. Signals are for the threads of Go, but for
// those that a thread sends itself.
static int start(void) {
  sigset_t all, before;
  sigfillset(&all);
  const int own[] = {SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGTRAP, SIGABRT};
  for (size_t i = 0; i < sizeof own / sizeof *own; i++) sigdelset(&all, own[i]);
  pthread_attr_t a;
  if (pthread_attr_init(&a)) return 0;
  pthread_attr_setdetachstate(&a, PTHREAD_CREATE_DETACHED);
  pthread_sigmask(SIG_BLOCK, &all, &before);
  pthread_t t;
  int ok = !pthread_create(&t, &a, caller, NULL);
  pthread_sigmask(SIG_SETMASK, &before, NULL);
  pthread_attr_destroy(&a);
  return ok;
}

int fbort_submit(OrtSession *s, OrtRunOptions *o, fbort_frame *f, const char *const *in_names, size_t n_in,
                 size_t n_out, int done_fd) {
  f->session = s;
  f->options = o;
  f->in_names = in_names;
  f->n_in = n_in;
  f->n_out = n_out;
  f->done_fd = done_fd;
  f->ended = 0;
  f->next = NULL;
  pthread_mutex_lock(&callers.mu);
  int ok = callers.waiting < callers.idle || start();
  if (ok) {
    if (callers.first)
      callers.last->next = f;
    else
      callers.first = f;
    callers.last = f;
    callers.waiting++;
    pthread_cond_signal(&callers.work);
  }
  pthread_mutex_unlock(&callers.mu);
  return ok;
}

OrtStatus *fbort_end(fbort_frame *f) {
  pthread_mutex_lock(&callers.mu);
  while (!f->ended) pthread_cond_wait(&callers.ended, &callers.mu);
  pthread_mutex_unlock(&callers.mu);
  return f->status;
}
