// Orders of experts, and what became of them, as messages.
#pragma once

#include "absl/status/statusor.h"
#include "proto/epic/v1/worker.pb.h"
#include "worker/experts/expert_set.h"

namespace epic::worker {

using ExpertProofs = std::map<ExpertName, uint64_t>;

// InvalidArgument for weights that this build does not know.
absl::StatusOr<ExpertOrder> OrderFrom(const v1::PlaceExperts& message);
// ExpertsReady or ExpertsFailed.
v1::ControlMessage MessageFrom(const ExpertOutcome& outcome);
// Experts by layer, with their hashes.
google::protobuf::RepeatedPtrField<v1::LayerExperts> LayersFrom(const ExpertProofs& proofs);

}  // namespace epic::worker
