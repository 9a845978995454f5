// MemoryPlan: what a worker will take, known before anything is loaded. A pure function.
#pragma once

#include <cstdint>
#include <optional>
#include <string>

#include "absl/status/statusor.h"

namespace epic::worker {

struct MemoryNeeds {
  int64_t weights_bytes = 0;    // packed; embedding and experts apart
  int64_t embedding_bytes = 0;  // the table
  int expert_slots = 0;         // experts that this rank has room for
  int spare_slots = 0;          // of these, kept for experts that other ranks lose
  int64_t expert_bytes = 0;     // of one, packed
  int64_t loading_bytes = 0;    // the largest tensor while it is packed; free again afterwards
  int64_t buffers_bytes = 0;    // activations and logits of one step
  int64_t exchange_bytes = 0;   // frames under way between ranks
  int64_t page_bytes = 0;       // of one KV page over all layers; 0: this rank has no sequences
};

struct MemoryLimits {
  int64_t available_bytes = 0;            // of this machine or container, now
  double utilization = 0.9;               // the share of it that may be taken
  std::optional<int64_t> kv_cache_bytes;  // instead of what the share leaves
  int max_model_len = 0;
  int max_num_seqs = 0;
};

struct MemoryPlan {
  MemoryNeeds needs;
  MemoryLimits limits;
  int page_count = 0;

  int64_t kv_bytes() const { return needs.page_bytes * page_count; }
  int64_t total_bytes() const;
  // For people, several lines.
  std::string ToString() const;
};

// Gives KV pages all that the limits leave, but never more than max_num_seqs sequences of
// max_model_len tokens can use. ResourceExhausted, with the exact shortfall, if the rest does not
// fit or the pages would not hold one sequence of max_model_len tokens.
absl::StatusOr<MemoryPlan> PlanMemory(const MemoryNeeds& needs, const MemoryLimits& limits);

// "1.5 GiB".
std::string BytesToString(int64_t bytes);

// What this process may still take: the smaller of the machine's available memory and what its
// control group (v2) leaves. Files are read under `root` ("" is the machine's own).
absl::StatusOr<int64_t> AvailableMemoryBytes(const std::string& root = "");

}  // namespace epic::worker
