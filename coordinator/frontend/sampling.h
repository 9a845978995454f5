// The sampling settings of a request: read, completed and checked. A new setting costs four places:
// its field in inference.proto, this reader and check, the worker's conversion
// (worker/engine/start_sequence.cc) and the sampler (model/sampler.h).
#pragma once

#include "absl/status/statusor.h"
#include "coordinator/frontend/json_fields.h"
#include "proto/epic/v1/inference.pb.h"

namespace epic::coordinator {

// The sampling fields of an OpenAI body; fields that it leaves out stay unset. Errors are kept in
// fields.status(). Ranges are not checked.
v1::Sampling ReadSampling(FieldReader& fields);

// `given` over `defaults` over NeutralSampling(). InvalidArgument naming field, value and limit if
// a value is out of its range. The seed stays unset if nobody gave one.
absl::StatusOr<v1::Sampling> CompleteSampling(const v1::Sampling& defaults,
                                              const v1::Sampling& given);

}  // namespace epic::coordinator
