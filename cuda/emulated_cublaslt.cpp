//go:build cuda && cudaemu

#include "cublaslt.cu"

// A cublasLt of host memory, for tests: what NVIDIA's manual says of the functions
// that are called, column-major and by itself, so that it disagrees where the caller
// has mixed something up. It refuses what the caller must not ask for.
namespace {

struct Desc { int compute, trans_a = 0, trans_b = 0, epilogue = 1; const float *bias = nullptr; };
struct Layout { int type; uint64_t rows, cols; int64_t ld, stride = 0; int batch = 1; };
struct Preference { size_t workspace = ~size_t(0); uint32_t align[4] = {256, 256, 256, 256}; };

int open_things = 0, products = 0, failing = 0;

int create(void **h) { return *h = &open_things, open_things++, 0; }
int destroy(void *) { return open_things--, 0; }
size_t version() { return 130002; }
int desc_create(void **d, int compute, int scale) {
  if (scale != FB_LT_F32) return 7;
  *d = new Desc{compute};
  return open_things++, 0;
}
int desc_destroy(void *d) { return delete static_cast<Desc *>(d), open_things--, 0; }
int desc_set(void *p, int attribute, const void *v, size_t bytes) {
  Desc *d = static_cast<Desc *>(p);
  if (attribute == FB_LT_DESC_BIAS && bytes == sizeof d->bias) return memcpy(&d->bias, v, bytes), 0;
  int *to = attribute == FB_LT_DESC_TRANSA ? &d->trans_a : attribute == FB_LT_DESC_TRANSB ? &d->trans_b : attribute == FB_LT_DESC_EPILOGUE ? &d->epilogue : nullptr;
  return to && bytes == 4 ? (memcpy(to, v, 4), 0) : 7;
}
int layout_create(void **l, int type, uint64_t rows, uint64_t cols, int64_t ld) {
  if (ld < (int64_t)rows) return 7;
  *l = new Layout{type, rows, cols, ld};
  return open_things++, 0;
}
int layout_destroy(void *l) { return delete static_cast<Layout *>(l), open_things--, 0; }
int layout_set(void *p, int attribute, const void *v, size_t bytes) {
  Layout *l = static_cast<Layout *>(p);
  if (attribute == FB_LT_LAYOUT_BATCH && bytes == 4) return memcpy(&l->batch, v, 4), 0;
  return attribute == FB_LT_LAYOUT_STRIDE && bytes == 8 ? (memcpy(&l->stride, v, 8), 0) : 7;
}
int preference_create(void **p) { return *p = new Preference, open_things++, 0; }
int preference_destroy(void *p) { return delete static_cast<Preference *>(p), open_things--, 0; }
int preference_set(void *q, int attribute, const void *v, size_t bytes) {
  Preference *p = static_cast<Preference *>(q);
  if (attribute == FB_LT_PREF_WORKSPACE && bytes == sizeof(size_t)) return memcpy(&p->workspace, v, bytes), 0;
  const int i = attribute - FB_LT_PREF_ALIGN_A;
  return i >= 0 && i < 4 && bytes == 4 ? (memcpy(&p->align[i], v, 4), 0) : 7;
}
int heuristic(void *, void *, void *, void *, void *, void *, void *q, int wanted, FbLtHeuristic *found, int *count) {
  const Preference *p = static_cast<Preference *>(q);
  if (p->workspace != 0 || wanted != 1 || failing == 1) return 15;
  *count = 1;
  found->algo.data[0] = (uint64_t)p->align[0] << 32 | p->align[1], found->algo.data[1] = (uint64_t)p->align[2] << 32 | p->align[3];
  found->state = 0;
  return 0;
}
float element(const void *p, const Layout &l, int64_t batch, int64_t row, int64_t col, bool tf32) {
  const int64_t at = batch * l.stride + col * l.ld + row;
  if (l.type == FB_LT_F16) return fb_f16_to_f32(static_cast<const fb_f16 *>(p)[at]);
  float v = static_cast<const float *>(p)[at];
  uint32_t u;
  memcpy(&u, &v, 4);
  if (tf32) u = (u + 0x1000u) & ~0x1fffu;
  memcpy(&v, &u, 4);
  return v;
}
int matmul(void *, void *q, const void *alpha, const void *a, void *la, const void *b, void *lb, const void *beta, const void *c, void *lc, void *d, void *ld, const FbLtAlgo *algo, void *, size_t workspace,
           fb_stream) {
  const Desc &e = *static_cast<Desc *>(q);
  const Layout &A = *static_cast<Layout *>(la), &B = *static_cast<Layout *>(lb), &C = *static_cast<Layout *>(lc), &D = *static_cast<Layout *>(ld);
  const void *const pointers[4] = {a, b, c, d};
  for (int i = 0; i < 4; i++) // what the heuristic was told must hold
    if ((uintptr_t)pointers[i] % (uint32_t)(algo->data[i / 2] >> (i % 2 ? 0 : 32))) return 7;
  const uint64_t k = e.trans_a ? A.rows : A.cols, n = e.trans_a ? A.cols : A.rows, m = e.trans_b ? B.rows : B.cols;
  if ((e.trans_b ? B.cols : B.rows) != k || D.rows != n || D.cols != m || C.rows != n || C.cols != m || D.type != FB_LT_F32 || C.type != FB_LT_F32 || A.type != B.type || workspace != 0 || failing == 2 ||
      A.batch != D.batch || B.batch != D.batch || e.compute != (A.type == FB_LT_F16 ? FB_LT_COMPUTE_F32 : FB_LT_COMPUTE_TF32))
    return 7;
  const bool tf32 = e.compute == FB_LT_COMPUTE_TF32;
  for (int z = 0; z < D.batch; z++)
    for (uint64_t j = 0; j < m; j++)
      for (uint64_t i = 0; i < n; i++) {
        double sum = 0;
        for (uint64_t x = 0; x < k; x++) sum += (double)(e.trans_a ? element(a, A, z, x, i, tf32) : element(a, A, z, i, x, tf32)) * (e.trans_b ? element(b, B, z, j, x, tf32) : element(b, B, z, x, j, tf32));
        float y = *static_cast<const float *>(alpha) * (float)sum;
        if (*static_cast<const float *>(beta) != 0) y += *static_cast<const float *>(beta) * static_cast<const float *>(c)[z * C.stride + j * C.ld + i];
        if (e.epilogue & FB_LT_EPILOGUE_BIAS) y += e.bias[i]; // one for each row of D
        if (e.epilogue & FB_LT_EPILOGUE_RELU) y = y > 0 ? y : 0;
        static_cast<float *>(d)[z * D.stride + j * D.ld + i] = y;
      }
  return products++, 0;
}

const FbCublasLt table = {create, destroy, version, desc_create, desc_destroy, desc_set, layout_create, layout_destroy, layout_set, preference_create, preference_destroy, preference_set, heuristic, matmul};

} // namespace

extern "C" {
// on installs the double or takes it away; fail 1: no algorithm is found, 2: products fail. Returns what is left open.
int fb_emu_cublaslt_double(int on, int fail) {
  failing = fail;
  products = 0;
  fb_emu_cublaslt(on ? &table : nullptr);
  return open_things;
}
int fb_emu_cublaslt_products(void) { return products; }
}
