// What github.com/yalue/onnxruntime_go lacks, over the same loaded library and
// the same process-wide OrtEnv: a global thread pool, a logger that does not
// print, runs whose outputs stay in ONNX Runtime's memory, strings with any
// bytes, types and shapes of a session's inputs and outputs, EndProfiling; and
// sessions themselves.
//
// Functions return NULL for success. An OrtStatus belongs to the caller, who
// reads it with fbort_status_code and fbort_status_text and then gives it to
// fbort_status_release.
#ifndef FEWBIT_ORT_SHIM_H
#define FEWBIT_ORT_SHIM_H

#include <stddef.h>
#include <stdint.h>

#define FBORT_MAX_RANK 16 // tensor.MaxRank
#define FBORT_MMAP_BYTES (1 << 20)
#define FBORT_LOG_LINES 32
#define FBORT_LOG_BYTES 512
#define FBORT_IDLE_CALLERS 4 // threads for fbort_submit that are kept without work

typedef struct OrtStatus OrtStatus;
typedef struct OrtSession OrtSession;
typedef struct OrtSessionOptions OrtSessionOptions;
typedef struct OrtRunOptions OrtRunOptions;
typedef struct OrtValue OrtValue;
typedef struct OrtModelMetadata OrtModelMetadata;

// Loads the library and reads its version; does not bind its API yet.
// Returns 0, or writes the reason into err.
int fbort_load(const char *lib, char *version, size_t version_len, char *path,
               size_t path_len, char *err, size_t err_len);
// Closes a library that was loaded but never bound.
void fbort_unload(void);
// Takes the API of the header's version; 0 when the library does not have it.
int fbort_bind(void);
// Returns freed memory of all of malloc's arenas to the system.
void fbort_trim(void);
// Creates the OrtEnv with one thread pool for all sessions, whose threads spin
// while they wait when spin is 1, and the capturing logger.
OrtStatus *fbort_env_new(int intra_threads, int spin);
// Copies captured log lines (newest last) to buf as NUL-terminated strings and
// forgets them; returns their number. buf has FBORT_LOG_LINES*FBORT_LOG_BYTES.
int fbort_log_take(char *buf);

int fbort_status_code(const OrtStatus *s);
const char *fbort_status_text(const OrtStatus *s);
void fbort_status_release(OrtStatus *s);

// ---- libfewbit_cpu: kernels and operators of ours (cpu/fewbit_cpu.h)

// Loads the library and asks for its functions. Returns 0, or writes the reason
// into err. Called after fbort_bind, at most once with success.
int fbort_kernels_load(const char *lib, int *level, char *name, size_t name_len, char *err, size_t err_len);
// Makes the operators known to sessions with these options; NULL and nothing
// done when no library was loaded.
OrtStatus *fbort_kernels_register(OrtSessionOptions *o);
size_t fbort_int8_packed_size(int64_t k, int64_t n);
void fbort_int8_pack(const int8_t *w, const float *scales, int64_t k, int64_t n, int64_t first, int64_t last, void *to);
size_t fbort_int4_packed_size(int64_t k, int64_t n);
void fbort_int4_pack(const uint8_t *codes, const int8_t *steps, const float *scales, int64_t k, int64_t n, int64_t first, int64_t last, void *to);
size_t fbort_bf16_packed_size(int64_t k, int64_t n);
void fbort_bf16_pack(const float *w, int64_t k, int64_t n, int64_t first, int64_t last, void *to);
void fbort_bf16_gram(const void *packed, int64_t rows, int64_t k, int64_t first, int64_t last, float *sum);
int fbort_solves(void); // whether the next two can be called
void fbort_round_strip(const float *m, int64_t k, const int64_t *order, int64_t rows, const float *w, const float *carried, const float *scales, int64_t n, int64_t first, int64_t last, float lo, float hi, float *d, int8_t *codes);
void fbort_clip_scales(const float *w, int64_t k, int64_t n, int64_t first, int64_t last, const float *importance, const float *shares, int64_t steps, float top, float *scratch, float *scales);

// onnxruntime_go 1.27.0 keeps the memory of each path that it opens.
OrtStatus *fbort_session_new(const char *model, const OrtSessionOptions *o, OrtSession **out);
void fbort_session_release(OrtSession *s);
// The keys of a model's metadata_props, each and the array itself to be freed with
// fbort_free, and the metadata for fbort_metadata_value and fbort_metadata_release.
OrtStatus *fbort_metadata(const OrtSession *s, OrtModelMetadata **m, char ***keys, int64_t *n);
// *value is NULL when there is none, else to be freed with fbort_free.
OrtStatus *fbort_metadata_value(const OrtModelMetadata *m, const char *key, char **value);
void fbort_metadata_release(OrtModelMetadata *m);

