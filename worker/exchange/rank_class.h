// RankClass: whether all ranks of an epoch are of one class (numeric profile and checkpoint). A
// rank asks when it is ready to serve, so the answer also says that all ranks are.
#pragma once

#include <array>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "cluster/transport/collective.h"

namespace epic::worker {

// One thread.
class RankClass {
 public:
  static constexpr int kBytesMax = 512;

  // Starts to tell the other ranks `mine`, of which the first kBytesMax bytes are compared.
  RankClass(cluster::Collective& collective, std::string_view mine);

  // Once all ranks have told: whether it was told; FailedPrecondition naming the first two ranks
  // that differ and their classes, on every rank alike.
  absl::StatusOr<bool> Agreed();

 private:
  using Text = std::array<char, kBytesMax>;

  cluster::Collective& collective_;
  Text mine_ = {};
  std::vector<Text> theirs_;  // by rank
  cluster::Collective::Operation operation_ = 0;
};

}  // namespace epic::worker
