// One-way latency in nanoseconds between two processors, by a ball that they
// throw to each other: virtual machines move them apart and together, and what
// two threads share then costs several times as much.
#include <pthread.h>
#include <time.h>

#include <atomic>
#include <cstdio>
#include <thread>

namespace {

constexpr int kThrows = 20000;
alignas(64) std::atomic<int> ball{0};

void pin(int cpu) {
  cpu_set_t set;
  CPU_ZERO(&set);
  CPU_SET(cpu, &set);
  pthread_setaffinity_np(pthread_self(), sizeof set, &set);
}

double now() {
  timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return t.tv_sec * 1e9 + t.tv_nsec;
}

} // namespace

int main() {
  std::thread other([] {
    pin(1);
    for (int i = 0; i < kThrows; i++) {
      while (ball.load(std::memory_order_acquire) != 2 * i + 1) {
      }
      ball.store(2 * i + 2, std::memory_order_release);
    }
  });
  pin(0);
  const double start = now();
  for (int i = 0; i < kThrows; i++) {
    ball.store(2 * i + 1, std::memory_order_release);
    while (ball.load(std::memory_order_acquire) != 2 * i + 2) {
    }
  }
  const double end = now();
  other.join();
  std::printf("%.0f\n", (end - start) / kThrows / 2);
}
