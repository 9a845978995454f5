// ExpertProofs: the content hash of each expert, as its first loader in this term had it. All
// groups of a world share them: they serve one checkpoint. A plain object.
#pragma once

#include <cstdint>
#include <map>
#include <utility>

#include "absl/status/status.h"

namespace epic::coordinator {

class ExpertProofs {
 public:
  // Notes the hash if it is the first of this expert. DataLoss, naming the expert, both hashes and
  // both ranks, if the first loader had another one. Hash 0 is not known, and passes.
  absl::Status Check(int rank, int layer, int expert, uint64_t hash);
  // 0: not known.
  uint64_t Find(int layer, int expert) const;

 private:
  struct Proof {
    uint64_t hash = 0;
    int rank = 0;  // its first loader
  };

  std::map<std::pair<int, int>, Proof> proofs_;  // by layer and expert
};

}  // namespace epic::coordinator
