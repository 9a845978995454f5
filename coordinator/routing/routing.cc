#include "coordinator/routing/routing.h"

#include <utility>

namespace epic::coordinator {
namespace {

// Less is better.
double Cost(const RankLoad& rank) {
  const double work = static_cast<double>(rank.uncomputed_tokens) + 64.0 * rank.running;
  // A rank whose pages run out makes its sequences step back, and computes them twice.
  const double fill =
      rank.kv_page_count > 0 ? static_cast<double>(rank.kv_pages_used) / rank.kv_page_count : 0;
  return work * (1 + fill) + fill;
}

}  // namespace

std::optional<int> ChooseRank(const std::vector<RankLoad>& ranks) {
  std::optional<std::pair<double, int>> best;
  for (const RankLoad& rank : ranks) {
    if (!rank.ready) continue;
    // The rank decides between equals, so that the same loads give the same choice.
    const std::pair<double, int> candidate = {Cost(rank), rank.rank};
    if (!best || candidate < *best) best = candidate;
  }
  if (!best) return std::nullopt;
  return best->second;
}

}  // namespace epic::coordinator
