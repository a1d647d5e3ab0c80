// Stages of work that the threads of one parallel loop do together, one after the
// other.
#pragma once
#include <algorithm>
#include <atomic>
#include <cstdint>
#include <new>
#include <thread>

#include "carve.hpp"
#include "encoder.hpp"

namespace fewbit {

inline void pause_in_loop() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

// Each thread walks through the same stages and takes units of each, first those of
// its own share, which are the same ones in stages of as many units: what it wrote then
// lies in its own cache. Then it helps with the others'. A stage begins when each
// unit of the one before is done.
//
// A thread waits for nothing but units that another has begun and is working on:
// where the loop's tasks run one after the other, or some never begin, the first does
// all the work and waits for nobody.
class Stages {
  struct alignas(64) Share {
    std::atomic<uint64_t> next{0}; // its stage and unit
    std::atomic<bool> taken{false};
  };
  struct alignas(64) Done {
    std::atomic<int64_t> units{0};
  };

public:
  static Stages take(Carve &c, int64_t threads) {
    Stages s;
    s.shares_ = c.take<Share>(threads), s.done_ = c.take<Done>(1), s.count_ = threads;
    return s;
  }

  class Thread {
  public:
    const int64_t share; // no other thread has it

    // Calls f(unit, more, first) for units 0..n-1, on this thread or another, and
    // returns when all are done. more: the next unit of that share follows there;
    // first: this thread's first call of this stage.
    template <class F> void run(int64_t n, const F &f) {
      stage_++, until_ += n;
      std::atomic<int64_t> &done = all_.done_->units;
      if (done.load(std::memory_order_acquire) >= until_) return; // others were faster
      int64_t did = 0;
      for (int64_t i = 0; i < all_.count_; i++) {
        const int64_t s = (share + i) % all_.count_, end = n * (s + 1) / all_.count_;
        for (int64_t unit; (unit = claim(all_.shares_[s], n * s / all_.count_, end)) < end; did++) f(unit, unit + 1 < end, did == 0);
      }
      if (did) done.fetch_add(did, std::memory_order_release);
      for (int spins = 0; done.load(std::memory_order_acquire) < until_;)
        if (++spins <= kSpins)
          pause_in_loop();
        else
          std::this_thread::yield();
    }

  private:
    friend class Stages;
    Thread(const Stages &all, int64_t share) : share(share), all_(all) {}

    // A unit of [first,end) that nobody has taken, or end.
    int64_t claim(Share &s, int64_t first, int64_t end) const {
      for (uint64_t v = s.next.load(std::memory_order_relaxed);;) {
        const uint64_t stage = v >> kUnitBits;
        // Others may be further, and then this stage is done.
        const int64_t unit = stage < stage_ ? first : stage > stage_ ? end : int64_t(v & kUnits);
        if (unit >= end) return end;
        if (s.next.compare_exchange_weak(v, stage_ << kUnitBits | uint64_t(unit + 1), std::memory_order_relaxed)) return unit;
      }
    }

    const Stages &all_;
    uint64_t stage_ = 0;
    int64_t until_ = 0; // units of all stages up to this one
  };

  // Calls f(Thread &) on each of the threads.
  template <class F> void run(const Parallel &parallel, const F &f) const {
    for (int64_t i = 0; i < count_; i++) new (shares_ + i) Share;
    new (done_) Done;
    parallel(count_, [&](int64_t) {
      Thread thread(*this, own());
      f(thread);
    });
  }

private:
  static constexpr int kUnitBits = 48, kSpins = 2000;
  static constexpr uint64_t kUnits = (uint64_t(1) << kUnitBits) - 1;

  Share *shares_ = nullptr;
  Done *done_ = nullptr;
  int64_t count_ = 0;

  // A share that no other task has, the one of the last time if it is free. There are
  // as many as tasks.
  int64_t own() const {
    thread_local int64_t last = 0;
    for (int64_t i = last < count_ ? last : 0;; i = (i + 1) % count_)
      if (!shares_[i].taken.exchange(true, std::memory_order_relaxed)) return last = i;
  }
};

} // namespace fewbit