OrtStatus *fbort_share_threads(OrtSessionOptions *o);
OrtStatus *fbort_cancel_load(OrtSessionOptions *o);
OrtStatus *fbort_run_config(OrtRunOptions *o, const char *key, const char *value);
// *out is ONNX Runtime's file name, to be freed with fbort_free.
OrtStatus *fbort_end_profiling(OrtSession *s, char **out);
void fbort_free(void *p); // memory of the default allocator

enum { FBORT_NONE, FBORT_TENSOR, FBORT_OTHER };

// One input or output of a session. The strings are to be freed with
// fbort_io_clear.
typedef struct {
  char *name;
  char *dim_names[FBORT_MAX_RANK];
  int64_t dims[FBORT_MAX_RANK];
  int32_t rank;      // -1: the model does not say; more than FBORT_MAX_RANK: dims are not filled
  int32_t type;      // ONNXTensorElementDataType
  int32_t kind;      // FBORT_TENSOR (also optional tensors) or FBORT_OTHER
  int32_t onnx_type; // ONNXType as declared
} fbort_io;

OrtStatus *fbort_io_count(OrtSession *s, size_t *inputs, size_t *outputs);
OrtStatus *fbort_io_get(OrtSession *s, int output, size_t index, fbort_io *io);
void fbort_io_clear(fbort_io *io);

// Where an input's elements lie. data is an integer so that the Go side never
// runs a write barrier over an address in C memory; it pins what it points to.
typedef struct {
  uintptr_t data;
  size_t bytes;
  int64_t dims[FBORT_MAX_RANK];
  int32_t rank;
  int32_t type;
} fbort_input;

typedef struct {
  void *data; // valid while the value lives
  int64_t dims[FBORT_MAX_RANK];
  int32_t rank; // more than FBORT_MAX_RANK: dims are not filled
  int32_t type;
  int32_t kind;
} fbort_output;

// The arguments of one run, in C memory and used again for the next one.
typedef struct fbort_frame {
  fbort_input *in;
  OrtValue **in_values; // NULL: made from in by fbort_run
  fbort_output *out;
  OrtValue **out_values;
  const char **out_names;

  // Of a run on a thread of callers.c, from fbort_submit to fbort_end.
  struct fbort_frame *next;
  OrtSession *session;
  OrtRunOptions *options;
  const char *const *in_names;
  size_t n_in, n_out;
  int done_fd, ended;
  OrtStatus *status;
} fbort_frame;

fbort_frame *fbort_frame_new(size_t inputs, size_t outputs);
void fbort_frame_free(fbort_frame *f);
// Makes input i a string tensor of f->in[i].dims. String k is
// bytes[ends[k-1] : ends[k]], any bytes.
OrtStatus *fbort_strings_in(fbort_frame *f, size_t i, const char *bytes, const size_t *ends, size_t n);
OrtStatus *fbort_strings_size(const OrtValue *v, size_t *bytes);
OrtStatus *fbort_strings_out(const OrtValue *v, char *bytes, size_t len, size_t *starts, size_t n);
// Runs the session. Input values are released in any case. On success out and
// out_values are filled, and the caller releases out_values.
OrtStatus *fbort_run(OrtSession *s, OrtRunOptions *o, fbort_frame *f, const char *const *in_names, size_t n_in,
                     size_t n_out);
// fbort_run on a thread of its own. When it has ended a byte is written to
// done_fd, and fbort_end returns its status (it waits if it has not). 0: there
// is no thread to be had, and nothing was begun.
//
// A goroutine that waits for the byte holds neither a thread nor a processor of
// Go's scheduler. In a call into C it holds both, and the scheduler's monitor
// thread looks after them up to 10 ms long, every 20 us at first: on a machine
// whose cores are all busy with the run, each time one of its threads has to
// make room.
int fbort_submit(OrtSession *s, OrtRunOptions *o, fbort_frame *f, const char *const *in_names, size_t n_in,
                 size_t n_out, int done_fd);
OrtStatus *fbort_end(fbort_frame *f);
void fbort_inputs_release(fbort_frame *f, size_t n);
void fbort_values_release(OrtValue **v, size_t n);

#endif
