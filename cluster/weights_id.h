// WeightsId: the set of weights that an expert, a row, a sequence or a response belongs to. A small
// number that stands where those are named: in expert names, frames, orders, sequences and
// responses. A world serves one set today. The number is there so that a second set is an addition.
#pragma once

#include <cstdint>

#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"

namespace epic::cluster {

// Messages and frames carry the number in 8 bits or more; what leaves it out means kFirst.
enum class WeightsId : uint8_t {
  kFirst = 0,  // the weights that the world began with
};

constexpr uint32_t NumberOf(WeightsId weights) { return static_cast<uint32_t>(weights); }

// InvalidArgument, naming the field `weights_id`, for a set that this build does not know.
inline absl::StatusOr<WeightsId> WeightsIdFrom(uint32_t number) {
  if (number == NumberOf(WeightsId::kFirst)) return WeightsId::kFirst;
  return absl::InvalidArgumentError(absl::StrCat("weights_id is ", number, "; this world has only ",
                                                 NumberOf(WeightsId::kFirst)));
}

}  // namespace epic::cluster
