// From the message that starts a sequence to the record of it: each field is read and checked here,
// and nowhere else in the worker.
#pragma once

#include "absl/status/statusor.h"
#include "proto/epic/v1/worker.pb.h"
#include "worker/scheduler/sequence.h"

namespace epic::worker {

struct SequenceLimits {
  int max_model_len = 0;  // prompt and generated tokens together
  int vocab_size = 0;
};

// InvalidArgument or OutOfRange, naming field, value and limit, for what cannot be computed. A
// max_tokens beyond max_model_len is cut to it.
absl::StatusOr<Sequence> NewSequence(v1::StartSequence start, const SequenceLimits& limits);

}  // namespace epic::worker
