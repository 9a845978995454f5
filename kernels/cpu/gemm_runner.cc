#include "kernels/cpu/gemm_runner.h"

#include <algorithm>

#include "kernels/check.h"

namespace epic::kernels {
namespace {

// None of these constants changes a bit. They follow from the sizes of caches and were not measured
// one by one; tests/perf/RESULTS.md has the speed of the whole.
//
// A thread computes a block of C at a time: at most kBlockRows rows and kBlockFloats values, 384
// KiB, which stay in a second-level cache (1 MiB and more on the CPUs with AVX-512) until `finish`
// has read them.
constexpr int64_t kBlockRows = 256;
constexpr int64_t kBlockFloats = int64_t{96} << 10;
// Blocks and threads' shares begin at multiples of 64 columns: families go over several panels of
// 16 outputs side by side, and fewer would leave their widest loops unused.
constexpr int64_t kGroupColumns = 64;
// With more rows than a block has, a thread passes over its weights once for each block of rows.
// This many bytes of them stay in the second-level cache from one pass to the next, beside C.
constexpr int64_t kBlockWeightBytes = int64_t{384} << 10;
// Work on fewer bytes stays on the calling thread: at the bandwidth of one core (some 20 GB/s) they
// take 3 µs, about as long as to start and end a parallel region.
constexpr int64_t kRegionBytes = int64_t{64} << 10;
// The model of cost by which threads share work: up to 6 rows a product takes as long as reading
// its weight from memory, and then as long again for every 6 rows more.
constexpr int64_t kRowsPerRead = 6;

// The cost of a panel, in bytes that could be read meanwhile.
int64_t PanelCost(const GemmFamily& family, const GemmJob& job) {
  const int64_t bytes =
      family.panel_bytes(job.weight.k, job.weight.dtype) * (job.second.data != nullptr ? 2 : 1);
  return bytes * (1 + (job.rows - 1) / kRowsPerRead);
}

int64_t JobCost(const GemmFamily& family, const GemmJob& job) {
  return PanelCount(family, job.weight.n) * PanelCost(family, job);
}

// Returns the panel at which the share of thread `thread` begins. The jobs before this one cost
// `before` of `total`. Shares begin at a group of columns where there are many.
int64_t FirstPanel(const GemmFamily& family, const GemmJob& job, int64_t before, int64_t total,
                   int thread, int threads) {
  const int64_t panels = PanelCount(family, job.weight.n);
  if (thread == threads) return panels;
  int64_t unit = std::max<int64_t>(1, kGroupColumns / family.panel_columns());
  // Few columns: even shares matter more than whole groups.
  if (panels < 4 * unit * threads) unit = 1;
  const int64_t goal = total * thread / threads - before;
  if (goal <= 0) return 0;
  return std::min(panels, (goal / PanelCost(family, job) + unit / 2) / unit * unit);
}

void CheckJob(const GemmJob& job) {
  KERNEL_CHECK_GT(job.rows, 0);
  KERNEL_CHECK(job.a != nullptr && job.weight.data != nullptr);
  KERNEL_CHECK_GE(job.a_stride, job.weight.k);
  if (job.second.data == nullptr) return;
  KERNEL_CHECK_EQ(job.second.n, job.weight.n);
  KERNEL_CHECK_EQ(job.second.k, job.weight.k);
  KERNEL_CHECK_EQ(job.second.dtype, job.weight.dtype);
}

}  // namespace

std::vector<const std::byte*> GemmRunner::PrepareRows(const GemmFamily& family,
                                                      const std::vector<GemmJob>& jobs) {
  std::vector<const std::byte*> prepared(jobs.size());
  std::vector<int64_t> offsets(jobs.size());
  struct Row {
    size_t job;
    int64_t row;
  };
  std::vector<Row> rows;
  int64_t total = 0;
  int64_t cost = 0;
  for (size_t i = 0; i < jobs.size(); ++i) {
    const PackedWeight& weight = jobs[i].weight;
    const int64_t row_bytes = family.row_bytes(weight.k, weight.dtype);
    // Neighbours often multiply the same rows.
    const bool same = i > 0 && jobs[i].a == jobs[i - 1].a &&
                      jobs[i].a_stride == jobs[i - 1].a_stride &&
                      jobs[i].rows == jobs[i - 1].rows && weight.k == jobs[i - 1].weight.k &&
                      weight.dtype == jobs[i - 1].weight.dtype;
    offsets[i] = same ? offsets[i - 1] : total;
    if (row_bytes == 0 || same) continue;
    for (int64_t row = 0; row < jobs[i].rows; ++row) rows.push_back({i, row});
    total += jobs[i].rows * row_bytes;
    cost = std::max(cost, 2 * weight.k);
  }
  if (total == 0) return prepared;
  // Parts run later, so each Products of an operation needs memory of its own.
  if (products_ == prepared_.size()) prepared_.emplace_back();
  std::byte* memory = prepared_[products_++].Get<std::byte>(total);
  for (size_t i = 0; i < jobs.size(); ++i) {
    const PackedWeight& weight = jobs[i].weight;
    if (family.row_bytes(weight.k, weight.dtype) > 0) prepared[i] = memory + offsets[i];
  }
  const auto count = static_cast<int64_t>(rows.size());
  Rows(count, cost,
       [&family, jobs, memory, rows = std::move(rows), offsets = std::move(offsets)](int64_t i,
                                                                                     int) {
         const GemmJob& job = jobs[rows[i].job];
         const int64_t row_bytes = family.row_bytes(job.weight.k, job.weight.dtype);
         family.PrepareRow(job.a + rows[i].row * job.a_stride, job.weight.k, job.weight.dtype,
                           memory + offsets[rows[i].job] + rows[i].row * row_bytes);
       });
  return prepared;
}

void GemmRunner::RunRange(const GemmFamily& family, const GemmJob& job, const std::byte* prepared,
                          const Range& range, int thread,
                          const std::function<void(const GemmBlock&)>& finish) {
  const int64_t width = family.panel_columns();
  const int64_t group = std::max(width, kGroupColumns);
  const int64_t block_rows = std::min(job.rows, kBlockRows);
  const int64_t n_end = std::min(job.weight.n, range.panel_end * width);
  const int64_t wanted = n_end - range.panel_begin * width;
  int64_t fitting = kBlockFloats / block_rows;
  if (job.rows > kBlockRows) {
    const int64_t weights = job.second.data != nullptr ? 2 : 1;
    const int64_t panel_bytes = weights * family.panel_bytes(job.weight.k, job.weight.dtype);
    fitting = std::min(fitting, kBlockWeightBytes / panel_bytes * width);
  }
  fitting = std::max(group, fitting / group * group);
  const int64_t block_columns = std::min(wanted, fitting);
  const int64_t stride = (block_columns + 15) / 16 * 16;
  const int64_t block_bytes = (block_rows * stride * 4 + 63) / 64 * 64;
  auto* c = scratch_[thread].Get<std::byte>(2 * block_bytes + family.scratch_bytes(job.weight.k));
  auto* second = c + block_bytes;

  const int64_t row_bytes = family.row_bytes(job.weight.k, job.weight.dtype);
  GemmArguments arguments{.a_stride = job.a_stride,
                          .prepared_stride = row_bytes,
                          .c_stride = stride,
                          .scratch = second + block_bytes};
  // Columns outside, rows inside: a block's weights are read from memory once, whatever the rows.
  for (int64_t n = range.panel_begin * width; n < n_end; n += block_columns) {
    arguments.n_begin = n;
    arguments.n_end = std::min(n_end, n + block_columns);
    for (int64_t row = 0; row < job.rows; row += kBlockRows) {
      arguments.a = job.a + row * job.a_stride;
      arguments.prepared = prepared + row * row_bytes;
      arguments.m = std::min(kBlockRows, job.rows - row);
      arguments.weight = job.weight;
      arguments.c = reinterpret_cast<float*>(c);
      family.Gemm(arguments);
      if (job.second.data != nullptr) {
        arguments.weight = job.second;
        arguments.c = reinterpret_cast<float*>(second);
        family.Gemm(arguments);
      }
      finish({.job = range.job,
              .row_begin = row,
              .row_end = row + arguments.m,
              .n_begin = n,
              .n_end = arguments.n_end,
              .c = reinterpret_cast<float*>(c),
              .second = reinterpret_cast<float*>(second),
              .stride = stride});
      pool_.Breathe(thread);
    }
  }
}

void GemmRunner::Part(int64_t cost_bytes, std::function<void(int, int)> body) {
  KERNEL_CHECK_GE(cost_bytes, 0);
  phases_.push_back({cost_bytes, std::move(body)});
}

void GemmRunner::Rows(int64_t count, int64_t cost_bytes, std::function<void(int64_t, int)> body) {
  Part(count * cost_bytes, [count, body = std::move(body)](int thread, int threads) {
    // Shares differ by one row at most, and follow from the number of threads alone.
    const int64_t end = count * (thread + 1) / threads;
    for (int64_t i = count * thread / threads; i < end; ++i) body(i, thread);
  });
}

void GemmRunner::Products(const GemmFamily& family, std::vector<GemmJob> jobs,
                          std::function<void(const GemmBlock&)> finish) {
  int64_t total = 0;
  for (const GemmJob& job : jobs) {
    CheckJob(job);
    total += JobCost(family, job);
  }
  auto prepared = PrepareRows(family, jobs);
  Part(total, [this, &family, jobs = std::move(jobs), prepared = std::move(prepared),
               finish = std::move(finish), total](int thread, int threads) {
    int64_t before = 0;
    for (size_t i = 0; i < jobs.size(); ++i) {
      const int64_t begin = FirstPanel(family, jobs[i], before, total, thread, threads);
      const int64_t end = FirstPanel(family, jobs[i], before, total, thread + 1, threads);
      if (end > begin) {
        RunRange(family, jobs[i], prepared[i], {static_cast<int>(i), begin, end}, thread, finish);
      }
      before += JobCost(family, jobs[i]);
    }
  });
}

// A region costs some microseconds, so small parts at both ends stay outside it, on this thread; a
// small part in the middle is cheaper as a phase of the region than as the border of two.
void GemmRunner::Run() {
  const auto small = [](const Phase& phase) { return phase.cost_bytes < kRegionBytes; };
  auto begin = phases_.begin();
  auto end = phases_.end();
  int64_t total = 0;
  for (const Phase& phase : phases_) total += phase.cost_bytes;
  if (total < kRegionBytes || pool_.threads() == 1) {
    begin = end;
  } else {
    begin = std::find_if_not(begin, end, small);
    while (end != begin && small(*(end - 1))) --end;
    if (begin == end) begin = phases_.begin(), end = phases_.end();
  }
  for (auto phase = phases_.begin(); phase != begin; ++phase) phase->body(0, 1);
  // All of them share one region: threads meet at a barrier between phases and are not woken anew.
  std::vector<std::function<void(int)>> bodies;
  for (auto phase = begin; phase != end; ++phase) {
    bodies.push_back([&, phase](int thread) { phase->body(thread, pool_.threads()); });
  }
  if (!bodies.empty()) pool_.RunPhases(bodies);
  for (auto phase = end; phase != phases_.end(); ++phase) phase->body(0, 1);
  phases_.clear();
  products_ = 0;
}

}  // namespace epic::kernels
