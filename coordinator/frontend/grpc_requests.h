// Reads and writes the messages of epic.v1, without gRPC itself.
#pragma once

#include <vector>

#include "absl/status/statusor.h"
#include "coordinator/frontend/context.h"
#include "coordinator/frontend/generation.h"
#include "coordinator/request.h"
#include "proto/epic/v1/inference.pb.h"

namespace epic::coordinator {

// The checked request. Reasoning is split off if it came as messages or token ids.
absl::StatusOr<Request> ReadGenerate(const FrontendContext& context,
                                     const v1::GenerateRequest& message);

absl::StatusOr<v1::TokenizeResponse> Tokenize(const FrontendContext& context,
                                              const v1::TokenizeRequest& message);
absl::StatusOr<v1::DetokenizeResponse> Detokenize(const FrontendContext& context,
                                                  const v1::DetokenizeRequest& message);
v1::ListModelsResponse ListModels(const FrontendContext& context);

// What all responses of a call have in common. It is asked for once per call, for it costs the
// core's lock and a copy.
struct GrpcIdentity {
  std::string request_id;
  std::string system_fingerprint;
  cluster::WeightsId weights = cluster::WeightsId::kFirst;
};

// The outputs as responses, runs of one choice in one; the very last of a generation carries the
// usage.
std::vector<v1::GenerateResponse> ToResponses(const GrpcIdentity& identity,
                                              const Generation& generation,
                                              const std::vector<Generation::Output>& outputs);

}  // namespace epic::coordinator
