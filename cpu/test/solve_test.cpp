// The loops of the solvers against plain ones, bit for bit. Buffers have the exact size:
// the sanitizer sees what is beside.
#include <algorithm>
#include <cmath>
#include <limits>

#include "solve.hpp"
#include "test.hpp"

using namespace fewbit;

namespace {

float nearest(float v) {
  volatile float up = v + 12582912.f; // 1.5*2^23
  return up - 12582912.f;
}

} // namespace

TEST(solve_round_strip) {
  const SolveKernels kn = solve_kernels();
  if (!kn.round_strip) return;
  for (int64_t rows : {1, 2, 63, 64})
    for (int64_t n : {1, 15, 16, 17, 127, 128, 150, 259})
      for (bool carries : {false, true}) {
        const int64_t k = rows + 3, all = rows + 5; // rows of w, of which some are not rounded
        auto w = gauss(size_t(all * n), 1), scales = gauss(size_t(n), 4);
        const auto m = gauss(size_t((rows - 1) * k + rows), 2), carried = gauss(size_t(rows * n), 3);
        for (size_t i = 0; i < w.size(); i += 7) w[i] = 0;
        for (float &s : scales) s = std::fabs(s) / 40 + 0.003f; // some are clipped
        std::vector<int64_t> order;
        for (int64_t r = 0; r < rows; r++) order.push_back((r * 3 + 1) % all);
        std::sort(order.begin(), order.end());
        order.erase(std::unique(order.begin(), order.end()), order.end());
        const auto count = int64_t(order.size());
        std::vector<float> d(size_t(count * n), 7), want = d;
        std::vector<int8_t> codes(w.size(), 99), expect = codes;
        for (int64_t r = 0; r < count; r++)
          for (int64_t c = 0; c < n; c++) {
            const float was = w[size_t(order[size_t(r)] * n + c)], s = scales[size_t(c)];
            float v = was;
            if (carries) v += carried[size_t(r * n + c)];
            for (int64_t j = 0; j < r; j++) {
              volatile float p = m[size_t(r * k + j)] * want[size_t(j * n + c)];
              v += p;
            }
            const float q = was == 0 ? 0 : nearest(std::min(std::max(v / s, -7.f), 6.f));
            volatile float p = q * s;
            expect[size_t(order[size_t(r)] * n + c)] = int8_t(q), want[size_t(r * n + c)] = was - p;
          }
        // In parts: what lies beside one is left alone.
        for (int64_t from = 0; from < n; from += 130)
          kn.round_strip(m.data(), k, order.data(), count, w.data(), carries ? carried.data() : nullptr, scales.data(), n, from, std::min(n, from + 130), -7, 6, d.data(), codes.data());
        CHECK(same_bits(d, want) && codes == expect);
      }
}

TEST(solve_clip_scales) {
  const SolveKernels kn = solve_kernels();
  if (!kn.clip_scales) return;
  const std::vector<float> shares = {1, 0.93f, 0.85f, 0.7f};
  for (int64_t k : {1, 63, 64, 65, 200})
    for (int64_t n : {1, 15, 16, 17, 40}) {
      auto w = gauss(size_t(k * n), 5), importance = gauss(size_t(k), 6);
      for (float &v : w) v = v * v * v; // a long tail
      for (float &v : importance) v = std::fabs(v);
      for (int64_t i = 0; i < k; i++) w[size_t(i * n)] = 0; // a column without an error
      std::vector<float> scales(size_t(n), 1e-20f);
      for (size_t i = 0; i < w.size(); i++) scales[i % size_t(n)] = std::max(scales[i % size_t(n)], std::fabs(w[i]) / 7);
      auto want = scales;
      for (int64_t c = 0; c < n; c++) {
        double least = std::numeric_limits<double>::infinity();
        const float full = want[size_t(c)];
        for (float share : shares) {
          const float s = full * share, inv = 1 / s;
          double sum = 0;
          for (int64_t at = 0; at < k; at += FEWBIT_CPU_SOLVE_ROWS) {
            float e = 0;
            for (int64_t i = at; i < std::min<int64_t>(at + FEWBIT_CPU_SOLVE_ROWS, k); i++) {
              const float x = w[size_t(i * n + c)];
              volatile float scaled = x * inv;
              volatile float back = std::max(std::min(nearest(scaled), 7.f), -7.f) * s;
              volatile float d = x - back;
              volatile float square = d * d;
              volatile float term = square * importance[size_t(i)];
              e += term;
            }
            sum += double(e);
          }
          if (sum < least) least = sum, want[size_t(c)] = s;
        }
      }
      std::vector<float> scratch(size_t(16 * k));
      for (int64_t from = 0; from < n; from += 21)
        kn.clip_scales(w.data(), k, n, from, std::min(n, from + 21), importance.data(), shares.data(), int64_t(shares.size()), 7, scratch.data(), scales.data());
      CHECK(same_bits(scales, want));
    }
}
