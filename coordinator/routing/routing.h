// Routing: which attention rank gets a sequence. A pure function.
#pragma once

#include <cstdint>
#include <optional>
#include <vector>

namespace epic::coordinator {

struct RankLoad {
  int rank = 0;
  bool ready = false;
  int64_t uncomputed_tokens = 0;  // of prompts sent there
  int running = 0;                // sequences there
  int kv_pages_used = 0;
  int kv_page_count = 0;
};

// The ready rank with the least to do: tokens still to compute, each running sequence as good as
// 64 of them, and the fuller its KV pages the dearer; ties go to the lower rank. None if none is
// ready.
std::optional<int> ChooseRank(const std::vector<RankLoad>& ranks);

}  // namespace epic::coordinator
