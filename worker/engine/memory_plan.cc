#include "worker/engine/memory_plan.h"

#include <algorithm>
#include <fstream>
#include <limits>
#include <sstream>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "base/check.h"
#include "worker/kv/page_ledger.h"

namespace epic::worker {
namespace {

// All but KV pages, as if it were all held at once. What loading takes is free again before the
// first step, but it is small beside the rest.
int64_t FixedBytes(const MemoryNeeds& needs) {
  return needs.weights_bytes + needs.embedding_bytes + needs.expert_slots * needs.expert_bytes +
         needs.loading_bytes + needs.buffers_bytes + needs.exchange_bytes;
}

absl::Status Shortfall(int64_t needed, int64_t had, const std::string& what) {
  return absl::ResourceExhaustedError(absl::StrCat(
      what, " needs ", BytesToString(needed), " (", needed, " bytes), there is ",
      BytesToString(had), ": ", BytesToString(needed - had), " (", needed - had, " bytes) short"));
}

// The number after the word `field` in a file of such lines; -1 if absent.
int64_t NumberAfter(const std::string& path, const std::string& field) {
  std::ifstream file(path);
  std::string line;
  while (std::getline(file, line)) {
    std::istringstream words(line);
    std::string word;
    int64_t value = 0;
    if (words >> word && word == field && words >> value) return value;
  }
  return -1;
}

// The whole file as a number; -1 if it is absent or says "max".
int64_t NumberIn(const std::string& path) {
  std::ifstream file(path);
  std::string text;
  int64_t value = 0;
  return std::getline(file, text) && absl::SimpleAtoi(text, &value) ? value : -1;
}

}  // namespace

std::string BytesToString(int64_t bytes) {
  constexpr const char* kUnits[] = {"B", "KiB", "MiB", "GiB", "TiB"};
  double value = static_cast<double>(bytes);
  size_t unit = 0;
  for (; value >= 1024 && unit + 1 < std::size(kUnits); ++unit) value /= 1024;
  return absl::StrFormat(unit == 0 ? "%.0f %s" : "%.1f %s", value, kUnits[unit]);
}

int64_t MemoryPlan::total_bytes() const { return FixedBytes(needs) + kv_bytes(); }

std::string MemoryPlan::ToString() const {
  const int64_t tokens = int64_t{page_count} * kernels::kPageTokens;
  std::string text = "memory plan:\n";
  const auto line = [&](const char* what, int64_t bytes, const std::string& note) {
    absl::StrAppendFormat(&text, "  %-18s %10s%s\n", what, BytesToString(bytes), note);
  };
  if (needs.page_bytes > 0) {
    line("weights (packed)", needs.weights_bytes, "");
    line("embedding", needs.embedding_bytes, "");
  }
  if (needs.expert_slots > 0) {
    const std::string spare =
        needs.spare_slots > 0 ? absl::StrCat(", ", needs.spare_slots, " of them spare") : "";
    line("experts", needs.expert_slots * needs.expert_bytes,
         absl::StrCat("  ", needs.expert_slots, " slots of ", BytesToString(needs.expert_bytes),
                      spare));
  }
  line("loading", needs.loading_bytes, "  while loading: the largest tensor");
  line("step buffers", needs.buffers_bytes, "");
  if (needs.exchange_bytes > 0) line("exchange", needs.exchange_bytes, "");
  if (needs.page_bytes > 0) {
    line("KV pages", kv_bytes(),
         absl::StrFormat("  %d pages of %d tokens = %d tokens, %.1f sequences of %d", page_count,
                         kernels::kPageTokens, tokens,
                         static_cast<double>(tokens) / limits.max_model_len, limits.max_model_len));
  }
  // The last line is what people compare with the machine.
  line("total", total_bytes(),
       absl::StrCat("  of ", BytesToString(limits.available_bytes), " available"));
  return text;
}

absl::StatusOr<MemoryPlan> PlanMemory(const MemoryNeeds& needs, const MemoryLimits& limits) {
  CHECK_GT(limits.max_model_len, 0);
  CHECK_GE(needs.page_bytes, 0);
  // Somebody who names the bytes of KV pages knows the machine: no share is left aside then.
  const int64_t usable =
      limits.kv_cache_bytes
          ? limits.available_bytes
          : static_cast<int64_t>(static_cast<double>(limits.available_bytes) * limits.utilization);
  const int64_t fixed = FixedBytes(needs);
  const int64_t sequence_pages = PagesFor(limits.max_model_len);
  // More could never be used, however long the sequences are.
  const int64_t pages_max =
      std::min<int64_t>(sequence_pages * limits.max_num_seqs, std::numeric_limits<int32_t>::max());
  const std::string share =
      limits.kv_cache_bytes
          ? std::string("this machine's available memory")
          : absl::StrCat("--memory-utilization ", limits.utilization, " of available memory");
  if (fixed > usable) {
    return Shortfall(fixed, usable, absl::StrCat("loading the model into ", share));
  }
  if (needs.page_bytes == 0) return MemoryPlan{.needs = needs, .limits = limits};
  const int64_t room = limits.kv_cache_bytes.value_or(usable - fixed);
  // With less, a request of --max-model-len would be accepted and never end.
  if (room / needs.page_bytes < sequence_pages) {
    return Shortfall(sequence_pages * needs.page_bytes, room,
                     absl::StrCat("one sequence of --max-model-len ", limits.max_model_len,
                                  limits.kv_cache_bytes ? " in --kv-cache-memory"
                                                        : " in what the model leaves of memory"));
  }
  // Told apart from the case above, whose remedy is another flag.
  if (limits.kv_cache_bytes && *limits.kv_cache_bytes > usable - fixed) {
    return Shortfall(fixed + *limits.kv_cache_bytes, usable, "the model with --kv-cache-memory");
  }
  const MemoryPlan plan{
      .needs = needs,
      .limits = limits,
      .page_count = static_cast<int>(std::min(room / needs.page_bytes, pages_max))};
  return plan;
}

absl::StatusOr<int64_t> AvailableMemoryBytes(const std::string& root) {
  const int64_t available_kib = NumberAfter(root + "/proc/meminfo", "MemAvailable:");
  if (available_kib < 0) {
    return absl::UnavailableError(absl::StrCat("no MemAvailable in ", root, "/proc/meminfo"));
  }
  // Of the machine and of the control group the smaller counts.
  int64_t available = available_kib * 1024;
  const std::string group = root + "/sys/fs/cgroup/memory.";
  const int64_t limit = NumberIn(group + "max");
  const int64_t current = NumberIn(group + "current");
  if (limit < 0 || current < 0) return available;
  // File pages that nobody used lately are counted as current, and given up when needed.
  const int64_t reclaimable = std::max<int64_t>(0, NumberAfter(group + "stat", "inactive_file"));
  available = std::min(available, std::max<int64_t>(0, limit - current + reclaimable));
  return available;
}

}  // namespace epic::worker
