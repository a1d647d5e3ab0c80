// How a product is cut into tasks: blocks of rows that one thread converts once
// and keeps in its second-level cache, times groups of panels.
#pragma once
#include <algorithm>
#include <atomic>
#include <cstdint>
#include <cstdlib>
#include <memory>
#include <new>

#include "ort.hpp"

namespace fewbit {

// Of working memory, from call to call: one of some thousand rows must not keep its for ever.
inline constexpr size_t kKeptBytes = size_t(64) << 20;

// What one thread has prepared for a block, and of which call and block that is:
// tasks of the same block come one after the other.
struct BlockRows {
  uint64_t call = 0;
  int64_t block = -1;
  size_t bytes = 0;
  std::unique_ptr<void, decltype(&std::free)> memory{nullptr, std::free};

  void *reserve(size_t n) {
    if (n > bytes || (bytes > kKeptBytes && n <= kKeptBytes)) {
      n = (n + 4095) / 4096 * 4096;
      memory.reset(std::aligned_alloc(64, n));
      bytes = memory ? n : 0;
      call = 0;
    }
    return memory.get();
  }
};

// Runs `parts` tasks for each block on the session's threads: work(block, part,
// memory) with `bytes` of memory into which prepare(block, memory) has written.
// A thread prepares a block once for the parts that it gets one after the other.
template <class Prepare, class Work>
void run_blocks(const Call &call, int64_t blocks, int64_t parts, size_t bytes, const Prepare &prepare, const Work &work) {
  static std::atomic<uint64_t> calls{0};
  const uint64_t id = ++calls;
  std::atomic<bool> failed{false};
  call.parallel(size_t(blocks * parts), [&](size_t task) {
    thread_local BlockRows mine;
    const int64_t block = int64_t(task) / parts;
    void *memory = mine.reserve(bytes);
    if (!memory) {
      failed = true;
      return;
    }
    if (mine.call != id || mine.block != block) {
      prepare(block, memory);
      mine.call = id, mine.block = block;
    }
    work(block, int64_t(task) % parts, memory);
  });
  if (failed) throw std::bad_alloc();
}

struct Blocks {
  int64_t rows, panels;     // of the product
  int64_t height, blocks;   // rows of a block, a multiple of a tile's
  int64_t groups;           // of panels

  // row_bytes: of a converted row; work: multiply-accumulates of a row.
  Blocks(int64_t rows, int64_t panels, int64_t row_bytes, int64_t work, int threads) : rows(rows), panels(panels) {
    constexpr int64_t tile = 8, most_rows = 64, cache = 512 << 10;
    constexpr int64_t tasks = 4;            // for each thread: the last even out what threads started late
    constexpr int64_t least_work = 1 << 20; // smaller tasks cost more than they save
    const int64_t most = std::clamp(cache / row_bytes / tile * tile, tile, most_rows);
    blocks = (rows + most - 1) / most;
    height = ((rows + blocks - 1) / blocks + tile - 1) / tile * tile;
    blocks = (rows + height - 1) / height;
    const int64_t worth = std::max<int64_t>(1, rows * (work / least_work + 1));
    groups = std::clamp<int64_t>((std::min<int64_t>(threads * tasks, worth) + blocks - 1) / blocks, 1, panels);
  }

  // Calls convert(r0, r1, memory) and then multiply(r0, r1, p0, p1, memory) for
  // every block and group, on the session's threads. memory has
  // height * bytes_of_row + more bytes.
  template <class Convert, class Multiply>
  void run(const Call &call, size_t bytes_of_row, size_t more, const Convert &convert, const Multiply &multiply) const {
    const auto last = [&](int64_t block) { return std::min(rows, (block + 1) * height); };
    run_blocks(
        call, blocks, groups, size_t(height) * bytes_of_row + more,
        [&](int64_t block, void *memory) { convert(block * height, last(block), memory); },
        [&](int64_t block, int64_t group, void *memory) {
          multiply(block * height, last(block), panels * group / groups, panels * (group + 1) / groups, memory);
        });
  }
};

} // namespace fewbit
