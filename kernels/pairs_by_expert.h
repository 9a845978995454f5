// Groups (row, expert) pairs by expert: a stable counting sort, since products run over all rows of
// an expert at once and answers go back in the order of the pairs.
//
//   by_expert.Sort(pairs, experts);
//   for (const auto& group : by_expert.groups()) {
//     // rows pairs[by_expert.pairs()[group.first + i]].row, i < group.count, meet group.expert
//   }
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "kernels/backend.h"

namespace epic::kernels {

class PairsByExpert {
 public:
  struct Group {
    int32_t expert = 0;
    int64_t first = 0;  // in pairs()
    int64_t count = 0;  // > 0
  };

  // Every pair names an expert below `experts`.
  void Sort(std::span<const ExpertRow> pairs, int experts) {
    counts_.assign(experts + 1, 0);
    for (const ExpertRow& pair : pairs) ++counts_[pair.expert + 1];
    groups_.clear();
    for (int e = 0; e < experts; ++e) {
      if (counts_[e + 1] > 0) groups_.push_back({e, counts_[e], counts_[e + 1]});
      counts_[e + 1] += counts_[e];
    }
    pairs_.resize(pairs.size());
    for (size_t i = 0; i < pairs.size(); ++i) {
      pairs_[counts_[pairs[i].expert]++] = static_cast<int32_t>(i);
    }
  }

  // Results of the last Sort: pairs() has the indices of its pairs, by expert, ascending within
  // one; groups() the experts that have any.
  std::span<const int32_t> pairs() const { return pairs_; }
  std::span<const Group> groups() const { return groups_; }

 private:
  std::vector<int64_t> counts_;
  std::vector<int32_t> pairs_;
  std::vector<Group> groups_;
};

}  // namespace epic::kernels
