#include "kernels/cpu/gemm_runner.h"

#include <algorithm>

namespace epic::kernels {
namespace {

constexpr int64_t kBlockRows = 256;
constexpr int64_t kBlockFloats = int64_t{96} << 10;
constexpr int64_t kGroupColumns = 64;
// Less than this, a region costs more than it gains.
constexpr int64_t kRegionBytes = int64_t{96} << 10;
// So many rows cost as much as reading the weight.
constexpr int64_t kRowsPerRead = 6;

int64_t PanelCost(const GemmFamily& family, const GemmJob& job) {
  const int64_t bytes =
      family.panel_bytes(job.weight.k, job.weight.dtype) * (job.second.data != nullptr ? 2 : 1);
  return bytes * (1 + (job.rows - 1) / kRowsPerRead);
}

}  // namespace

std::vector<std::vector<GemmRunner::Range>> GemmRunner::Split(const GemmFamily& family,
                                                              std::span<const GemmJob> jobs,
                                                              int threads) const {
  int64_t total = 0;
  for (const GemmJob& job : jobs) {
    total += PanelCount(family, job.weight.n) * PanelCost(family, job);
  }
  std::vector<std::vector<Range>> ranges(threads);
  int64_t before = 0;
  for (size_t i = 0; i < jobs.size(); ++i) {
    const int64_t panels = PanelCount(family, jobs[i].weight.n);
    const int64_t cost = PanelCost(family, jobs[i]);
    int64_t unit = std::max<int64_t>(1, kGroupColumns / family.panel_columns());
    if (panels < 4 * unit * threads) unit = 1;
    int64_t begin = 0;
    for (int t = 0; t < threads; ++t) {
      const int64_t goal = total * (t + 1) / threads - before;
      int64_t end = t + 1 == threads ? panels : (goal / cost + unit / 2) / unit * unit;
      end = std::clamp(end, begin, panels);
      if (end > begin) ranges[t].push_back({static_cast<int>(i), begin, end});
      begin = end;
    }
    before += panels * cost;
  }
  return ranges;
}

std::vector<const std::byte*> GemmRunner::PrepareRows(const GemmFamily& family,
                                                      std::span<const GemmJob> jobs) {
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
  std::byte* memory = total > 0 ? prepared_.Get<std::byte>(total) : nullptr;
  for (size_t i = 0; i < jobs.size(); ++i) {
    const PackedWeight& weight = jobs[i].weight;
    if (family.row_bytes(weight.k, weight.dtype) > 0) prepared[i] = memory + offsets[i];
  }
  ForEach(static_cast<int64_t>(rows.size()), cost, [&](int64_t i, int) {
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
  const int64_t fitting = std::max(group, kBlockFloats / block_rows / group * group);
  const int64_t block_columns = std::min(wanted, fitting);
  const int64_t stride = (block_columns + 15) / 16 * 16;
  const int64_t block_bytes = (block_rows * stride * 4 + 63) / 64 * 64;
  auto* c = scratch_[thread].Get<std::byte>(2 * block_bytes + family.scratch_bytes(job.weight.k));
  auto* second = c + block_bytes;

  const int64_t row_bytes = family.row_bytes(job.weight.k, job.weight.dtype);
  GemmArguments arguments{
      .a_stride = job.a_stride, .c_stride = stride, .scratch = second + block_bytes};
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
    }
  }
}

void GemmRunner::Run(const GemmFamily& family, std::span<const GemmJob> jobs,
                     const std::function<void(const GemmBlock&)>& finish) {
  int64_t total = 0;
  for (const GemmJob& job : jobs) {
    total += PanelCount(family, job.weight.n) * PanelCost(family, job);
  }
  const int threads = total < kRegionBytes ? 1 : pool_.threads();
  const auto prepared = PrepareRows(family, jobs);
  const auto ranges = Split(family, jobs, threads);
  const auto body = [&](int thread) {
    for (const Range& range : ranges[thread]) {
      RunRange(family, jobs[range.job], prepared[range.job], range, thread, finish);
    }
  };
  if (threads == 1) return body(0);
  pool_.Run(body);
}

void GemmRunner::ForEach(int64_t count, int64_t cost_bytes,
                         const std::function<void(int64_t, int)>& body) {
  if (count * cost_bytes < kRegionBytes || count == 1) {
    for (int64_t i = 0; i < count; ++i) body(i, 0);
    return;
  }
  pool_.Run([&](int thread) {
    const int64_t begin = count * thread / pool_.threads();
    const int64_t end = count * (thread + 1) / pool_.threads();
    for (int64_t i = begin; i < end; ++i) body(i, thread);
  });
}

}  // namespace epic::kernels
