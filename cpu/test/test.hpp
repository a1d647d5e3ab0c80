// A small harness: TEST registers a function, CHECK reports and goes on.
#pragma once
#include <cmath>
#include <cstdint>
#include <cstring>
#include <cstdio>
#include <random>
#include <vector>

struct Test {
  const char *name;
  void (*run)();
};
std::vector<Test> &tests();
bool failed(const char *file, int line, const char *what);

#define TEST(name)                                                                                                    \
  static void name();                                                                                                 \
  static const bool name##_registered = (tests().push_back({#name, name}), true);                                     \
  static void name()
#define CHECK(ok)                                                                                                     \
  ((ok) || failed(__FILE__, __LINE__, #ok))

inline std::vector<float> gauss(size_t n, uint32_t seed, float scale = 1) {
  std::mt19937 r(seed);
  std::normal_distribution<float> d(0, scale);
  std::vector<float> v(n);
  for (float &x : v) x = d(r);
  return v;
}

inline bool same_bits(const std::vector<float> &a, const std::vector<float> &b) {
  return a.size() == b.size() && (a.empty() || std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0);
}
