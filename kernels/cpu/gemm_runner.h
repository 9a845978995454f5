// Runs matrix products, and the work on rows around them, on all threads in one parallel region;
// products are split by bytes of weight.
#pragma once

#include <cstdint>
#include <cstring>
#include <deque>
#include <functional>
#include <vector>

#include "kernels/cpu/gemm.h"
#include "kernels/cpu/huge_memory.h"
#include "kernels/threads/thread_pool.h"

namespace epic::kernels {

// rows·weightᵀ, and rows·secondᵀ beside it where `second` is given (of the same shape and type).
struct GemmJob {
  const BF16* a = nullptr;
  int64_t a_stride = 0;
  int64_t rows = 0;
  PackedWeight weight;
  PackedWeight second;  // data null: none
};

// A finished part of a job: rows [row_begin, row_end), columns [n_begin, n_end).
struct GemmBlock {
  int job = 0;
  int64_t row_begin = 0;
  int64_t row_end = 0;
  int64_t n_begin = 0;
  int64_t n_end = 0;
  const float* c = nullptr;       // [rows of the block][stride]
  const float* second = nullptr;  // likewise, of GemmJob::second
  int64_t stride = 0;

  int64_t columns() const { return n_end - n_begin; }
  const float* Row(int64_t row) const { return c + (row - row_begin) * stride; }
  const float* SecondRow(int64_t row) const { return second + (row - row_begin) * stride; }
  // Copies the block to its place in `to`, row-major [job's rows, to_columns].
  void CopyTo(float* to, int64_t to_columns) const {
    for (int64_t row = row_begin; row < row_end; ++row) {
      std::memcpy(to + row * to_columns + n_begin, Row(row), 4 * columns());
    }
  }
};

// Collects the parts of an operation and runs them in one parallel region. A part begins when the
// one before it has ended on every thread. How a part is cut among threads changes no bit.
//
//   runner.Rows(count, bytes, [&](int64_t i, int thread) { … });
//   runner.Products(family, jobs, [&](const GemmBlock& block) { … });
//   runner.Run();
//
// What the parts refer to lives until Run returns. One operation at a time.
class GemmRunner {
 public:
  explicit GemmRunner(ThreadPool& pool) : pool_(pool), scratch_(pool.threads()) {}

  // body(i, thread) for i in [0, count), each of which costs as much as reading `cost_bytes`.
  void Rows(int64_t count, int64_t cost_bytes, std::function<void(int64_t, int thread)> body);
  // Calls `finish` for each block, on the thread that computed it; blocks do not overlap and cover
  // every job. Each panel of a weight is read from memory once, whatever the number of rows.
  void Products(const GemmFamily& family, std::vector<GemmJob> jobs,
                std::function<void(const GemmBlock&)> finish);
  // body(thread, threads) does its share.
  void Part(int64_t cost_bytes, std::function<void(int thread, int threads)> body);

  // Runs the parts added since the last call. Small ones at the beginning and at the end, and all
  // if they are small together, stay on the calling thread.
  void Run();

 private:
  struct Range {
    int job;
    int64_t panel_begin;
    int64_t panel_end;
  };
  struct Phase {
    int64_t cost_bytes;
    std::function<void(int thread, int threads)> body;
  };

  // Adds the part that prepares the jobs' rows. Returns where each job's rows will stand as
  // `family` wants them; null: they are used as they are.
  std::vector<const std::byte*> PrepareRows(const GemmFamily& family,
                                            const std::vector<GemmJob>& jobs);
  void RunRange(const GemmFamily& family, const GemmJob& job, const std::byte* prepared,
                const Range& range, int thread,
                const std::function<void(const GemmBlock&)>& finish);

  ThreadPool& pool_;
  std::vector<Phase> phases_;
  std::deque<ReusableMemory> prepared_;  // of each Products of an operation
  size_t products_ = 0;                  // of this operation so far
  std::vector<ReusableMemory> scratch_;  // [threads]
};

}  // namespace epic::kernels
