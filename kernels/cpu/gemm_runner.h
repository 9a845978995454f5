// Runs a list of matrix products on all threads in one parallel region, split by bytes of weight.
#pragma once

#include <cstdint>
#include <functional>
#include <span>
#include <vector>

#include "kernels/cpu/gemm.h"
#include "kernels/cpu/huge_memory.h"
#include "kernels/cpu/thread_pool.h"

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
};

class GemmRunner {
 public:
  explicit GemmRunner(ThreadPool& pool) : pool_(pool), scratch_(pool.threads()) {}

  // Calls `finish` for each block, on the thread that computed it; blocks do not overlap and cover
  // every job. Small work stays on the calling thread.
  void Run(const GemmFamily& family, std::span<const GemmJob> jobs,
           const std::function<void(const GemmBlock&)>& finish);

  // Calls body(i, thread) for i in [0, count), on all threads if count · cost (in bytes of memory
  // traffic or its like) is worth a region.
  void ForEach(int64_t count, int64_t cost_bytes,
               const std::function<void(int64_t, int thread)>& body);

 private:
  struct Range {
    int job;
    int64_t panel_begin;
    int64_t panel_end;
  };

  // Where each job's rows stand as `family` wants them; null: as they are.
  std::vector<const std::byte*> PrepareRows(const GemmFamily& family,
                                            std::span<const GemmJob> jobs);
  std::vector<std::vector<Range>> Split(const GemmFamily& family, std::span<const GemmJob> jobs,
                                        int threads) const;
  void RunRange(const GemmFamily& family, const GemmJob& job, const std::byte* prepared,
                const Range& range, int thread,
                const std::function<void(const GemmBlock&)>& finish);

  ThreadPool& pool_;
  ReusableMemory prepared_;
  std::vector<ReusableMemory> scratch_;  // [threads]
};

}  // namespace epic::kernels
