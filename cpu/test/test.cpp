#include "test.hpp"

#include <algorithm>
#include <chrono>
#include <cstring>

#include "level.hpp"

namespace {
int failures;
}

std::vector<Test> &tests() {
  static std::vector<Test> all;
  return all;
}

bool failed(const char *file, int line, const char *what) {
  constexpr int shown = 20; // a broken kernel breaks thousands of values
  if (++failures <= shown) std::fprintf(stderr, "%s:%d: %s\n", file, line, what);
  return false;
}

// Arguments: parts of names of tests, all without; or --levels, which names those that
// this processor has.
int main(int argc, char **argv) {
  if (argc == 2 && !std::strcmp(argv[1], "--levels")) {
    for (int l = FEWBIT_CPU_PLAIN; l <= FEWBIT_CPU_AMX; l++)
      if (fewbit::has_level(l)) std::printf("%s\n", fewbit::level_name(fewbit_cpu_level(l)));
    return 0;
  }
  if (const std::string why = fewbit::level_refused(); !why.empty()) std::printf("%s\n", why.c_str());
  std::printf("level %s\n", fewbit::level_name(fewbit::level()));
  for (const Test &t : tests()) {
    if (argc > 1 && std::none_of(argv + 1, argv + argc, [&](const char *part) { return std::strstr(t.name, part); })) continue;
    const int before = failures;
    const auto began = std::chrono::steady_clock::now();
    t.run();
    const std::chrono::duration<double> took = std::chrono::steady_clock::now() - began;
    std::printf("%s %s %.1f s\n", failures == before ? "ok  " : "FAIL", t.name, took.count());
    std::fflush(stdout); // of a test that crashes or hangs, what ran before it shows
  }
  return failures != 0;
}
